package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sys/unix"

	"rehost/e2e/site"
)

// idle measures the agent as people run it, rehost-agent beside rehost, while
// nothing is written to its disk: it polls, reports, audits and renews as always.
func (b *bench) idle(ctx context.Context) (err error) {
	const watch = 60 * time.Second
	fmt.Println("idle: rehost-agent with a disk of 1 GiB that nobody writes to, for", watch)
	disk, err := attach(filepath.Join(b.dir, "idle.img"), 1<<30)
	if err != nil {
		return err
	}
	defer disk.Close()
	bpffs := filepath.Join(b.dir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount a BPF file system: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(bpffs, unix.MNT_DETACH)) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin, data, state := filepath.Dir(self), filepath.Join(b.dir, "idle"), filepath.Join(b.dir, "idle-agent")
	service, err := site.Serve(ctx, site.Config{Program: filepath.Join(bin, "rehost"), Data: data, Advertise: "127.0.0.1", Log: io.Discard})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Kill()) }()
	if err := service.SetUp(ctx); err != nil {
		return err
	}
	fingerprint, err := service.Fingerprint()
	if err != nil {
		return err
	}
	id, secret, err := site.ReadCredentials(filepath.Join(data, "installer-credentials"))
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "rehost-agent")
	install := exec.CommandContext(ctx, program, "install", "--state-dir", state, "--bpffs", bpffs, "--endpoint", service.Endpoint, "--region", site.Region,
		"--no-prompt", "--no-service", "--force-volumes", "--devices", disk.Path, "--ca-fingerprint", fingerprint)
	install.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+id, "AWS_SECRET_ACCESS_KEY="+secret)
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("install the agent: %w: %s", err, out)
	}
	agent, err := site.Start(ctx, io.Discard, "agent started", program, "run", "--state-dir", state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Kill()) }()
	for synced := false; !synced; {
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		server, err := service.Server(ctx)
		if err != nil {
			return err
		}
		synced = server.DataReplicationInfo != nil && aws.ToString(server.DataReplicationInfo.LastSnapshotDateTime) != ""
	}
	if err := wait(ctx, 5*time.Second); err != nil { // the pauses between epochs grow to their longest
		return err
	}
	before, err := processSeconds(agent.PID())
	if err != nil {
		return err
	}
	began := time.Now()
	if err := wait(ctx, watch); err != nil {
		return err
	}
	after, err := processSeconds(agent.PID())
	if err != nil {
		return err
	}
	b.figures["idle_cpu_pct"] = (after - before) / time.Since(began).Seconds() * 100
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// processSeconds is the processor time that a process has used, by the kernel's
// clock of 100 ticks a second that proc(5) shows it in.
func processSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ") // the name may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is short: %q", pid, text)
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, errors.Join(err1, err2)
}
