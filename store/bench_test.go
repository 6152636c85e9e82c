package store

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/block"
)

// benchReplica makes a replica of a disk of size bytes, below $REHOST_BENCH_DIR if
// that is set: what is measured depends on the file system.
func benchReplica(b *testing.B, size int64) *Replica {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("REHOST_BENCH_DIR"), "store")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	keys, err := CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "store"), keys, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	r, err := s.Create(b.Context(), "s-1", []block.Disk{{ID: 0, Size: size}}, "")
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// BenchmarkWriter_Append is a first copy: raw runs of 1 MiB and, in the measured
// time, the Commit that makes all of them durable.
func BenchmarkWriter_Append(b *testing.B) {
	const size = 1 << 20
	w, err := benchReplica(b, int64(b.N)*size).Begin(b.Context(), 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, size)
	rand.Read(data)
	b.SetBytes(size)
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := uint64(next.Add(1) - 1); i < uint64(b.N); i = uint64(next.Add(1) - 1) {
				run := block.Run{Extent: block.Extent{Start: i * block.MaxRun, Count: block.MaxRun}, Codec: block.Raw, Payload: data}
				if err := w.Append(context.Background(), 1, i, run); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := w.Commit(b.Context(), block.Point{Seq: 1}, uint64(b.N), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWriter_Commit is the steady state: small epochs of eight blocks.
func BenchmarkWriter_Commit(b *testing.B) {
	w, err := benchReplica(b, 1<<30).Begin(b.Context(), 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, block.Size)
	rand.Read(data)
	took := make([]time.Duration, 0, b.N)
	for i := range b.N + 1 {
		start := time.Now()
		seq := block.Seq(i + 1)
		for n := range uint64(8) {
			run := block.Run{Extent: block.Extent{Start: n * 1000, Count: 1}, Codec: block.Raw, Payload: data}
			if err := w.Append(b.Context(), seq, n, run); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Commit(b.Context(), block.Point{Seq: seq}, 8, 0); err != nil {
			b.Fatal(err)
		}
		if i == 0 { // the first one makes the segment
			b.ResetTimer()
			continue
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkReplica_Open opens a replica with as many runs as 1 TiB has in a first
// copy, and its point.
func BenchmarkReplica_Open(b *testing.B) {
	const runs = 1 << 20
	r := benchReplica(b, 1<<40)
	w, err := r.Begin(b.Context(), 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := range uint64(runs) {
		run := block.Run{Extent: block.Extent{Start: i * block.MaxRun, Count: block.MaxRun}, Codec: block.Zero}
		if err := w.Append(b.Context(), 1, i, run); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Commit(b.Context(), block.Point{Seq: 1}, runs, 0); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		ro, err := Open(r.store.dir, r.store.keys, Options{ReadOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		again, err := ro.Replica(b.Context(), "s-1")
		if err != nil {
			b.Fatal(err)
		}
		v, err := again.At(1)
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-held")
		runtime.KeepAlive(v)
		if err := ro.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
