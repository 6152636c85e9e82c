package receive_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"rehost/block"
	"rehost/receive"
)

// nowhere is a store that keeps nothing: what is left is the wire.
type nowhere struct{}

func (nowhere) Begin(context.Context, string, uint64, []block.Disk) (receive.Writer, block.Point, error) {
	return nowhere{}, block.Point{}, nil
}

func (nowhere) At(context.Context, string, block.Seq) (receive.View, error) {
	return nil, errors.ErrUnsupported
}
func (nowhere) Append(context.Context, block.Seq, uint64, block.Run) error     { return nil }
func (nowhere) Commit(context.Context, block.Point, uint64, block.Flags) error { return nil }
func (nowhere) Retract(context.Context, block.Seq) error                       { return nil }
func (nowhere) Close() error                                                   { return nil }

// BenchmarkSession_Put sends raw runs of 1 MiB from 8 goroutines over 4
// connections, and commits every 256.
func BenchmarkSession_Put(b *testing.B) {
	b.Run("discard", func(b *testing.B) { benchmarkPut(b, func(c *receive.Config) { c.Store = nowhere{} }) })
	b.Run("store", func(b *testing.B) { benchmarkPut(b) })
}

func benchmarkPut(b *testing.B, change ...func(*receive.Config)) {
	x := newSite(b, change...)
	s := x.dial()
	data := make([]byte, block.MaxRun*block.Size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	run := block.Encode(block.Extent{Disk: 1, Count: block.MaxRun}, data, false)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.ResetTimer()
	for done, seq := 0, block.Seq(1); done < b.N; seq++ {
		n := min(256, b.N-done)
		var wg sync.WaitGroup
		for part := range 8 {
			wg.Go(func() {
				for i := part; i < n; i += 8 {
					if err := s.Put(b.Context(), seq, uint64(i), run); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := s.Commit(b.Context(), block.Point{Seq: seq, Time: time.Unix(1, 0)}, uint64(n), block.Consistent); err != nil {
			b.Fatal(err)
		}
		done += n
	}
}
