package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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

// makeDisk writes an image of size bytes with an ext4 file system that holds about half of it in real files.
func makeDisk(ctx context.Context, image string, size int64) error {
	tree, err := os.MkdirTemp(filepath.Dir(image), "tree")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := fillTree(tree, size/2); err != nil {
		return err
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, image).CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system in %s: %w: %s", image, err, out)
	}
	return nil
}
