package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"rehost/capture"
)

// This file asks how old the newest durable recovery point is, under loads that
// replication keeps up with and under one that it cannot.

const (
	ageWatch  = 20 * time.Second
	tooMuch   = 20 * time.Second // of a load that cannot be kept up with: longer than it takes the agent to say so
	afterward = 20 * time.Second // that points are waited for when it has gone
)

// randomWrites is fio writing blocks of 4 KiB all over a device.
func randomWrites(ctx context.Context, device string, runtime time.Duration, more ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "fio", append([]string{"--name=writes", "--filename=" + device, "--rw=randwrite", "--bs=4k", "--iodepth=16",
		"--ioengine=libaio", "--direct=1", "--time_based", fmt.Sprintf("--runtime=%d", int(runtime.Seconds())), "--norandommap", "--output-format=json"}, more...)...)
}

// watch replicates a disk and tells what became of its points for so long behind the
// first of them, which is when start is called.
func (b *bench) watch(ctx context.Context, name, disk string, d time.Duration, start func() error) (s sent, err error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	p, err := startReceiver(dir)
	if err != nil {
		return s, err
	}
	var started error
	s, err = p.send(ctx, d, func() { started = start() }, disk)
	if err = errors.Join(err, started, p.stop()); err == nil && len(s.Ages) == 0 {
		err = errors.New("no recovery point was seen")
	}
	b.figures["agent_rss_mib"] = max(b.figures["agent_rss_mib"], s.MaxRSSMiB)
	return s, err
}

// aged is watch under one load, whose points' age becomes a figure.
func (b *bench) aged(ctx context.Context, name, disk string, load *exec.Cmd) (s sent, output string, err error) {
	var out, errs bytes.Buffer
	load.Stdout, load.Stderr = &out, &errs
	if s, err = b.watch(ctx, name, disk, ageWatch, load.Start); err != nil {
		return s, "", err
	}
	if err := load.Wait(); err != nil {
		return s, "", fmt.Errorf("%s: %w: %s", filepath.Base(load.Path), err, errs.String())
	}
	b.figures[name+"_p50_ms"] = percentile(s.Ages, 50)
	b.figures[name+"_p99_ms"] = percentile(s.Ages, 99)
	b.figures[name+"_cpu_pct"] = s.CPUSeconds / s.Seconds * 100
	b.notes = append(b.notes, fmt.Sprintf("%s: %s, %d epochs, %d conflicts and %d freezes in %.0f s", name, s.Method, s.Epochs, s.Conflicts, s.Freezes, s.Seconds))
	b.figures["freezes"] += float64(s.Freezes)
	return s, out.String(), nil
}

// pointAge is the age under 20 MB/s of random 4 KiB writes, under a database, and
// what comes of a load that is too much.
func (b *bench) pointAge(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx) // what is left of a load ends with this
	defer cancel()
	disk, err := attach(filepath.Join(b.dir, "age.img"), 1<<30)
	if err != nil {
		return err
	}
	defer disk.Close()
	fmt.Println("recovery point age: 20 MB/s of random 4 KiB writes to a disk of 1 GiB,", ageWatch)
	if _, _, err := b.aged(ctx, "point_age", disk.Path, randomWrites(ctx, disk.Path, ageWatch+2*time.Second, "--rate=20m")); err != nil {
		return err
	}
	fmt.Println("convergence: unthrottled random 4 KiB writes to it for", tooMuch, "beside 20 MB/s, then these alone")
	return errors.Join(b.convergence(ctx, disk.Path), b.databaseAge(ctx))
}

// convergence writes more than can be followed, which the agent must say, and takes
// the time from the end of that to the first durable point of a later moment. A
// load that can be followed goes on all the time.
func (b *bench) convergence(ctx context.Context, disk string) error {
	modest := randomWrites(ctx, disk, tooMuch+afterward+2*time.Second, "--rate=20m")
	heavy := randomWrites(ctx, disk, time.Hour)
	gone := make(chan time.Time, 1)
	s, err := b.watch(ctx, "converge", disk, tooMuch+afterward, func() error {
		if err := errors.Join(modest.Start(), heavy.Start()); err != nil {
			return err
		}
		time.AfterFunc(tooMuch, func() {
			gone <- time.Now() // before it has ended: what it takes to end counts against us
			_ = heavy.Process.Signal(syscall.SIGINT)
		})
		return nil
	})
	if err != nil {
		return err
	}
	end := <-gone
	_ = heavy.Wait() // interrupted is not 0
	if err := modest.Wait(); err != nil {
		return fmt.Errorf("fio: %w", err)
	}
	b.figures["converge_s"] = s.converged(end).Seconds()
	b.notes = append(b.notes, "convergence: "+s.said(end))
	return nil
}

// converged is the time from a moment on until a point of a later one was durable;
// without one, at least as long as points were waited for.
func (s *sent) converged(from time.Time) time.Duration {
	for _, p := range s.Points {
		if p.Of.After(from) {
			return p.Seen.Sub(from)
		}
	}
	return time.Since(from)
}

// said is what the agent said of itself until that moment and after it.
func (s *sent) said(until time.Time) string {
	var before, after []string
	last := s.Points[0].Of
	var lag time.Duration
	for _, p := range s.Points {
		if p.Of.Before(until) {
			lag, last = max(lag, p.Seen.Sub(last)), p.Of
		}
	}
	lag = max(lag, until.Sub(last))
	for _, c := range s.States {
		text := fmt.Sprintf("%s at %+.1f s", c.State, c.At.Sub(until).Seconds())
		if c.At.Before(until) {
			before = append(before, text)
		} else {
			after = append(after, text)
		}
	}
	verdict := "it says that it lags"
	if !s.lagged(until) {
		verdict = "IT NEVER SAID THAT IT LAGS"
	}
	return fmt.Sprintf("%s: up to %.1f s old; %s; then %s", verdict, lag.Seconds(), strings.Join(before, ", "), strings.Join(after, ", "))
}

// lagged says whether a state before that moment said so.
func (s *sent) lagged(until time.Time) bool {
	for _, c := range s.States {
		if c.At.Before(until) && (c.State == capture.Backlog || c.State == capture.NotConverging) {
			return true
		}
	}
	return false
}
