package main

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"rehost/block"
)

const (
	rescanSize    = 6 << 30
	rescanChanged = 200e6
)

// A way is one way to bring a copy up to date; it says how long that took.
type way struct {
	name string
	run  func(ctx context.Context) (time.Duration, error)
}

// rescan compares a rescan of a disk of which little has changed with rsync, with
// borg, where it is there with bdsync, and with reading and hashing the disk once.
func (b *bench) rescan(ctx context.Context) (err error) {
	fmt.Println("rescan: 200 MB changed of 6 GiB of noise, in pieces of 4 to 128 KiB; durable at the end")
	image := filepath.Join(b.dir, "rescan.img")
	if err := makeNoise(ctx, image, rescanSize); err != nil {
		return err
	}
	defer os.Remove(image)
	disk, err := attachDirect(image)
	if err != nil {
		return err
	}
	defer disk.Close()
	dir, copies := filepath.Join(b.dir, "rescan"), filepath.Join(b.dir, "rescan-peers")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(copies, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer os.RemoveAll(copies)
	receiver, err := startReceiver(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, receiver.stop()) }()
	remote, err := startRemote(ctx, filepath.Join(copies, "ssh"))
	if err != nil {
		return err
	}
	defer remote.Stop()
	repository, err := newBorg(ctx, remote, filepath.Join(copies, "borg"))
	if err != nil {
		return err
	}
	ways := []way{
		{"rehost", func(ctx context.Context) (time.Duration, error) { // a process that knows nothing, as after a reboot
			s, err := receiver.send(ctx, 0, nil, disk.Path)
			return time.Duration(s.CopySeconds * float64(time.Second)), err
		}},
		{"rsync", func(ctx context.Context) (time.Duration, error) {
			return remote.rsync(ctx, disk.Path, filepath.Join(copies, "rsync"))
		}},
		{"borg", func(ctx context.Context) (time.Duration, error) { return repository.create(ctx, disk.Path) }},
		{"read", func(ctx context.Context) (time.Duration, error) { return readAndHash(ctx, disk.Path) }},
	}
	if _, err := exec.LookPath("bdsync"); err == nil { // no distribution has it
		target := filepath.Join(copies, "bdsync")
		if err := errors.Join(os.WriteFile(target, nil, 0o600), os.Truncate(target, rescanSize)); err != nil { // it makes none
			return err
		}
		ways = append(ways, way{"bdsync", func(ctx context.Context) (time.Duration, error) { return remote.bdsync(ctx, disk.Path, target) }})
	}
	return b.rescanRounds(ctx, disk.Path, ways)
}

func (b *bench) rescanRounds(ctx context.Context, disk string, ways []way) error {
	took := map[string][]float64{}
	for round := range b.rounds + 1 {
		if round == 0 {
			fmt.Println("  (the first copies)")
		} else if err := change(disk, uint64(round)); err != nil {
			return err
		}
		// In another order each time: what was read last, the machine's host may hold in memory.
		for _, i := range mathrand.New(mathrand.NewPCG(uint64(round), 2)).Perm(len(ways)) {
			w := ways[i]
			if err := dropCaches(); err != nil {
				return err
			}
			d, err := w.run(ctx)
			if err != nil {
				return fmt.Errorf("rescan by %s: %w", w.name, err)
			}
			if round > 0 {
				took[w.name] = append(took[w.name], d.Seconds())
				fmt.Printf("  %-9s %7.1f s\n", w.name, d.Seconds())
			}
		}
	}
	mine := median(took["rehost"])
	b.figures["rescan_seconds"] = mine
	b.figures["rescan_vs_rsync"] = median(took["rsync"]) / mine
	b.figures["rescan_vs_borg"] = median(took["borg"]) / mine
	if len(took["bdsync"]) > 0 {
		b.figures["rescan_vs_bdsync"] = median(took["bdsync"]) / mine
	}
	b.figures["rescan_vs_read"] = mine / median(took["read"])
	return nil
}

// change writes noise to the device here and there.
func change(path string, seed uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r := mathrand.New(mathrand.NewPCG(seed, 1))
	for left := int64(rescanChanged); left > 0; {
		n := int64(1+r.IntN(32)) << 12
		if err := writeNoise(f, r.Int64N((rescanSize-n)>>12)<<12, n); err != nil {
			return err
		}
		left -= n
	}
	return f.Sync()
}

// readAndHash reads a device once past the page cache, and hashes it in chunks
// as a rescan does: what it cannot be faster than.
func readAndHash(ctx context.Context, path string) (time.Duration, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	var at atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range max(4, 2*runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			const chunk, align = 1 << 20, 4096
			raw := make([]byte, chunk+align)
			buf := raw[-uintptr(unsafe.Pointer(&raw[0]))&(align-1):][:chunk]
			var hashes []block.Hash
			for ctx.Err() == nil {
				off := at.Add(chunk) - chunk
				if off >= size {
					return nil
				}
				n, err := f.ReadAt(buf[:min(chunk, size-off)], off)
				if err != nil {
					return err
				}
				hashes = block.AppendHashes(hashes[:0], buf[:n], block.ChunkBlocks)
			}
			return ctx.Err()
		})
	}
	err = g.Wait()
	return time.Since(start), err
}
