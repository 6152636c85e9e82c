package store

import (
	"errors"
	"math"
	"path/filepath"
	"testing"

	"rehost/block"
)

// TestReserve: replicas stop growing while there is room for others, whole
// recovery points stay, and with room again a new writer goes on.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	keys, err := CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	run := block.Run{Extent: block.Extent{Count: 1}, Codec: block.Raw, Payload: make([]byte, block.Size)}
	write := func(reserve int64, generation uint64, seq block.Seq) error {
		s, err := Open(filepath.Join(dir, "store"), keys, Options{Reserve: reserve})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r, err := s.Replica(t.Context(), "s-1")
		if errors.Is(err, ErrNotFound) {
			r, err = s.Create(t.Context(), "s-1", []block.Disk{{Size: 1 << 20}}, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		w, err := r.Begin(t.Context(), generation, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return errors.Join(w.Append(t.Context(), seq, 0, run), w.Commit(t.Context(), block.Point{Seq: seq}, 1, block.Consistent))
	}
	for i, test := range []struct {
		reserve int64
		want    error
		seq     block.Seq
	}{{0, nil, 1}, {math.MaxInt64, ErrFull, 2}, {1, nil, 2}} {
		if err := write(test.reserve, uint64(i+1), test.seq); !errors.Is(err, test.want) || test.want == nil && err != nil {
			t.Fatalf("reserve %d: got %v, want %v", test.reserve, err, test.want)
		}
	}
}
