package testvm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// packages of Debian that have the programs tests ask for.
var packages = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils",
	"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "busybox": "busybox-static", ovmfCode: "ovmf",
	"debootstrap": "debootstrap", "unshare": "util-linux", "sfdisk": "fdisk", "mke2fs": "e2fsprogs", "mformat": "mtools", "grub-mkimage": "grub-common", "cpio": "cpio", "depmod": "kmod",
	"/usr/lib/grub/i386-pc/boot.img": "grub-pc-bin", "/usr/lib/grub/x86_64-efi": "grub-efi-amd64-bin",
}

// Require skips the test, saying what to install, if one of the programs (or
// files, given by an absolute path) is missing.
func Require(tb testing.TB, programs ...string) {
	tb.Helper()
	var missing, install []string
	for _, p := range programs {
		if !present(p) {
			missing, install = append(missing, p), append(install, packages[p])
		}
	}
	if len(missing) > 0 {
		slices.Sort(install)
		tb.Skipf("SKIPPED: %s missing; apt-get install --no-install-recommends %s",
			strings.Join(missing, ", "), strings.Join(slices.Compact(install), " "))
	}
}

func present(program string) bool {
	if filepath.IsAbs(program) {
		_, err := os.Stat(program)
		return err == nil
	}
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	_, err := os.Stat(filepath.Join("/usr/sbin", program))
	return err == nil
}

// Run starts a machine for a test and kills it when the test ends. It skips the
// test where QEMU is missing.
func Run(tb testing.TB, cfg Config) *VM {
	tb.Helper()
	Require(tb, "qemu-system-x86_64")
	if cfg.UEFI {
		Require(tb, ovmfCode)
	}
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	v, err := Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(v.Kill)
	return v
}

// A SourceImage is the built test source server. Its files are shared by all
// tests: attach them with Snapshot, or copy them.
type SourceImage struct {
	Disk0, Disk1 string // raw
	Token        string // for its /run endpoint
}

// Source builds the image of e2e/sourceserver, or returns the one that was
// built from the same files earlier. It skips the test where programs are missing.
func Source(tb testing.TB) SourceImage {
	tb.Helper()
	return SourceOf(tb, "")
}

// SourceOf is Source with the kernel of a suite of Debian, as trixie-backports; ""
// is the machine's own suite. It skips the test where the machine's package archive
// does not have it.
func SourceOf(tb testing.TB, suite string) SourceImage {
	tb.Helper()
	return source(tb, suite, "", "")
}

// SourceDebian is Source with a Debian and its systemd instead of a busybox. Who runs
// the test must be root.
func SourceDebian(tb testing.TB) SourceImage {
	tb.Helper()
	Require(tb, "debootstrap")
	return source(tb, "", "debian", "")
}

// SourceSELinux is SourceDebian with an SELinux that enforces Debian's policy. Commands
// run there as those of root who has logged in.
func SourceSELinux(tb testing.TB) SourceImage {
	tb.Helper()
	Require(tb, "debootstrap", "unshare")
	return source(tb, "", "debian", "enforcing")
}

func source(tb testing.TB, suite, userLand, selinux string) SourceImage {
	tb.Helper()
	Require(tb, "qemu-system-x86_64", "busybox", "sfdisk", "mke2fs", "mformat", "grub-mkimage", "cpio", "depmod",
		"/usr/lib/grub/i386-pc/boot.img", "/usr/lib/grub/x86_64-efi")
	_, file, _, _ := runtime.Caller(0)
	module := filepath.Join(filepath.Dir(file), "..", "..")
	key, err := hashTree(filepath.Join(module, "e2e", "sourceserver"))
	if err != nil {
		tb.Fatal(err)
	}
	dir := filepath.Join(module, "build", strings.Join(slices.DeleteFunc([]string{"source", key, suite, userLand, selinux}, func(s string) bool { return s == "" }), "-"))
	if err := buildOnce(tb.Context(), filepath.Join(module, "e2e", "sourceserver", "build.sh"), dir, "KERNEL_SUITE="+suite, "USERLAND="+userLand, "SELINUX="+selinux); err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 4 {
			tb.Skipf("SKIPPED: no kernel of %s: %v", suite, err)
		}
		tb.Fatalf("build source image: %v", err)
	}
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		tb.Fatal(err)
	}
	return SourceImage{filepath.Join(dir, "disk0.img"), filepath.Join(dir, "disk1.img"), strings.TrimSpace(string(token))}
}

// buildOnce runs the script for dir unless it is there; the tests of several
// packages may come here at the same time.
func buildOnce(ctx context.Context, script, dir string, env ...string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	half := dir + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, script, half)
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.Rename(half, dir)
}

func hashTree(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintf(h, "%s\n", path)
		_, err = io.Copy(h, f)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), err
}
