package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"rehost/block"
)

// A Report is what [Replica.Verify] or [Replica.Segments] found.
type Report struct {
	Segments []SegmentInfo
	Runs     uint64 // records of blocks, committed or not
	Bytes    uint64 // of those blocks, decoded
	Points   int    // that can be opened
}

// SegmentInfo describes one segment file.
type SegmentInfo struct {
	Name       string // relative to the store's directory
	Session    uint64
	Generation uint64
	Bytes      uint64 // up to the end of its records
	Runs       int
	Commits    int
	Sealed     bool
}

// Segments lists the segment files, without reading the records of sealed ones.
func (r *Replica) Segments(ctx context.Context) (Report, error) {
	return r.walk(ctx, func(*segment, contents, *Report) error { return nil })
}

// Verify reads everything that the replica has stored, decrypts and decodes it,
// and compares it with the indexes and with the hashes that the source made of its
// content. The first damage is the error, a [CorruptError]. It may run beside a writer, and then looks at what there was
// when it came to each segment.
func (r *Replica) Verify(ctx context.Context) (Report, error) {
	return r.walk(ctx, func(s *segment, c contents, rep *Report) error { return s.verify(ctx, c, rep) })
}

func (r *Replica) walk(ctx context.Context, visit func(*segment, contents, *Report) error) (rep Report, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("verify replica %s: %w", r.id, err)
		}
	}()
	if err := r.Refresh(); err != nil {
		return rep, err
	}
	r.mu.RLock()
	meta, n := r.meta, uint64(len(r.segments))
	rep.Points = len(r.hist.commits)
	r.mu.RUnlock()
	for number := uint64(1); number <= n; number++ {
		if err := ctx.Err(); err != nil {
			return rep, err
		}
		s, err := openSegment(r.store.opts.fs, r.dir, r.id, number, r.dataKey, r.replica)
		if err != nil {
			return rep, err
		}
		c, err := s.load(number <= meta.Sealed || number < n)
		if err == nil {
			rep.Segments = append(rep.Segments, SegmentInfo{Name: s.object, Session: s.header.session, Generation: s.header.generation,
				Bytes: c.end, Runs: len(c.entries), Commits: c.commits(), Sealed: c.sealed})
			err = visit(s, c, &rep)
		}
		if err := errors.Join(err, s.close()); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

func (c contents) commits() (n int) {
	for _, m := range c.marks {
		if m.kind == kindCommit {
			n++
		}
	}
	return n
}

// verify walks the records of the segment up to c.end, which must be those of c.
func (s *segment) verify(ctx context.Context, c contents, rep *Report) error {
	var found contents
	for off := uint64(align); off < c.end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := s.recordAt(off)
		if err != nil {
			if errors.Is(err, errTorn) {
				err = corrupt(s.object, off, "record: %w", errAuth)
			}
			return err
		}
		sealed := make([]byte, r.size()-(recordSize+tagSize))
		if err := s.readFull(sealed, off+recordSize+tagSize); err != nil {
			return err
		}
		run, err := s.openBody(r, sealed, off)
		if err == nil && r.kind == kindRun {
			err = s.verifyRun(run, off)
			rep.Runs++
			rep.Bytes += uint64(r.extent.Bytes())
		}
		if err != nil {
			return err
		}
		found.add(located{r, off})
		off += r.size()
	}
	if !slices.Equal(found.entries, c.entries) || !slices.Equal(found.marks, c.marks) {
		return corrupt(s.object, c.end, "index does not list the records that are there")
	}
	return nil
}

// verifyRun decodes a run and compares its content with its sums.
func (s *segment) verifyRun(run block.Run, off uint64) error {
	content, err := s.decodeRun(run, off)
	if err != nil || len(run.Sums) == 0 {
		return err
	}
	if err := run.CheckSums(content); err != nil {
		return corrupt(s.object, off, "%w", err)
	}
	return nil
}
