package freeze

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine takes from this process all that it does not need, for good: in every
// thread, and in this order, since each step needs what a later one takes.
//
//   - Its memory is locked, so that nothing that it does waits for a disk, and the
//     kernel does not end it for want of memory.
//   - The capabilities but keep and CAP_IPC_LOCK are dropped, from the bounding set too.
//   - It can gain no privileges by starting a program,
//   - and a filter leaves it the system calls of f.
func confine(f filter, keep ...uintptr) error {
	if err := lockMemory(); err != nil {
		return err
	}
	if err := dropCapabilities(append(keep, unix.CAP_IPC_LOCK)); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("give up new privileges: %w", errno)
	}
	return f.install()
}

// sparse is how large a mapping is that is not filled: of the runtime's tables, and
// of memory that a library keeps for rare cases, hardly a page is ever used.
const sparse = 16 << 20

// lockMemory keeps what is in memory there, with all of the program and its heap. What
// comes later stays too, for which CAP_IPC_LOCK has to be kept.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var access string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); n < 3 || access[0] != 'r' || to-from > sparse {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MLOCK, from, to-from, 0) // some, as the kernel's own, cannot be
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) // where it may not, it is as likely as others
	return nil
}

func dropCapabilities(keep []uintptr) error {
	last, err := lastCapability()
	if err != nil {
		return err
	}
	var kept [2]uint32
	for _, c := range keep {
		kept[c/32] |= 1 << (c % 32)
	}
	for c := uintptr(0); c <= last; c++ {
		bounded, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil || bounded == 0 || kept[c/32]&(1<<(c%32)) != 0 {
			continue
		}
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			if errno == unix.ENOTSUP {
				return errors.New("drop capabilities: this program was built with cgo, and cannot: build it with CGO_ENABLED=0")
			}
			return fmt.Errorf("drop capability %d: %w", c, errno)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	for i := range sets {
		sets[i].Effective, sets[i].Permitted = kept[i], kept[i]
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets[0])), 0); errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}

func lastCapability() (uintptr, error) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, fmt.Errorf("drop capabilities: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 6)
	if err != nil {
		return 0, fmt.Errorf("drop capabilities: %w", err)
	}
	return uintptr(n), nil
}

// A filter is a list of the system calls that are left, each on a condition or on
// none. All others fail with EPERM.
type filter []rule

// A rule lets one system call pass.
type rule struct {
	call uint32
	when []test // all of them
}

// A test is about the lower half of an argument: arg & mask == want.
type test struct {
	arg        uint32
	mask, want uint32
}

func calls(list ...uint32) (f filter) {
	for _, c := range list {
		f = append(f, rule{call: c})
	}
	return f
}

// inRuntime is what Go's runtime needs, without new processes and without new code.
func inRuntime() filter {
	return append(calls(
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM, unix.SYS_RESTART_SYSCALL,
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PREAD64, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		unix.SYS_PPOLL, unix.SYS_RECVMSG, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_SENDTO,
	),
		rule{unix.SYS_MMAP, []test{{2, unix.PROT_EXEC, 0}}},
		rule{unix.SYS_MPROTECT, []test{{2, unix.PROT_EXEC, 0}}},
		rule{unix.SYS_CLONE, []test{{0, unix.CLONE_THREAD, unix.CLONE_THREAD}}},
		rule{unix.SYS_TGKILL, []test{{0, ^uint32(0), uint32(os.Getpid())}}},
	)
}

// ioctl lets one request pass, on any descriptor.
func ioctl(request uint32) rule { return rule{unix.SYS_IOCTL, []test{{1, ^uint32(0), request}}} }

// The layout of struct seccomp_data, from linux/seccomp.h.
const (
	dataCall = 0
	dataArch = 4
	dataArgs = 16
)

// program is the filter in the language of the kernel. A call of another
// architecture has other numbers: none of them is let pass.
func (f filter) program() []unix.SockFilter {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	answer := func(what uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what}
	}
	compare := func(with uint32, equal, other int) unix.SockFilter { // and skip so many
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(equal), Jf: uint8(other), K: with}
	}
	deny := answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
	p := []unix.SockFilter{load(dataArch), compare(auditArch, 1, 0), deny, load(dataCall)}
	for _, r := range f {
		var body []unix.SockFilter
		for i, t := range r.when {
			rest := 3*(len(r.when)-i-1) + 1 // the other tests and the answer
			body = append(body, load(dataArgs+8*t.arg), unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: t.mask}, compare(t.want, 0, rest))
		}
		body = append(body, answer(unix.SECCOMP_RET_ALLOW))
		if len(r.when) > 0 {
			body = append(body, load(dataCall))
		}
		p = append(append(p, compare(r.call, 0, len(body))), body...)
	}
	return append(p, deny)
}

// install puts every thread under the filter, those to come too.
func (f filter) install() error {
	p := f.program()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}
