package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPeers shows that each peer really copies, with certificates asked of both sides.
func TestPeers(t *testing.T) {
	dir := t.TempDir()
	if err := credentialsDir(dir); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "source")
	data := make([]byte, 9<<20)
	rand.Read(data[:5<<20])
	if err := os.WriteFile(source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []copier{nbdcopyToNbdkit(dir), qemuImgToQemuNBD(dir)} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.name); err != nil {
				t.Skipf("%v", err)
			}
			target := filepath.Join(t.TempDir(), "target")
			took, err := c.copy(context.Background(), source, target)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("the copy differs (%v)", err)
			}
			t.Logf("%v", took)
		})
	}
}
