package store

import (
	"errors"
	"io"
	"sort"

	"rehost/block"
)

// AppendHashes appends the hashes of the chunks that e is cut into from its start
// on, the last of which may be shorter; behind the end of the disk there are zeros.
// A chunk that is still as one run brought it is known by that run's hash, and
// nothing but the hash is read then.
func (v *View) AppendHashes(hashes []block.Hash, e block.Extent) ([]block.Hash, error) {
	d, err := v.Disk(e.Disk)
	if err != nil {
		return nil, err
	}
	var last sums
	var buf []byte
	for at := e.Start; at < e.End(); at += block.ChunkBlocks {
		chunk := block.Extent{Disk: d.disk.ID, Start: at, Count: min(block.ChunkBlocks, e.End()-at)}
		if h, known, err := d.sum(chunk, &last); err != nil {
			return nil, err
		} else if known {
			hashes = append(hashes, h)
			continue
		}
		if buf == nil {
			buf = make([]byte, block.ChunkBlocks*block.Size)
		}
		data := buf[:chunk.Bytes()]
		n, err := d.ReadAt(data, chunk.Offset())
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		clear(data[n:])
		hashes = block.AppendHashes(hashes, data, block.ChunkBlocks)
	}
	return hashes, nil
}

// sums are those of one record.
type sums struct {
	record runKey
	list   []block.Hash
}

// sum is the hash of a chunk, if the log has it. Last is what was read before.
func (d *Device) sum(chunk block.Extent, last *sums) (h block.Hash, known bool, err error) {
	first, n := chunk.Chunks()
	if n != 1 || chunk.Count != block.ChunkBlocks || int64(chunk.End()*block.Size) > d.disk.Size {
		return h, false, nil
	}
	zero := true
	i := sort.Search(len(d.pieces), func(i int) bool { return d.pieces[i].end() > chunk.Start })
	for j := i; j < len(d.pieces) && d.pieces[j].start < chunk.End(); j++ {
		zero = zero && d.pieces[j].zero
	}
	if zero {
		return block.ZeroHash(), true, nil
	}
	p := d.pieces[i]
	if p.sums == 0 || p.start > chunk.Start || p.end() < chunk.End() {
		return h, false, nil
	}
	if key := (runKey{p.seg, p.offset}); last.list == nil || last.record != key {
		list, err := d.v.sums(p)
		if err != nil {
			return h, false, err
		}
		*last = sums{key, list}
	}
	begin := block.Extent{Start: p.start - uint64(p.skip), Count: uint64(p.skip) + uint64(p.count)}
	of, _ := begin.Chunks() // the first that the record has a hash of
	return last.list[first-of], true, nil
}

// sums reads those of the record that p is a part of.
func (v *View) sums(p piece) ([]block.Hash, error) {
	s := v.segments[p.seg]
	rec, body, err := s.readRecord(p, storedSize(p.sums, 0))
	if err != nil {
		return nil, err
	}
	list, err := s.cipher.openSums(body, rec, p.offset)
	if err != nil {
		return nil, corrupt(s.object, p.offset, "sums: %w", err)
	}
	return list, nil
}
