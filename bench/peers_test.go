package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
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
			required(t, c.name)
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

// TestPeers_Again shows that those who bring a copy up to date over ssh do that, and
// that their copy is the same then.
func TestPeers_Again(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("sshd needs root")
	}
	required(t, "sshd", "rsync", "borg")
	ctx, dir := t.Context(), t.TempDir()
	remote, err := startRemote(ctx, filepath.Join(dir, "ssh"))
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Stop()
	repository, err := newBorg(ctx, remote, filepath.Join(dir, "borg"))
	if err != nil {
		t.Fatal(err)
	}
	source, copied := filepath.Join(dir, "source"), filepath.Join(dir, "copied")
	for name, w := range map[string]struct {
		run  func(context.Context) (time.Duration, error)
		read func() ([]byte, error)
	}{
		"rsync": {func(ctx context.Context) (time.Duration, error) { return remote.rsync(ctx, source, copied) },
			func() ([]byte, error) { return os.ReadFile(copied) }},
		"borg": {func(ctx context.Context) (time.Duration, error) { return repository.create(ctx, source) },
			func() ([]byte, error) { return repository.run(ctx, "extract", "--stdout", repository.newest()) }},
	} {
		t.Run(name, func(t *testing.T) {
			data := make([]byte, 3<<20)
			rand.Read(data)
			for range 2 {
				rand.Read(data[1<<20:][:64<<10])
				if err := os.WriteFile(source, data, 0o600); err != nil {
					t.Fatal(err)
				}
				took, err := w.run(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := w.read(); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("the copy differs (%v)", err)
				}
				t.Logf("%v", took)
			}
		})
	}
}

func required(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %v; scripts/setup bench installs it", err)
		}
	}
}
