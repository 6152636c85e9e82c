package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rehost/capture"
	"rehost/capture/freeze"
	"rehost/e2e/road"
)

// This file is the two ends of the road as processes of their own, so that what
// they use can be told apart: `bench endpoint receive DIR` and
// `bench endpoint send DIR ADDRESS SECONDS DISK...`. They are made of the
// project's own packages with nothing left out: eBPF, mutual TLS, encryption at
// rest, acknowledgements of what is durable.

func endpoint(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 2 && args[0] == "receive":
		return receiver(args[1])
	case len(args) > 4 && args[0] == "send":
		d, err := time.ParseDuration(args[3])
		if err != nil {
			return err
		}
		return sender(ctx, args[1], args[2], d, args[4:])
	}
	return errors.New("usage: bench endpoint receive DIR | send DIR ADDRESS DURATION DISKS")
}

// receiver serves until its standard input ends. It prints its address.
func receiver(dir string) error {
	r, err := road.Receive(dir, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	fmt.Println(r.Address)
	_, _ = os.Stdin.Read(make([]byte, 1)) // ends with the parent
	return r.Close()
}

// A sent is what the sender has to tell.
type sent struct {
	CopySeconds float64 // from the start to the first durable, consistent point
	Method      string
	Ages        []float64 // ms, of the newest durable point, once a millisecond
	Points      []seen    // from the first one on
	States      []turn    // likewise
	Epochs      uint64
	Conflicts   uint64
	Freezes     uint64
	MaxRSSMiB   float64
	CPUSeconds  float64 // of the time after the first point
	Seconds     float64 // that time
}

// A seen is a durable point, and when it was first seen.
type seen struct{ Of, Seen time.Time }

// A turn is a state that replication was first seen in at a moment.
type turn struct {
	State capture.State
	At    time.Time
}

// sender replicates the disks to the receiver, watches the age of the newest
// point for so long behind the first copy, or, if that is negative, so long from
// the start, and prints a sent as JSON.
func sender(ctx context.Context, dir, address string, watch time.Duration, paths []string) error {
	disks, err := road.Disks(paths...)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	freezer := []string{filepath.Join(filepath.Dir(self), "rehost-agent"), "freezer", "--fd", strconv.Itoa(freeze.ChildFD)}
	engine, err := capture.Open(ctx, capture.Options{Disks: disks, Freezer: &freeze.Client{Program: freezer}})
	if err != nil {
		return err
	}
	defer engine.Close()
	start := time.Now()
	session, err := road.Dial(ctx, dir, address, disks)
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx, session, session.Last().Seq) }()
	s, err := observe(engine, start, watch, ended)
	if err != nil {
		return err
	}
	cancel()
	<-ended //nolint:errcheck // it was told to
	return json.NewEncoder(os.Stdout).Encode(s)
}

func observe(engine *capture.Engine, start time.Time, watch time.Duration, ended <-chan error) (s sent, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var cpu float64
	var first time.Time
	for range tick.C {
		select {
		case err := <-ended:
			return s, fmt.Errorf("replication ended: %w", err)
		default:
		}
		st := engine.Status()
		switch {
		case watch < 0 && time.Since(start) > -watch:
			s.MaxRSSMiB = maxRSS()
			return s, nil
		case st.Point.Seq.IsZero():
			continue
		case first.IsZero():
			first, s.CopySeconds, s.Method, cpu = time.Now(), time.Since(start).Seconds(), string(st.Method), cpuSeconds()
			fmt.Fprintln(os.Stderr, "ready")
		case watch >= 0 && time.Since(first) >= watch:
			s.Epochs, s.Conflicts, s.Freezes, s.Seconds, s.CPUSeconds = st.Epochs, st.Conflicts, st.Freezes, time.Since(first).Seconds(), cpuSeconds()-cpu
			s.MaxRSSMiB = maxRSS()
			return s, nil
		case time.Since(first) > time.Second: // the load needs a moment to begin
			s.Ages = append(s.Ages, float64(st.Lag.Microseconds())/1000)
		}
		s.note(st, time.Now())
	}
	return s, nil
}

// note remembers what is new in a status.
func (s *sent) note(st capture.Status, now time.Time) {
	if n := len(s.Points); n == 0 || st.Point.Time.After(s.Points[n-1].Of) {
		s.Points = append(s.Points, seen{st.Point.Time, now})
	}
	if n := len(s.States); n == 0 || st.State != s.States[n-1].State {
		s.States = append(s.States, turn{st.State, now})
	}
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func maxRSS() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Maxrss) / 1024
}

// A pair is a running receiver and the directory that both ends share.
type pair struct {
	dir, address string
	cmd          *exec.Cmd
	stdin        interface{ Close() error }
}

func startReceiver(dir string) (*pair, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &pair{dir: dir, cmd: exec.Command(self, "endpoint", "receive", dir)}
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the receiver did not start: %w", err), p.stop())
	}
	p.address = strings.TrimSpace(line)
	return p, nil
}

func (p *pair) stop() error { return errors.Join(p.stdin.Close(), p.cmd.Wait()) }

// send runs the sender; ready, if not nil, is called when the first copy is durable.
func (p *pair) send(ctx context.Context, watch time.Duration, ready func(), disks ...string) (s sent, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"endpoint", "send", p.dir, p.address, watch.String()}, disks...)...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		return s, err
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return s, err
	}
	lines := bufio.NewScanner(errs)
	for lines.Scan() {
		if lines.Text() == "ready" && ready != nil {
			ready()
			continue
		}
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return s, fmt.Errorf("sender: %w", err)
	}
	return s, json.Unmarshal([]byte(out.String()), &s)
}
