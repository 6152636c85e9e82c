package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"rehost/e2e/sourceserver/records"
	"rehost/internal/testvm"
)

// A source is the server that is to move: a virtual machine that this program
// started, with two disks under load.
type source struct {
	vm    *testvm.VM
	token string
}

// evidence is what a test machine says of its records: at its own boot, and now.
type evidence struct {
	Boot, Now records.Verdict
}

// bootSource builds the source server's disks under dir and starts it on NVMe.
func bootSource(ctx context.Context, dir string, log io.Writer) (*source, error) {
	build := exec.CommandContext(ctx, filepath.Join("e2e", "sourceserver", "build.sh"), dir)
	// Small enough that copying it is no long wait where QEMU translates every instruction.
	build.Env = append(os.Environ(), "DISK0_MIB=352", "FILL0_MIB=32", "DISK1_MIB=128", "FILL1_MIB=48")
	build.Stdout, build.Stderr = log, log
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build the source server's disks: %w", err)
	}
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return nil, err
	}
	vm, err := testvm.Start(testvm.Config{
		Disks: []testvm.Disk{{Path: filepath.Join(dir, "disk0.img"), Bus: "nvme"}, {Path: filepath.Join(dir, "disk1.img"), Bus: "nvme"}},
		UUID:  "5e0f1ce5-0000-4000-8000-000000000001", MemoryMiB: 512, Ports: []int{80}, Dir: dir,
	})
	if err != nil {
		return nil, err
	}
	s := &source{vm, strings.TrimSpace(string(token))}
	if _, err := vm.Get(ctx, 80, "/"); err != nil {
		vm.Kill()
		return nil, fmt.Errorf("boot the source server: %w", err)
	}
	return s, nil
}

// run executes a shell command in the source server, as somebody logged in there would.
func (s *source) run(ctx context.Context, command string) (string, error) {
	return s.vm.Shell(ctx, s.token, command)
}

// recordsAt asks a test machine for the state of its records.
func recordsAt(ctx context.Context, addr string) (e evidence, err error) {
	body, err := testvm.Get(ctx, "http://"+addr+"/records")
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(body, &e)
}

// lost counts the records that the source had made durable before and that the
// copy, as it was when it booted, does not hold.
func lost(before records.Verdict, copied records.Verdict) (uint64, error) {
	if !copied.OK {
		return 0, fmt.Errorf("the copy's records are not consistent: %+v", copied)
	}
	behind := func(was, is records.Report) uint64 {
		if is.Last >= was.Last {
			return is.Gaps
		}
		return was.Last - is.Last + is.Gaps
	}
	return behind(before.A, copied.A) + behind(before.B, copied.B), nil
}
