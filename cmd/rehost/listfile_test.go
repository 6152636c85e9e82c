package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"rehost/internal/fault"
)

// TestWatch: without anybody looking, the kernel tells of a file that was put in the place
// of another, and of one that was written to its end, of the same size or not; not of one that
// is being written, and not of others.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lists")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(path, []byte("a\n"), 0o600))
	w, err := watchFile(path)
	must(err)
	defer func() { must(w.Close()) }()
	told := func(what string, want bool) {
		t.Helper()
		patience, began := 30*time.Second, time.Now()
		if !want {
			patience = 50 * time.Millisecond
		} else if fault.IsMutant() {
			patience = 3 * time.Second
		}
		select {
		case <-w.changed:
			if !want {
				t.Errorf("%s: told", what)
			}
			t.Logf("%s: told after %v", what, time.Since(began))
		case <-time.After(patience):
			if want {
				t.Errorf("%s: not told", what)
			}
		}
	}
	told("nothing", false)
	must(os.WriteFile(path+".new", []byte("b\n"), 0o600))
	told("another file", false)
	must(os.Rename(path+".new", path))
	told("put in its place", true)
	must(os.WriteFile(path, []byte("c\n"), 0o600))
	told("written", true)
	f, err := os.Create(path)
	must(err)
	_, err = f.WriteString("[pl-")
	must(err)
	told("being written", false)
	must(f.Close())
	told("written to its end", true)
	for range 100 { // one does for those that nobody has taken
		must(os.WriteFile(path, []byte("d\n"), 0o600))
	}
	told("written often", true)

	if _, err := watchFile(filepath.Join(dir, "none", "lists")); err == nil {
		t.Error("a directory that is not there is watched")
	}
}
