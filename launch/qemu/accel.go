package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Accelerators.
const (
	KVM = "kvm" // the processor runs the guest
	TCG = "tcg" // QEMU translates the guest's code: slow, works everywhere
)

// probeTimeout is how long the tiny guest may take. On working KVM it takes a
// fraction of a second.
const probeTimeout = 10 * time.Second

// probeCode is a boot sector that writes 0x2a to port 0xf4, where the probe's
// machine has QEMU's isa-debug-exit: the process ends with status 2*0x2a+1.
//
//	mov al, 0x2a; out 0xf4, al; hlt; jmp $-1
var probeCode = []byte{0xb0, 0x2a, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd}

const probeStatus = 2*0x2a + 1

// probeAccel tells whether guests run with the accelerator, by running one: a
// device file that opens does not mean that the virtual processor gets anywhere.
func probeAccel(ctx context.Context, qemu, accel string) (bool, error) {
	dir, err := os.MkdirTemp("", "rehost-probe-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	sector := make([]byte, 512)
	copy(sector, probeCode)
	sector[510], sector[511] = 0x55, 0xaa
	disk := filepath.Join(dir, "boot")
	if err := os.WriteFile(disk, bytes.Join([][]byte{sector, make([]byte, 1<<20)}, nil), 0o600); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", accel, "-cpu", "max", "-m", "64",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x4",
		"-blockdev", encode(map[string]any{"driver": "raw", "node-name": "boot", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": disk}}),
		"-device", "virtio-blk-pci,drive=boot,bootindex=1")
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return false, ctx.Err() // not an answer
	}
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) || limited.Err() != nil {
		return exit != nil && exit.ExitCode() == probeStatus, nil
	}
	return false, err
}

// accelerator finds the host's accelerator once and remembers it.
func (t *Target) accelerator(ctx context.Context) (string, error) {
	t.accelMu.Lock()
	defer t.accelMu.Unlock()
	if t.accel != "" {
		return t.accel, nil
	}
	accel, err := t.opts.Accel(ctx)
	if err != nil {
		return "", err
	}
	t.log.Info("accelerator chosen", "accel", accel)
	t.accel = accel
	return accel, nil
}

// virtualizes is whether an x86 processor runs guests itself, by the text of /proc/cpuinfo.
// There are KVMs that do it in software (pvm, where a cloud's machine has no nested
// virtualization): the probe's guest passes, but kernels that were not made for it crawl, and stop
// some minutes later with an internal error.
func virtualizes(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			list := strings.Fields(flags)
			return slices.Contains(list, "vmx") || slices.Contains(list, "svm")
		}
	}
	return false
}

// hostAccel is the default of Options.Accel.
func (t *Target) hostAccel(ctx context.Context) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil //nolint:nilerr // there is no KVM, or none for us
	}
	f.Close()
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	if runtime.GOARCH == "amd64" && !virtualizes(string(cpus)) {
		t.log.Warn("/dev/kvm is there, but the processor does not virtualize (no vmx or svm in /proc/cpuinfo): machines will be slow")
		return TCG, nil
	}
	works, err := probeAccel(ctx, t.opts.QEMU, KVM)
	if err != nil {
		return "", err
	}
	if !works {
		t.log.Warn("/dev/kvm is there, but no guest runs with it: machines will be slow")
		return TCG, nil
	}
	return KVM, nil
}
