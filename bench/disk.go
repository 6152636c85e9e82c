package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fillTree links or copies real files of this machine into dir until about want
// bytes are there, so that what is copied looks like a server's disk: programs,
// libraries, documentation.
func fillTree(dir string, want int64) error {
	full := errors.New("enough")
	var total int64
	for _, root := range []string{"/usr/lib", "/usr/bin", "/usr/share"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what cannot be read is not needed
			}
			info, err := d.Info()
			if err != nil || info.Size() > 64<<20 {
				return nil //nolint:nilerr // likewise
			}
			if total += info.Size(); total > want {
				return full
			}
			to := filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // likewise
			}
			return os.WriteFile(to, data, 0o644)
		})
		if errors.Is(err, full) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("this machine has only %d bytes of files to fill a disk with, not %d", total, want)
}

// makeDisk writes an image of size bytes with an ext4 file system that holds about half of it in real files;
// what it has not in use is what was there before, noise.
func makeDisk(ctx context.Context, image string, size int64) error {
	tree, err := os.MkdirTemp(filepath.Dir(image), "tree")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := fillTree(tree, size/2); err != nil {
		return err
	}
	if err := makeNoise(ctx, image, size); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-F", "-d", tree, image).CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system in %s: %w: %s", image, err, out)
	}
	return nil
}

// makeNoise writes an image that nothing compresses.
func makeNoise(_ context.Context, image string, size int64) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	return errors.Join(writeNoise(f, 0, size), f.Close())
}

// writeNoise writes size bytes of noise at an offset: AES-CTR over zeros, under a key of its own.
func writeNoise(f *os.File, off, size int64) error {
	var seed [32]byte
	rand.Read(seed[:])
	c, err := aes.NewCipher(seed[:16])
	if err != nil {
		return err
	}
	stream, chunk := cipher.NewCTR(c, seed[16:]), make([]byte, 1<<20)
	for end := off + size; off < end; {
		b := chunk[:min(int64(len(chunk)), end-off)]
		clear(b)
		stream.XORKeyStream(b, b)
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// mount mounts a device at a directory that it makes.
func mount(device, dir string) (unmount func() error, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", device, err), os.Remove(dir))
	}
	return func() error { return errors.Join(unix.Unmount(dir, 0), os.Remove(dir)) }, nil
}
