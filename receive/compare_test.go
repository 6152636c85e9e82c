package receive_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"rehost/block"
	"rehost/receive"
	"rehost/wire"
)

// compareAll asks about a whole disk, many questions at once, and returns which
// chunks differ.
func compareAll(t *testing.T, s *wire.Session, point block.Seq, d block.Disk, content []byte) []bool {
	t.Helper()
	out := make([]bool, (d.Blocks()+block.ChunkBlocks-1)/block.ChunkBlocks)
	const step = 5 * block.ChunkBlocks
	var asking sync.WaitGroup
	for at := uint64(0); at < d.Blocks(); at += step {
		asking.Go(func() {
			e := block.Extent{Disk: d.ID, Start: at, Count: min(step, d.Blocks()-at)}
			differ, err := s.Compare(t.Context(), point, e, block.AppendHashes(nil, content[e.Offset():][:e.Bytes()], block.ChunkBlocks))
			if err != nil {
				t.Errorf("%v: %v", e, err)
			}
			copy(out[at/block.ChunkBlocks:], differ)
		})
	}
	asking.Wait()
	return out
}

// TestServer_Compares changes some chunks of a disk and asks: those and no others
// differ, from the point asked about and not from a later one.
func TestServer_Compares(t *testing.T) {
	x, r, m := newSite(t), seeded(t), newModel()
	s := x.dial()
	if err := send(t.Context(), s, r, 1, m.epoch(r, 60), block.Consistent); err != nil {
		t.Fatal(err)
	}
	then := m.clone()
	if err := send(t.Context(), s, r, 2, m.epoch(r, 20), block.Consistent); err != nil {
		t.Fatal(err)
	}
	for point, content := range map[block.Seq]model{1: then, 2: m} {
		for _, d := range disks {
			b := content[d.ID]
			if got := compareAll(t, s, point, d, b); slices.Contains(got, true) {
				t.Errorf("point %v: its own content differs: %v", point, got)
			}
			changed := slices.Clone(b)
			var want []bool
			for chunk := 0; chunk < len(b); chunk += block.ChunkBlocks * block.Size {
				want = append(want, r.IntN(3) == 0)
				if last := min(chunk+block.ChunkBlocks*block.Size, int(d.Size)) - 1; want[len(want)-1] {
					changed[chunk+rand.IntN(last-chunk+1)] ^= 1 << r.IntN(8)
				}
			}
			if got := compareAll(t, s, point, d, changed); !slices.Equal(got, want) {
				t.Errorf("point %v, disk %v:\n got %v\nwant %v", point, d.ID, got, want)
			}
		}
	}
	if err := s.Retract(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := send(t.Context(), s, r, 3, then.epoch(r, 5), block.Consistent); err != nil {
		t.Fatal(err)
	}
	if got := compareAll(t, s, 3, disks[0], then[disks[0].ID]); slices.Contains(got, true) {
		t.Errorf("after points were withdrawn: %v", got)
	}
	_, err := s.Compare(t.Context(), 2, block.Extent{Disk: 1, Count: 1}, make([]block.Hash, 1))
	wantCode(t, err, wire.Protocol) // a point that was withdrawn
}

// slowView is a store that takes its time to open a point.
type slowView struct {
	receive.Store
	asked, open chan struct{}
}

func (s slowView) At(ctx context.Context, server string, point block.Seq) (receive.View, error) {
	close(s.asked)
	<-s.open
	return s.Store.At(ctx, server, point)
}

// TestSession_CompareCancelled: an answer that nobody waits for must not be taken
// for that to another question.
func TestSession_CompareCancelled(t *testing.T) {
	slow := slowView{asked: make(chan struct{}), open: make(chan struct{})}
	x, r, m := newSite(t, func(c *receive.Config) { slow.Store, c.Store = c.Store, &slow }), seeded(t), newModel()
	s := x.dial()
	if err := send(t.Context(), s, r, 1, m.epoch(r, 5), block.Consistent); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Compare(ctx, 1, block.Extent{Disk: 1, Count: 1}, make([]block.Hash, 1))
		done <- err
	}()
	<-slow.asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a question that was cancelled: got %v", err)
	}
	<-s.Done()
	close(slow.open)
}
