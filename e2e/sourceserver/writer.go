package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"rehost/e2e/sourceserver/records"
)

// A writer appends records to a log on disk A and, when that is durable, to one
// on disk B.
type writer struct {
	run  [16]byte
	boot records.Verdict // what the logs held when the writer opened them

	mu   sync.Mutex
	a, b *os.File
	last uint64
}

// openWriter looks at the logs, keeps what it saw, and brings B up to A.
func openWriter(pathA, pathB string) (w *writer, err error) {
	w = &writer{}
	if _, err := rand.Read(w.run[:]); err != nil {
		return nil, err
	}
	if w.a, err = os.OpenFile(pathA, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if w.b, err = os.OpenFile(pathB, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if w.boot, err = w.judge(); err != nil {
		return nil, err
	}
	if err := w.copyMissing(w.boot.B.Last, w.boot.A.Last); err != nil {
		return nil, fmt.Errorf("bring log B up to log A: %w", err)
	}
	w.last = max(w.boot.A.Last, w.boot.B.Last)
	return w, nil
}

func (w *writer) copyMissing(from, to uint64) error {
	slot := make([]byte, records.SlotSize)
	for n := from + 1; n <= to && to-from < records.Slots; n++ {
		off := int64(n%records.Slots) * records.SlotSize
		if _, err := w.a.ReadAt(slot, off); err != nil && err != io.EOF {
			return err
		}
		r, err := records.Parse(slot)
		if err != nil {
			return err
		}
		if err := r.WriteTo(w.b); err != nil {
			return err
		}
	}
	return w.b.Sync()
}

// Run writes until the context ends.
func (w *writer) Run(ctx context.Context, rate float64) error {
	if rate <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := w.append(); err != nil {
				return fmt.Errorf("append record: %w", err)
			}
		}
	}
}

func (w *writer) append() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := records.New(w.run, w.last+1)
	for _, f := range []*os.File{w.a, w.b} {
		if err := r.WriteTo(f); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	w.last++
	return nil
}

// Last is the number of the last record that is durable on both disks.
func (w *writer) Last() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// judge verifies both logs as they are between two records.
func (w *writer) judge() (records.Verdict, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	whole := func(f *os.File) io.Reader { return io.NewSectionReader(f, 0, 1<<62) }
	return records.Judge(whole(w.a), whole(w.b))
}

// Close closes the logs.
func (w *writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.a.Close()
	w.b.Close()
}
