package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// borgChunk is what borg cuts a device into. With 4 MiB, as its manual has it for
// devices, it would send nearly all of a disk that was changed a little everywhere;
// with 64 KiB it keeps account of so many chunks that this takes longer than reading.
const borgChunk = 256 << 10

// A borg is an encrypted repository behind ssh, and a client whose cache and keys are
// in a directory of their own.
type borg struct {
	env        []string
	repository string
	archives   int
}

// newBorg makes the repository in a directory that it makes.
func newBorg(ctx context.Context, remote *remote, dir string) (*borg, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	b := &borg{repository: "ssh://127.0.0.1" + filepath.Join(dir, "repository"),
		env: append(os.Environ(), "BORG_BASE_DIR="+filepath.Join(dir, "client"), "BORG_RSH="+remote.Client(), "BORG_PASSPHRASE=bench")}
	_, err := b.run(ctx, "init", "--encryption", "repokey-blake2", b.repository)
	return b, err
}

func (b *borg) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "borg", args...)
	var errs bytes.Buffer
	cmd.Env, cmd.Stderr = b.env, &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("borg %s: %w: %s", args[0], err, errs.String())
	}
	return out, nil
}

// newest names the archive that was made last.
func (b *borg) newest() string { return b.repository + "::" + strconv.Itoa(b.archives) }

// create makes an archive of the device at source; it is durable then.
func (b *borg) create(ctx context.Context, source string) (time.Duration, error) {
	b.archives++
	start := time.Now()
	_, err := b.run(ctx, "create", "--read-special", "--files-cache", "disabled", "--compression", "none",
		"--chunker-params", "fixed,"+strconv.Itoa(borgChunk), b.newest(), source)
	return time.Since(start), err
}
