package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAuditFile: the log keeps its newest lines whole and in order, in files that
// only the owner reads, and no more than is allowed.
func TestAuditFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	const size, lines = 100, 400
	a, err := openAuditFile(path, size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range lines {
		if i == lines/2 { // a restart goes on in the same file
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if a, err = openAuditFile(path, size); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := fmt.Fprintf(a, "line %03d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i := auditKept; i >= 0; i-- {
		name := path
		if i > 0 {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 || len(text) > size {
			t.Errorf("%s has %d bytes and mode %v, %v", name, len(text), info.Mode(), err)
		}
		got.Write(text)
	}
	kept := strings.Count(got.String(), "\n")
	var want strings.Builder
	for i := lines - kept; i < lines; i++ {
		fmt.Fprintf(&want, "line %03d\n", i)
	}
	if got.String() != want.String() || kept < auditKept*size/9-auditKept {
		t.Errorf("%d lines are kept: %s", kept, got.String())
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != auditKept+1 {
		t.Errorf("%d files", len(entries))
	}
}
