package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"rehost/internal/loop"
)

// attach makes a loop device over a new file of a size.
func attach(path string, size int64) (*loop.Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return loop.Attach(f)
}

// attachDirect makes a loop device over an existing file that goes past the page
// cache, as a disk does: otherwise the one thread that copies out of the cache for
// the loop driver is as slow as everything that is measured behind it.
func attachDirect(path string) (*loop.Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return loop.Attach(f)
}

// dropCaches lets every copy begin with cold pages; what cannot be dropped stays.
func dropCaches() error {
	if err := exec.Command("sync").Run(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// A kind is a disk to copy.
type kind struct {
	name string // half, random
	what string
	make func(ctx context.Context, image string, size int64) error
	used bool // a file system is mounted, as on a server that runs
}

var kinds = []kind{
	{"half", "half of it real files, old data in the free blocks, mounted", makeDisk, true},
	{"random", "full of noise", makeNoise, false},
}

// fullCopy compares a first copy with two peers, for a disk as servers have and for the worst one.
func (b *bench) fullCopy(ctx context.Context) error {
	certs := filepath.Join(b.dir, "certs")
	if err := errors.Join(os.Mkdir(certs, 0o700), credentialsDir(certs)); err != nil {
		return err
	}
	for _, k := range kinds {
		if err := b.copyKind(ctx, k, certs); err != nil {
			return fmt.Errorf("full copy of a disk %s: %w", k.what, err)
		}
	}
	return nil
}

func (b *bench) copyKind(ctx context.Context, k kind, certs string) (err error) {
	const size = 2 << 30
	fmt.Printf("full copy: 2 GiB, %s; mutual TLS, durable at the end\n", k.what)
	image := filepath.Join(b.dir, "source.img")
	if err := k.make(ctx, image, size); err != nil {
		return err
	}
	defer os.Remove(image)
	disk, err := attachDirect(image)
	if err != nil {
		return err
	}
	defer disk.Close()
	if k.used {
		unmount, err := mount(disk.Path, filepath.Join(b.dir, "mounted"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unmount()) }()
	}
	copiers := []copier{{"rehost", b.replicate}, nbdcopyToNbdkit(certs), qemuImgToQemuNBD(certs)}
	rates := map[string][]float64{}
	for range b.rounds {
		for _, c := range copiers {
			target := filepath.Join(b.dir, "target-"+c.name)
			if err := dropCaches(); err != nil {
				return err
			}
			took, err := c.copy(ctx, disk.Path, target)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if err := os.RemoveAll(target); err != nil {
				return err
			}
			rate := size / 1e6 / took.Seconds()
			rates[c.name] = append(rates[c.name], rate)
			fmt.Printf("  %-9s %7.0f MB/s\n", c.name, rate)
		}
	}
	mine, nbdcopy, qemu := median(rates["rehost"]), median(rates["nbdcopy"]), median(rates["qemu-img"])
	b.figures["full_copy_"+k.name+"_mbps"] = mine
	b.figures["full_copy_"+k.name+"_vs_nbdcopy"] = mine / nbdcopy
	b.figures["full_copy_"+k.name+"_vs_qemu_img"] = mine / qemu
	b.figures["full_copy_"+k.name+"_vs_best"] = mine / max(nbdcopy, qemu)
	return nil
}

// replicate is our first copy, to the first point that is durable.
func (b *bench) replicate(ctx context.Context, source, target string) (time.Duration, error) {
	if err := os.Mkdir(target, 0o700); err != nil {
		return 0, err
	}
	p, err := startReceiver(target)
	if err != nil {
		return 0, err
	}
	s, err := p.send(ctx, 0, nil, source)
	b.figures["agent_rss_mib"] = max(b.figures["agent_rss_mib"], s.MaxRSSMiB)
	return time.Duration(s.CopySeconds * float64(time.Second)), errors.Join(err, p.stop())
}

// memory is what an agent takes for a disk of 1 TiB, half a minute into its first copy.
func (b *bench) memory(ctx context.Context) error {
	fmt.Println("memory: 30 s of the first copy of a sparse disk of 1 TiB")
	s, err := b.aside(ctx, "memory", 1<<40, -30*time.Second)
	if err != nil {
		return err
	}
	b.figures["agent_rss_1tib_mib"] = s.MaxRSSMiB
	return nil
}

// aside replicates an empty disk that nothing else is done to.
func (b *bench) aside(ctx context.Context, name string, size int64, watch time.Duration) (s sent, err error) {
	image, dir := filepath.Join(b.dir, name+".img"), filepath.Join(b.dir, name)
	disk, err := attach(image, size)
	if err != nil {
		return s, err
	}
	defer os.Remove(image)
	defer disk.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	p, err := startReceiver(dir)
	if err != nil {
		return s, err
	}
	s, err = p.send(ctx, watch, nil, disk.Path)
	return s, errors.Join(err, p.stop())
}
