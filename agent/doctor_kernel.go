package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rehost/capture/bpf"
)

// kernel asks it for what tracking needs, each by itself, so that what is
// missing has a name.
func (d *doctor) kernel() {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		d.fails("kernel", err, "")
		return
	}
	release := unix.ByteSliceToString(uts.Release[:])
	denied := bpf.Supported()
	d.lockdown(denied)
	if _, err := os.Stat(filepath.Join("/", d.Machine.Root, "sys/kernel/btf/vmlinux")); err != nil {
		d.note(Fails, "BTF", "a kernel built with CONFIG_DEBUG_INFO_BTF is needed, as those of all distributions of the last years are", "kernel %s does not describe its types (/sys/kernel/btf/vmlinux)", release)
	} else {
		d.ok("BTF", "kernel %s describes its types", release)
	}
	d.memlock(release)
	if denied != nil {
		hint := "the disks would be read and compared again and again instead, and there would be no continuous points"
		if errors.Is(denied, unix.EPERM) {
			hint = "run it as root; in a container with CAP_BPF and CAP_PERFMON; see lockdown above"
		}
		d.fails("eBPF", denied, hint)
	} else {
		d.ok("eBPF", "the tracking programs load and attach")
	}
	d.bpffs()
}

// lockdown(7) in its stricter mode denies programs to read kernel memory by helpers. Those
// that track do without where the kernel lets them, and denied says whether it does.
func (d *doctor) lockdown(denied error) {
	modes := d.Machine.read("sys/kernel/security/lockdown")
	switch confidential := strings.Contains(modes, "[confidentiality]"); {
	case confidential && denied != nil:
		d.note(Fails, "lockdown", "boot with lockdown=integrity or none: the stricter mode denies tracing", "the kernel is locked down for confidentiality")
	case confidential:
		d.ok("lockdown", "confidentiality, which denies the tracking programs nothing that they need")
	case strings.Contains(modes, "[integrity]"):
		d.ok("lockdown", "integrity, which allows tracing")
	default:
		d.ok("lockdown", "none")
	}
}

// memlock: before 5.11 maps counted against RLIMIT_MEMLOCK, which root may raise.
func (d *doctor) memlock(release string) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		d.fails("memlock", err, "")
		return
	}
	const enough = 64 << 20
	switch {
	case !kernelBefore(release, 5, 11):
		d.ok("memlock", "memory of eBPF counts for its control group")
	case limit.Cur >= enough || os.Geteuid() == 0:
		d.ok("memlock", "the limit can be raised")
	default:
		d.note(Fails, "memlock", "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit", "at most %s may be locked, on a kernel that counts eBPF for it", humanBytes(int64(limit.Cur)))
	}
}

// kernelBefore is whether a release such as 5.10.0-28-amd64 is older.
func kernelBefore(release string, major, minor int) bool {
	number := func(s string) (n int, rest string) {
		for len(s) > 0 && s[0] >= '0' && s[0] <= '9' {
			n, s = 10*n+int(s[0]-'0'), s[1:]
		}
		return n, strings.TrimPrefix(s, ".")
	}
	a, rest := number(release)
	b, _ := number(rest)
	return a < major || a == major && b < minor
}

// bpffs is where tracking outlives the agent.
func (d *doctor) bpffs() {
	path := d.BPFFS
	if path == "" {
		path = defaultBPFFS
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		d.note(Warning, "bpffs", "mount -t bpf bpf "+path+" (systemd does at boot): without it the disks are compared anew whenever the agent was restarted", "no BPF file system is mounted on %s", path)
		return
	}
	d.ok("bpffs", "mounted on %s", path)
}
