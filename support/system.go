package support

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// System are the parts that tell of the machine: its kernel, disks, mounts and load.
func System() []Part {
	parts := []Part{Text("system/kernel.txt", kernel), Text("system/disks.txt", disks)}
	for _, f := range []string{"cmdline", "version", "self/mountinfo", "swaps", "partitions", "diskstats", "meminfo", "loadavg", "uptime",
		"pressure/cpu", "pressure/io", "pressure/memory", "mdstat"} {
		parts = append(parts, File("system/"+strings.ReplaceAll(f, "/", "-"), "/proc/"+f, 0))
	}
	return append(parts, File("system/os-release", "/usr/lib/os-release", 0))
}

// Journal is the last that systemd's journal has of a unit.
func Journal(unit string) Part {
	return Command("journal.txt", 0, "journalctl", "--no-pager", "--quiet", "--output=short-iso", "--lines=8000", "--unit="+unit)
}

// kernel is what the kernel says that it can do, as far as tracking needs it.
func kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s, %d CPUs, %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), runtime.NumCPU(), runtime.Version())
	for _, path := range []string{"/sys/kernel/btf/vmlinux", "/sys/fs/bpf", "/sys/kernel/security/lsm", "/proc/sys/kernel/unprivileged_bpf_disabled",
		"/proc/sys/kernel/bpf_stats_enabled", "/proc/sys/kernel/perf_event_paranoid", "/proc/sys/net/core/bpf_jit_enable", "/sys/kernel/security/lockdown",
		"/sys/fs/selinux/enforce", "/run/systemd/system", "/run/ostree-booted"} {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			fmt.Fprintf(&b, "%s: %v\n", path, err)
		case info.IsDir() || info.Size() > 1<<20: // BTF is some megabytes
			fmt.Fprintf(&b, "%s: there, %v\n", path, info.Mode())
		default:
			text, err := os.ReadFile(path)
			if err != nil {
				text = []byte(err.Error())
			}
			fmt.Fprintf(&b, "%s: %s\n", path, strings.TrimSpace(string(text)))
		}
	}
	return b.String(), nil
}

// disks is what each block device is and lies on.
func disks() (string, error) {
	devices, err := filepath.Glob("/sys/class/block/*")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, d := range devices {
		fmt.Fprintf(&b, "%s", filepath.Base(d))
		for _, name := range []string{"size", "ro", "removable", "queue/rotational", "queue/scheduler", "queue/logical_block_size", "queue/physical_block_size", "dm/name", "dm/uuid", "loop/backing_file", "device/model"} {
			if text, err := os.ReadFile(filepath.Join(d, name)); err == nil {
				fmt.Fprintf(&b, " %s=%q", name, strings.TrimSpace(string(text)))
			}
		}
		if on, err := filepath.Glob(filepath.Join(d, "slaves", "*")); err == nil {
			for _, s := range on {
				fmt.Fprintf(&b, " on=%s", filepath.Base(s))
			}
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// Process is what the kernel says of a process, and of the eBPF programs and maps that it has
// open: how often programs have run (where bpf_stats_enabled is set) and how large maps are.
func Process(pid int) []Part {
	dir, to := fmt.Sprintf("/proc/%d", pid), fmt.Sprintf("process-%d/", pid)
	var parts []Part
	for _, f := range []string{"cmdline", "status", "limits", "io", "cgroup"} {
		parts = append(parts, File(to+f, dir+"/"+f, 0))
	}
	return append(parts, Part{Name: to + "bpf.txt", Read: func(context.Context) ([]byte, error) { return descriptors(dir) }})
}

// descriptors are those of a process that are eBPF's.
func descriptors(dir string) ([]byte, error) {
	entries, err := os.ReadDir(dir + "/fdinfo")
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, "fdinfo", e.Name()))
		if err != nil || !strings.Contains(string(text), "prog_id:") && !strings.Contains(string(text), "map_id:") {
			continue // closed meanwhile, or something else
		}
		fmt.Fprintf(&b, "descriptor %s\n%s\n", e.Name(), text)
	}
	return []byte(b.String()), nil
}
