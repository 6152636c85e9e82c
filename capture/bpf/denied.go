package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// A deniedError says who keeps this process from tracking, and what to do.
type deniedError struct {
	err error
	why string
}

func (e *deniedError) Error() string { return e.why }

// Unwrap returns what the kernel said.
func (e *deniedError) Unwrap() error { return e.err }

// explain puts the reason in place of an error of bpf(2) that gives none. memlock is
// why the limit of locked memory could not be raised, if it could not.
func explain(err, memlock error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return &deniedError{err, "this kernel is built without bpf(2) (CONFIG_BPF_SYSCALL)"}
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES):
		if lacksAtomics() {
			return &deniedError{err, "this kernel is too old to track writes: its BPF has no atomic exchange (Linux 5.12); 5.13 is the oldest that tracks"}
		}
		return err
	}
	if lacks := missingCapabilities(); len(lacks) > 0 {
		return &deniedError{err, "this process has not the capabilities " + strings.Join(lacks, " and ") + ": run the agent as root, and not in a container without them"}
	}
	text, _ := os.ReadFile("/sys/kernel/security/lockdown")
	if mode := lockdown(string(text)); mode != "" {
		return &deniedError{err, fmt.Sprintf("the kernel is locked down (%s): with lockdown=integrity on its command line programs may look at requests", mode)}
	}
	if memlock != nil {
		return &deniedError{err, fmt.Sprintf("the limit of locked memory is too low and cannot be raised (%v): LimitMEMLOCK=infinity, or ulimit -l unlimited", memlock)}
	}
	return &deniedError{err, fmt.Sprintf("something forbids bpf(2), seccomp or a security module (SELinux, AppArmor): allow it to the agent (%v)", errnoOf(err))}
}

// lacksAtomics is whether the kernel takes programs, but none with an atomic exchange.
func lacksAtomics() bool {
	takes := func(change asm.Instruction) error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord), change, asm.Mov.Imm(asm.R0, 0), asm.Return(),
		}})
		if err == nil {
			err = p.Close()
		}
		return err
	}
	exchange := asm.Xchg.Mem(asm.RFP, asm.R0, asm.DWord, -8)
	exchange.Constant = 0xe1 // BPF_XCHG, which Mem of cilium/ebpf 0.22 does not encode
	return takes(asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord)) == nil && errors.Is(takes(exchange), unix.EINVAL)
}

func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// missingCapabilities are those needed and not there; CAP_SYS_ADMIN stands for all.
func missingCapabilities() (out []string) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return nil
	}
	has := func(c int) bool { return sets[c/32].Effective>>(c%32)&1 != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		return nil
	}
	if !has(unix.CAP_BPF) {
		out = append(out, "CAP_BPF")
	}
	if !has(unix.CAP_PERFMON) {
		out = append(out, "CAP_PERFMON")
	}
	return out
}

// lockdown is the mode that is in force, in the text of the file of that name: "none
// [integrity] confidentiality". "" is none that keeps programs from the kernel's memory.
func lockdown(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	if mode, _, ok := strings.Cut(rest, "]"); ok && mode != "none" && mode != "integrity" {
		return mode
	}
	return ""
}
