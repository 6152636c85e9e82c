package store

import (
	"errors"
	"path/filepath"
	"testing"

	"rehost/block"
)

// TestTwoProcesses: the service deletes a replica that a replication server of
// its own process had written, and knows; replication then starts afresh.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	keys, err := CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	var stores [2]*Store // as of two processes
	for i := range stores {
		if stores[i], err = Open(filepath.Join(dir, "store"), keys, Options{}); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
	}
	replicator, service := stores[0], stores[1]
	disks := []block.Disk{{Size: 1 << 20}}
	for generation := range uint64(2) {
		_, err := replicator.Replica(t.Context(), "s-1")
		if !errors.Is(err, ErrNotFound) {
			t.Fatalf("a replica that is not there: %v", err)
		}
		r, err := replicator.Create(t.Context(), "s-1", disks, "")
		if err != nil {
			t.Fatal(err)
		}
		w, err := r.Begin(t.Context(), generation+1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context(), block.Point{Seq: 1}, 0, block.Consistent); err != nil {
			t.Fatal(err)
		}
		seen, err := service.Replica(t.Context(), "s-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := seen.Refresh(); err != nil || len(seen.Points()) != 1 {
			t.Fatalf("the service sees %d points, %v", len(seen.Points()), err)
		}
		if err := service.Delete(t.Context(), "s-1"); !errors.Is(err, ErrLocked) {
			t.Fatalf("delete what is being written: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := service.Delete(t.Context(), "s-1"); err != nil {
			t.Fatal(err)
		}
	}
}
