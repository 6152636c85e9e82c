package capture

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"rehost/internal/fault"
)

// TestStacked lets the kernel's device mapper and md join real disks: the one who
// chooses disks is told of the others, as by LVM and RAID, and of paths.
func TestStacked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root joins disks")
	}
	for _, module := range []string{"dm-mod", "raid1"} {
		_ = exec.Command("modprobe", module).Run() // it may be built in
	}
	do := func(program string, args ...string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", program, args, err, out)
		}
	}
	const size, sectors = 8 << 20, 8 << 20 / 512
	a, b := fault.Loop(t, size).Path, fault.Loop(t, size).Path
	first := func() Device {
		t.Helper()
		found, err := System{}.Resolve([]string{a})
		if err != nil || len(found) != 1 {
			t.Fatalf("%+v: %v", found, err)
		}
		return found[0]
	}
	if d := first(); len(d.With) != 0 || d.Unfit != "" {
		t.Errorf("alone: with %v, unfit: %q", d.With, d.Unfit)
	}
	name := fmt.Sprintf("rehost-test-%d", os.Getpid())
	t.Run("a logical volume", func(t *testing.T) {
		if _, err := os.Stat("/sys/class/misc/device-mapper"); err != nil {
			t.Skip("SKIPPED: this kernel has no device mapper")
		}
		do("dmsetup", "create", name, "--uuid", "LVM-"+name, "--table", fmt.Sprintf("0 %[1]d linear %[2]s 0\n%[1]d %[1]d linear %[3]s 0", sectors, a, b))
		defer do("dmsetup", "remove", "--retry", name)
		if d := first(); !slices.Equal(d.With, []string{b}) || d.Unfit != "" {
			t.Errorf("with %v, want %s; unfit: %q", d.With, b, d.Unfit)
		}
	})
	t.Run("a path", func(t *testing.T) {
		if _, err := os.Stat("/sys/class/misc/device-mapper"); err != nil {
			t.Skip("SKIPPED: this kernel has no device mapper")
		}
		do("dmsetup", "create", name, "--uuid", "mpath-"+name, "--table", fmt.Sprintf("0 %d linear %s 0", sectors, a))
		defer do("dmsetup", "remove", "--retry", name)
		if d := first(); !strings.Contains(d.Unfit, name) || !strings.Contains(d.Unfit, "multipath -f") {
			t.Errorf("unfit: %q, want it to name %s and what to do", d.Unfit, name)
		}
	})
	t.Run("a mirror", func(t *testing.T) {
		if _, err := os.Stat("/proc/mdstat"); err != nil {
			t.Skip("SKIPPED: this kernel has no md")
		}
		const array = "/dev/md/rehost-test"
		do("mdadm", "--build", array, "--run", "--assume-clean", "--level=1", "--raid-devices=2", a, b)
		defer do("mdadm", "--stop", array)
		if d := first(); !slices.Equal(d.With, []string{b}) || d.Unfit != "" {
			t.Errorf("with %v, want %s; unfit: %q", d.With, b, d.Unfit)
		}
	})
}
