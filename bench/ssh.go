package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"rehost/internal/sshd"
)

// A remote is a machine that peers reach over ssh: this one.
type remote struct{ *sshd.Server }

// startRemote starts one whose files are in a directory that it makes.
func startRemote(ctx context.Context, dir string) (*remote, error) {
	s, err := sshd.Start(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &remote{s}, nil
}

// rsync brings the file at target to what the device at source holds, and syncs it.
func (r *remote) rsync(ctx context.Context, source, target string) (time.Duration, error) {
	start := time.Now()
	if out, err := exec.CommandContext(ctx, "rsync", "--inplace", "--no-whole-file", "--copy-devices", "--ignore-times", "--fsync", "-e", r.Client(), source, "127.0.0.1:"+target).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("rsync: %w: %s", err, out)
	}
	return time.Since(start), nil
}

// bdsync brings the file at target to what the device at source holds, and syncs it. What
// differs is written while the rest is compared.
func (r *remote) bdsync(ctx context.Context, source, target string) (time.Duration, error) {
	start := time.Now()
	compare := exec.CommandContext(ctx, "bdsync", "--blocksize=65536", r.Client()+" 127.0.0.1 bdsync --server", source, target)
	patch := exec.CommandContext(ctx, "sh", "-c", r.Client()+` 127.0.0.1 "bdsync --patch=$0 && sync $0"`, target)
	var compareErr, patchErr bytes.Buffer
	compare.Stderr, patch.Stderr = &compareErr, &patchErr
	pipe, err := compare.StdoutPipe()
	if err != nil {
		return 0, err
	}
	patch.Stdin = pipe
	if err := patch.Start(); err != nil {
		return 0, err
	}
	if err := errors.Join(compare.Run(), patch.Wait()); err != nil {
		return 0, fmt.Errorf("bdsync: %w: %s%s", err, &compareErr, &patchErr)
	}
	return time.Since(start), nil
}
