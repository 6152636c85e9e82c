package privilege

import (
	"fmt"
	"slices"
	"strings"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Confine shuts this process in for good: it writes in no directory but those given,
// runs no program, starts no process, and calls only what a program that reads disks
// and talks over the network needs. It needs no privilege. What the kernel has not is
// left out; shut says what there is.
func Confine(writable ...string) (shut []string, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("confine: %w", err)
	}
	if version, err := ll.LandlockGetABIVersion(); err == nil && version > 0 {
		if err := shutFiles(writable); err != nil {
			return nil, fmt.Errorf("confine files: %w", err)
		}
		shut = append(shut, "Landlock")
	}
	if seccomp.Supported() {
		if err := shutCalls(); err != nil {
			return nil, fmt.Errorf("confine calls: %w", err)
		}
		shut = append(shut, "seccomp")
	}
	return shut, nil
}

// shutFiles lets the process read what its user may, and write only where it is told.
func shutFiles(writable []string) error {
	const (
		look  = ll.AccessFSReadFile | ll.AccessFSReadDir | ll.AccessFSIoctlDev
		write = ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
	)
	rules := []landlock.Rule{landlock.PathAccess(look, "/"), landlock.PathAccess(ll.AccessFSWriteFile, "/dev/null").IgnoreIfMissing()}
	for _, dir := range writable {
		rules = append(rules, landlock.PathAccess(look|write, dir).IgnoreIfMissing())
	}
	return landlock.V5.BestEffort().RestrictPaths(rules...)
}

// calls are those of Go's run time, of files, the network and BPF, from Linux 5.5 to
// 7.0. There is none that mounts, changes users, runs a program, looks into other
// processes or signals them; nor io_uring, whose work passes by a filter.
const calls = `
	read pread64 readv preadv write pwrite64 writev close close_range lseek openat openat2 fcntl ioctl flock dup dup3 pipe2
	fstat newfstatat statx statfs fstatfs getdents64 readlinkat faccessat faccessat2 fadvise64 copy_file_range sendfile splice
	mkdirat unlinkat renameat renameat2 ftruncate fallocate fchmod fchmodat fsync fdatasync syncfs umask getcwd
	mmap munmap mremap mprotect madvise mincore mlock munlock msync brk membarrier
	futex sched_yield sched_getaffinity set_robust_list get_robust_list rseq set_tid_address gettid getpid getppid tgkill
	rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack restart_syscall exit exit_group
	nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday timer_create timer_settime timer_delete setitimer
	epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 ppoll pselect6 eventfd2 timerfd_create timerfd_settime inotify_init1 inotify_add_watch inotify_rm_watch
	socket socketpair connect bind listen accept4 getsockname getpeername getsockopt setsockopt shutdown sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
	getuid geteuid getgid getegid getgroups getresuid getresgid capget prctl getrlimit setrlimit prlimit64 getrusage setpriority getpriority ioprio_set ioprio_get
	uname sysinfo times getrandom memfd_create
	bpf`

// oldCalls are there on some architectures only.
const oldCalls = `open stat lstat access readlink mkdir rmdir unlink rename pipe epoll_create epoll_wait poll select getdents arch_prctl time`

func shutCalls() error {
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	known := func(name string) bool { _, ok := info.SyscallNames[name]; return ok }
	allowed := slices.DeleteFunc(strings.Fields(calls+" "+oldCalls), func(name string) bool { return !known(name) })
	// A thread is a clone, and so is a process, which is none of ours. clone3 keeps what
	// it makes out of a filter's sight: it is said to be missing, so that clone is used.
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: allowed, NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD}}},
			}},
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
		},
	}})
}
