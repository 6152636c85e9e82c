package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rehost/capture/bpf"
	"rehost/internal/loop"
)

// overheadGroups is how many groups are measured a round.
const overheadGroups = 30

// overheadSize is that of what is written to, in bytes.
const overheadSize = 1 << 30

// overhead compares fio's IOPS with the tracker attached and without: on the disk that this
// machine's files are on, as on a source server, and on a loop device, past the page cache and
// in it. There a write past the cache is two requests for which the programs run, and in it
// nothing but the processor is the limit, so that these are the worst cases.
func (b *bench) overhead(ctx context.Context) error {
	image := filepath.Join(b.dir, "overhead.img")
	defer os.Remove(image)
	if err := makeNoise(ctx, image, overheadSize); err != nil { // nothing is allocated while it is measured
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return err
	}
	err := b.compareIOPS(ctx, "write_overhead", "in a file, its disk tracked", image, st.Dev)
	if errors.Is(err, errNoRequests) { // LVM, or a file system over several disks
		fmt.Printf("write overhead in a file: left out, %s is on no disk that can be tracked (%v); --dir takes another\n", b.dir, err)
		err = nil
	}
	if err != nil {
		return err
	}
	for _, way := range []struct {
		name, where string
		attach      func() (*loop.Device, error)
	}{
		{"write_overhead_loop", "on a loop device", func() (*loop.Device, error) { return attachDirect(image) }},
		{"write_overhead_memory", "on a loop device, in the page cache", func() (*loop.Device, error) { return attach(image, overheadSize) }},
	} {
		device, err := way.attach()
		if err != nil {
			return err
		}
		err = unix.Stat(device.Path, &st)
		if err == nil {
			err = b.compareIOPS(ctx, way.name, way.where, device.Path, st.Rdev)
		}
		if err := errors.Join(err, device.Close()); err != nil {
			return err
		}
	}
	return nil
}

// errNoRequests is of what has no disk of its own, or one that others stand for.
var errNoRequests = errors.New("there are no requests of it that programs could see")

// diskOf is the whole disk that a number is of, or of a part of which it is, as the kernel side
// of tracking knows it. The error may be errNoRequests.
func diskOf(number uint64) (d bpf.Disk, err error) {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if err != nil {
		return d, fmt.Errorf("find a disk: %w: %w", errNoRequests, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	for name, into := range map[string][]any{"dev": {&d.Major, &d.Minor}, "size": {&d.Granules}} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return d, fmt.Errorf("find a disk: %w", err)
		}
		if _, err := fmt.Sscan(strings.ReplaceAll(string(text), ":", " "), into...); err != nil {
			return d, fmt.Errorf("find a disk: %s/%s is %q: %w", dir, name, text, err)
		}
	}
	d.Granules = (d.Granules + 7) / 8 // of 4 KiB
	if d.Queues, d.Tags, err = bpf.Queues(dir); err == nil && d.Queues == 0 {
		err = fmt.Errorf("find a disk: %s: %w", filepath.Base(dir), errNoRequests)
	}
	return d, err
}

// compareIOPS measures writes to a path with and without the tracker on a disk, while fio goes
// on. What these machines do in a second differs by more than what is looked for, from one second
// to the next; so the parts of a group are short, its order is without, with, with, without, in
// which what drifts steadily cancels out, and there are many groups.
func (b *bench) compareIOPS(ctx context.Context, name, where, path string, number uint64) (err error) {
	disk, err := diskOf(number)
	if err != nil {
		return err
	}
	fmt.Printf("write overhead: fio randwrite 4 KiB, queue depth 16, %s, %d groups of without, with, with, without\n", where, overheadGroups*b.rounds)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	fio := randomWrites(ctx, path, time.Hour, "--thread") // as one process, which is ended as one
	var errs bytes.Buffer
	fio.Stderr = &errs
	if err := fio.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- fio.Wait() }()
	defer func() {
		select {
		case e := <-ended:
			err = errors.Join(err, fmt.Errorf("fio ended: %w: %s", e, &errs))
		default:
			stop()
			<-ended //nolint:errcheck // it was told to
		}
	}()
	if err := wait(ctx, 5*time.Second); err != nil { // until it runs evenly
		return err
	}
	var loss, rate []float64
	for range overheadGroups * b.rounds {
		var n [2]float64
		for _, with := range []int{0, 1, 1, 0} {
			more, err := writesOf(ctx, disk, with == 1)
			if err != nil {
				return err
			}
			n[with] += more / 2
		}
		loss, rate = append(loss, (1-n[1]/n[0])*100), append(rate, n[0])
	}
	b.figures[name+"_pct"] = median(loss)
	b.figures[name+"_p25_pct"] = percentile(loss, 25)
	b.figures[name+"_p75_pct"] = percentile(loss, 75)
	b.figures[name+"_iops"] = median(rate)
	fmt.Printf("  %.0f IOPS without, loss %.2f %% (quartiles %.2f and %.2f)\n", median(rate), median(loss), percentile(loss, 25), percentile(loss, 75))
	return nil
}

// writesOf is how many writes a second a disk completes, with the programs attached for it or
// without. Nothing is read: it is their cost, without that of sharing the disk.
func writesOf(ctx context.Context, disk bpf.Disk, tracked bool) (_ float64, err error) {
	const settle, part = 100 * time.Millisecond, 300 * time.Millisecond
	tracker, err := bpf.Load([]bpf.Disk{disk}, 3)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, tracker.Close()) }()
	if !tracked { // loaded all the same: the verifier's work is before every part
		if err := tracker.Close(); err != nil {
			return 0, err
		}
	}
	if err := wait(ctx, settle); err != nil {
		return 0, err
	}
	start := time.Now()
	before, err := completed(disk)
	if err != nil {
		return 0, err
	}
	if err := wait(ctx, part); err != nil {
		return 0, err
	}
	after, err := completed(disk)
	took := time.Since(start)
	if err == nil && tracked {
		if saw := tracker.Counters(0).Completed; saw < (after-before)*9/10 { // another disk's, then
			err = fmt.Errorf("the programs saw %d of %d writes", saw, after-before)
		}
	}
	return float64(after-before) / took.Seconds(), err
}

// completed is how many writes to a disk the kernel has counted.
func completed(d bpf.Disk) (n uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", d.Major, d.Minor))
	if err == nil {
		var skip uint64
		_, err = fmt.Sscan(string(text), &skip, &skip, &skip, &skip, &n)
	}
	return n, err
}
