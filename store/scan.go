package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"rehost/block"
)

// A segment is one file of a replica's log, as its readers have it.
type segment struct {
	fs     fileSystem
	path   string
	object string // the path within the store, for errors
	header segmentHeader
	cipher *segmentCipher

	mu     sync.Mutex
	f      file // opened by the first read
	closed bool
}

func segmentName(number uint64) string { return fmt.Sprintf("%08x.seg", number) }

func parseSegmentName(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, ".seg")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 16, 32)
	return number, err == nil && segmentName(number) == name && number > 0
}

// contents are the records of a segment, in short.
type contents struct {
	entries []indexEntry // in the order of their offsets
	marks   []indexMark  // likewise
	end     uint64       // of the records
	markEnd uint64       // of the last mark and the pad behind it
	sealed  bool
}

// replay adds what the segment holds to h.
func (c contents) replay(h *history, s *segment) error {
	h.begin(s.header.session)
	entries := c.entries
	for _, m := range c.marks {
		for len(entries) > 0 && entries[0].offset < m.offset {
			h.run(s.header.number, entries[0])
			entries = entries[1:]
		}
		if m.kind == kindRetract {
			h.retract(m.epoch)
		} else if err := h.commit(m); err != nil {
			return corrupt(s.object, m.offset, "%w", err)
		}
	}
	for _, e := range entries {
		h.run(s.header.number, e)
	}
	return nil
}

func (s *segment) file() (file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.f == nil {
		f, err := s.fs.Open(s.path)
		if err != nil {
			return nil, err
		}
		s.f = f
	}
	return s.f, nil
}

// close makes every later read fail.
func (s *segment) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.release()
}

// release closes the file until the next read.
func (s *segment) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

// readFull reads exactly len(b) bytes; a file that ends before is corrupt.
func (s *segment) readFull(b []byte, off uint64) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	n, err := f.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt(s.object, off, "file ends after %d of %d bytes: %w", n, len(b), io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read %s at %d: %w", s.object, off, err)
}

// openSegment reads the header of segment number.
func openSegment(fsys fileSystem, dir, server string, number uint64, dataKey []byte, replica hexID) (*segment, error) {
	name := segmentName(number)
	s := &segment{fs: fsys, path: filepath.Join(dir, name), object: filepath.Join(server, name)}
	b := make([]byte, align)
	err := s.readFull(b, 0)
	if err == nil {
		if s.header, s.cipher, err = decodeSegmentHeader(b, dataKey); err != nil {
			err = corrupt(s.object, 0, "header: %w", err)
		} else if s.header.number != number || s.header.replica != replica {
			err = corrupt(s.object, 0, "header is of another segment")
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// load reads what the segment holds: the index if it is sealed, else the
// records. Mustseal says that an unsealed one is corrupt.
func (s *segment) load(mustSeal bool) (contents, error) {
	f, err := s.file()
	if err != nil {
		return contents{}, err
	}
	n, err := f.Size()
	if err != nil {
		return contents{}, err
	}
	size := uint64(n)
	if size%align == 0 && size >= 3*align {
		last := make([]byte, align)
		if err := s.readFull(last, size-align); err != nil && mustSeal {
			return contents{}, err
		}
		if isTrailer(last) {
			c, err := s.loadIndex(last, size)
			// Before replica.json says that it is sealed, sealing may have been cut
			// short: then the records tell all.
			if err == nil || mustSeal {
				return c, err
			}
		}
	}
	if mustSeal {
		return contents{}, corrupt(s.object, size, "segment has no trailer")
	}
	return s.scan()
}

func (s *segment) loadIndex(last []byte, size uint64) (contents, error) {
	t, err := s.cipher.decodeTrailer(last)
	if err != nil {
		return contents{}, corrupt(s.object, size-align, "trailer: %w", err)
	}
	if t.fileSize() != size {
		return contents{}, corrupt(s.object, size, "file has %d bytes, its trailer says %d", size, t.fileSize())
	}
	b := make([]byte, size-align-t.end)
	if err := s.readFull(b, t.end); err != nil {
		return contents{}, err
	}
	gap := t.index - t.end
	if !block.IsZero(b[:gap]) {
		return contents{}, corrupt(s.object, t.end, "%w", errZero)
	}
	entries, marks, err := s.cipher.decodeIndex(t, b[gap:], last)
	if err != nil {
		return contents{}, corrupt(s.object, t.index, "index: %w", err)
	}
	slices.SortFunc(entries, func(a, b indexEntry) int { return cmp.Compare(a.offset, b.offset) })
	return contents{entries: entries, marks: marks, end: t.end, sealed: true}, nil
}

// errTorn says that there is no intact record where one was expected.
var errTorn = errors.New("no record")

// recordAt reads the header of the record at off.
func (s *segment) recordAt(off uint64) (record, error) {
	var b [recordSize + tagSize]byte
	if err := s.readFull(b[:], off); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return record{}, errTorn
		}
		return record{}, err
	}
	r, err := s.cipher.openHeader(b[:], off)
	if errors.Is(err, errAuth) {
		return r, errTorn
	}
	if err == nil && r.durable > off {
		err = errLayout
	}
	if err != nil {
		return r, corrupt(s.object, off, "record: %w", err)
	}
	return r, nil
}

// checkAt reads what follows the header of r, the record at off, and decrypts it.
func (s *segment) checkAt(r record, off uint64) error {
	b := make([]byte, r.size()-(recordSize+tagSize))
	if err := s.readFull(b, off+recordSize+tagSize); err != nil {
		return err
	}
	_, err := s.openBody(r, b, off)
	return err
}

// openBody decrypts what follows the header of the record r at off: a run, as it
// came off the wire; the payload is decrypted in place.
func (s *segment) openBody(r record, sealed []byte, off uint64) (run block.Run, err error) {
	run.Extent, run.Codec = r.extent, r.codec
	if run.Sums, err = s.cipher.openSums(sealed, r, off); err != nil {
		return run, corrupt(s.object, off, "sums: %w", err)
	}
	if run.Payload, err = s.cipher.openPayload(sealed[r.payloadOffset()-(recordSize+tagSize):], r, off); err != nil {
		return run, corrupt(s.object, off, "payload: %w", err)
	}
	return run, nil
}

// A located record is one with its place.
type located struct {
	record
	offset uint64
}

// scan reads the records of an unsealed segment. Writes that were under way
// when the writer died may have left anything behind the last sync; that tail is
// dropped. Each record says up to where its segment was durable when it was
// written, so damage in front of that is told from a torn tail.
func (s *segment) scan() (contents, error) {
	var list []located
	durable, off := uint64(align), uint64(align)
	for {
		r, err := s.recordAt(off)
		if errors.Is(err, errTorn) {
			evidence, err := s.durableBeyond(off)
			if err != nil {
				return contents{}, err
			}
			if !evidence {
				break
			}
			// A live writer may have filled the place since it was read.
			if r, err = s.recordAt(off); errors.Is(err, errTorn) {
				return contents{}, corrupt(s.object, off, "record: %w", errAuth)
			} else if err != nil {
				return contents{}, err
			}
		} else if err != nil {
			return contents{}, err
		}
		list = append(list, located{r, off})
		durable = max(durable, r.durable)
		off += r.size()
	}
	c := contents{end: off}
	for _, r := range list {
		if r.offset+r.size() > durable {
			switch err := s.checkAt(r.record, r.offset); {
			case errors.As(err, new(*CorruptError)):
				c.end = r.offset
				return c, nil
			case err != nil:
				return contents{}, err
			}
		}
		c.add(r)
	}
	return c, nil
}

func (c *contents) add(r located) {
	switch {
	case r.kind == kindPad && r.offset == c.markEnd:
		c.markEnd += r.size()
	case r.mark():
		c.markEnd = r.offset + r.size()
		c.marks = append(c.marks, indexMark{kind: r.kind, flags: r.flags, epoch: r.epoch, runs: r.ordinal, time: r.time, offset: r.offset})
	case r.kind == kindRun:
		c.entries = append(c.entries, indexEntry{extent: r.extent, codec: r.codec, epoch: r.epoch, ordinal: r.ordinal, offset: r.offset, length: r.length, sums: r.sums})
	}
}

// trim drops what stands behind the last mark, which will never be committed.
func (c *contents) trim() {
	last := c.marks[len(c.marks)-1].offset
	n, _ := slices.BinarySearchFunc(c.entries, last, func(e indexEntry, off uint64) int { return cmp.Compare(e.offset, off) })
	c.entries, c.end = c.entries[:n], c.markEnd
}

// durableBeyond looks behind a place without a record for one that says the
// place had been durable. Batches begin aligned, which bounds the search.
func (s *segment) durableBeyond(off uint64) (bool, error) {
	f, err := s.file()
	if err != nil {
		return false, err
	}
	buf := make([]byte, 256*align)
	for at := alignUp(off + 1); ; at += uint64(len(buf)) {
		n, err := f.ReadAt(buf, int64(at))
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		for i := 0; i+recordSize+tagSize <= n; i += align {
			b := buf[i : i+recordSize+tagSize]
			if block.IsZero(b) {
				continue
			}
			if r, err := s.cipher.openHeader(b, at+uint64(i)); err == nil && r.durable > off {
				return true, nil
			}
		}
		if n < len(buf) {
			return false, nil
		}
	}
}
