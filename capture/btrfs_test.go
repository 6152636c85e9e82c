package capture

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// A btrfsTree is items as a search answers with them.
type btrfsTree struct{ buf []byte }

func (b *btrfsTree) add(k btrfsKey, data []byte) {
	if b.buf == nil {
		b.buf = make([]byte, btrfsSearchKey+8)
	}
	le := binary.LittleEndian
	h := make([]byte, 32)
	le.PutUint64(h[8:], k.object)
	le.PutUint64(h[16:], k.offset)
	le.PutUint32(h[24:], uint32(k.kind))
	le.PutUint32(h[28:], uint32(len(data)))
	b.buf = append(append(b.buf, h...), data...)
	le.PutUint32(b.buf[64:], le.Uint32(b.buf[64:])+1)
}

// chunkItem is a chunk with its stripes on device 1.
func chunkItem(length, kind uint64, stripes ...uint64) []byte {
	le, b := binary.LittleEndian, make([]byte, 48+32*len(stripes))
	le.PutUint64(b, length)
	le.PutUint64(b[24:], kind)
	le.PutUint16(b[44:], uint16(len(stripes)))
	for i, at := range stripes {
		le.PutUint64(b[48+32*i:], 1)
		le.PutUint64(b[48+32*i+8:], at)
	}
	return b
}

// mapOf is a device of 1 GiB with these trees.
func mapOf(chunks, extents []byte) *btrfsMap {
	return &btrfsMap{device: 1, size: 1 << 30, nodeSize: 16 << 10, search: func(tree uint64, from, to btrfsKey, each func(btrfsKey, []byte) error) error {
		answer := extents
		if tree == btrfsChunkTree {
			answer = chunks
		}
		if len(answer) < btrfsSearchKey+8 {
			return nil
		}
		_, _, err := btrfsItems(answer, from, to, each)
		return err
	}}
}

const mib = 1 << 20

func exampleTrees() (chunks, extents btrfsTree) {
	chunks.add(btrfsKey{btrfsFirstChunk, btrfsChunkItem, 300 * mib}, chunkItem(60*mib, btrfsDup, 40*mib, 500*mib))
	extents.add(btrfsKey{300 * mib, btrfsExtentItem, mib}, make([]byte, 24))
	extents.add(btrfsKey{302 * mib, 192, 60 * mib}, make([]byte, 24)) // a block group
	extents.add(btrfsKey{303 * mib, btrfsMetadataItem, 0}, make([]byte, 33))
	extents.add(btrfsKey{350 * mib, btrfsExtentItem, 10 * mib}, nil)
	return chunks, extents
}

func TestBtrfsMap(t *testing.T) {
	chunks, extents := exampleTrees()
	var got []span
	if err := mapOf(chunks.buf, extents.buf).free(func(from, to int64) { got = append(got, span{from, to}) }); err != nil {
		t.Fatal(err)
	}
	want := []span{
		{0, 40 * mib}, {100 * mib, 500 * mib}, {560 * mib, 1 << 30}, // in no chunk
		{41 * mib, 43 * mib}, {501 * mib, 503 * mib},
		{43*mib + 16<<10, 64 * mib}, {64*mib + 64<<10, 90 * mib}, {503*mib + 16<<10, 550 * mib}, // but for a superblock's copy
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
	for name, m := range map[string]*btrfsMap{
		"stripes of RAID 0": func() *btrfsMap {
			var c btrfsTree
			c.add(btrfsKey{btrfsFirstChunk, btrfsChunkItem, 0}, chunkItem(mib, 1<<3, mib))
			return mapOf(c.buf, nil)
		}(),
		"another device": func() *btrfsMap {
			m := mapOf(chunks.buf, extents.buf)
			m.device = 2
			return m
		}(),
		"a chunk beyond the end": func() *btrfsMap {
			var c btrfsTree
			c.add(btrfsKey{btrfsFirstChunk, btrfsChunkItem, 0}, chunkItem(mib, 0, 1<<30-mib+1))
			return mapOf(c.buf, nil)
		}(),
		"extents that overlap": func() *btrfsMap {
			var e btrfsTree
			e.add(btrfsKey{300 * mib, btrfsExtentItem, 2 * mib}, nil)
			e.add(btrfsKey{301 * mib, btrfsExtentItem, 2 * mib}, nil)
			return mapOf(chunks.buf, e.buf)
		}(),
		"an extent that leaves its chunk": func() *btrfsMap {
			var e btrfsTree
			e.add(btrfsKey{300 * mib, btrfsExtentItem, 61 * mib}, nil)
			return mapOf(chunks.buf, e.buf)
		}(),
		"an answer that is cut off": mapOf(chunks.buf, extents.buf[:len(extents.buf)-1]),
	} {
		if err := m.free(func(int64, int64) {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	super := make([]byte, btrfsSuperSize)
	copy(super[0x40:], "_BHRfS_M")
	super[btrfsDevices] = 1
	binary.LittleEndian.PutUint32(super[btrfsNodeSize:], 16<<10)
	if err := mapOf(nil, nil).check(super); err != nil {
		t.Error(err)
	}
	super[btrfsIncompat+1] = 0x10 // zones
	if err := mapOf(nil, nil).check(super); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a btrfs with zones: %v", err)
	}
}

func TestBtrfsKey_Next(t *testing.T) {
	const most = 1<<64 - 1
	for k, want := range map[btrfsKey]btrfsKey{{1, 2, 3}: {1, 2, 4}, {1, 2, most}: {1, 3, 0}, {1, 255, most}: {2, 0, 0}} {
		if got, ok := k.next(); !ok || got != want {
			t.Errorf("%v: got %v", k, got)
		}
	}
	if k, ok := (btrfsKey{most, 255, most}).next(); ok {
		t.Errorf("there is %v behind the last key", k)
	}
}

// FuzzBtrfsMap: whatever the trees say, what is free is on the device.
func FuzzBtrfsMap(f *testing.F) {
	chunks, extents := exampleTrees()
	f.Add(chunks.buf, extents.buf)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, chunks, extents []byte) {
		_ = mapOf(chunks, extents).free(func(from, to int64) {
			if from < 0 || to <= from || to > 1<<30 {
				t.Fatalf("%d to %d is free", from, to)
			}
		})
	})
}
