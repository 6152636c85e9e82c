package store

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"rehost/block"
)

func TestSmoke(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	keys, err := CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "store"), keys, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Create(ctx, "s-1", []block.Disk{{ID: 1, Name: "/dev/sda", Size: 1 << 30}}, "")
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.Begin(ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 256*2)
	if err := w.Append(ctx, 1, 0, block.Encode(block.Extent{Disk: 1, Start: 7, Count: 2}, data, true)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, block.Point{Seq: 1, Time: time.Unix(5, 6)}, 1, Consistent); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v, err := r.At(1)
		if err != nil {
			t.Fatal(err)
		}
		d, err := v.Disk(1)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4*block.Size)
		if _, err := d.ReadAt(got, 6*block.Size); err != nil || !bytes.Equal(got[block.Size:3*block.Size], data) {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, _ = Open(filepath.Join(dir, "store"), keys, Options{})
		if r, err = s.Replica(ctx, "s-1"); err != nil {
			t.Fatal(err)
		}
		if rep, err := r.Verify(ctx); err != nil {
			t.Fatal(err)
		} else {
			t.Logf("%+v", rep)
		}
	}
	s.Close()
}
