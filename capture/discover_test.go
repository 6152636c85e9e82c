package capture

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rehost/block"
	"rehost/internal/fault"
)

// tree writes files, links ("-> target") and directories ("/") under a root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else if text == "/" {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(text+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// server is a machine whose root lies on LVM, on the second disk's second partition.
func server(t *testing.T) System {
	return System{Procfs: "testdata-none", Dev: "/nonexistent", Sysfs: tree(t, map[string]string{
		"firmware/efi/systab": "x",

		"devices/sda/dev": "8:0", "devices/sda/size": "2097152", "devices/sda/ro": "0",
		"devices/sda/device/wwid": "naa.5000c500a1b2c3d4", "devices/sda/slaves": "/",
		"devices/sda/queue/logical_block_size": "4096",
		"devices/sdb/dev":                      "8:16", "devices/sdb/size": "4194304", "devices/sdb/ro": "0", "devices/sdb/slaves": "/",
		"devices/sdb/sdb1/partition": "1", "devices/sdb/sdb1/dev": "8:17", "devices/sdb/sdb1/start": "2048", "devices/sdb/sdb1/size": "8192",
		"devices/sdb/sdb2/partition": "2", "devices/sdb/sdb2/dev": "8:18", "devices/sdb/sdb2/start": "10240", "devices/sdb/sdb2/size": "4000000",
		"devices/dm-0/dev": "253:0", "devices/dm-0/size": "4000000", "devices/dm-0/slaves/sdb2": "-> ../../sdb/sdb2",
		"devices/zram0/dev": "252:0", "devices/zram0/size": "4096",
		"devices/loop0/dev": "7:0", "devices/loop0/size": "4096",
		"devices/sr0/dev": "11:0", "devices/sr0/size": "4096",
		"devices/sdc/dev": "8:32", "devices/sdc/size": "0",

		"block/sda": "-> ../devices/sda", "block/sdb": "-> ../devices/sdb", "block/dm-0": "-> ../devices/dm-0",
		"block/zram0": "-> ../devices/zram0", "block/loop0": "-> ../devices/loop0", "block/sr0": "-> ../devices/sr0", "block/sdc": "-> ../devices/sdc",
		"dev/block/8:0": "-> ../../devices/sda", "dev/block/8:16": "-> ../../devices/sdb",
		"dev/block/8:18": "-> ../../devices/sdb/sdb2", "dev/block/253:0": "-> ../../devices/dm-0",
	})}
}

func TestDiscover_Server(t *testing.T) {
	s := server(t)
	s.Procfs = tree(t, map[string]string{"self/mountinfo": strings.Join([]string{
		`22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw`,
		`23 22 8:17 / /boot\040efi rw - vfat /dev/sdb1 rw`,
		`24 22 0:21 / /proc rw - proc proc rw`,
	}, "\n")})
	got, err := s.Discover()
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{
		{Disk: block.Disk{Name: "/nonexistent/sdb", Size: 2 << 30, Boot: true}, Major: 8, Minor: 16, LogicalBlock: 512, Partitions: []Partition{
			{Name: "/nonexistent/sdb1", Major: 8, Minor: 17, Start: 1 << 20, Size: 4 << 20, Mounts: []string{"/boot efi"}},
			{Name: "/nonexistent/sdb2", Major: 8, Minor: 18, Start: 5 << 20, Size: 4000000 * 512},
		}},
		{Disk: block.Disk{Name: "/nonexistent/sda", Size: 1 << 30, Serial: "wwn:naa.5000c500a1b2c3d4"}, Major: 8, Minor: 0, LogicalBlock: 4096, IDs: []string{"wwn:naa.5000c500a1b2c3d4"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if got := s.BootMode(); got != "UEFI" {
		t.Fatalf("boot mode %s", got)
	}
}

// TestDiscover_Unfit: disks whose writes would go unseen are named as such, and it is
// said what to do; members of arrays say which disks belong to them.
func TestDiscover_Unfit(t *testing.T) {
	files := map[string]string{"self/mountinfo": ""}
	for i, name := range []string{"sda", "sdb", "sdc", "nvme0n1", "pmem0", "dm-0", "md0"} {
		number := fmt.Sprintf("8:%d", 16*i)
		files["devices/"+name+"/dev"], files["devices/"+name+"/size"] = number, "4096"
		files["block/"+name], files["dev/block/"+number] = "-> ../devices/"+name, "-> ../../devices/"+name
	}
	for _, member := range []string{"sdb", "sdc"} {
		files["devices/md0/slaves/"+member] = "-> ../../" + member
		files["devices/"+member+"/holders/md0"] = "-> ../../md0"
	}
	files["devices/sda/holders/dm-0"], files["devices/dm-0/slaves/sda"] = "-> ../../dm-0", "-> ../../sda"
	files["devices/dm-0/dm/uuid"], files["devices/dm-0/dm/name"] = "mpath-3600a0b80000f1e2d", "mpatha"
	files["devices/nvme0n1/multipath/nvme0c0n1"] = "/"
	files["devices/pmem0/queue/dax"] = "1"
	root := tree(t, files)
	list, err := System{Sysfs: root, Procfs: root, Dev: "/nonexistent"}.Discover()
	if err != nil || len(list) != 5 {
		t.Fatalf("got %+v, %v", list, err)
	}
	unfit := map[string]string{"sda": "mpatha", "nvme0n1": "nvme_core.multipath=N", "pmem0": "DAX"}
	with := map[string][]string{"sdb": {"/nonexistent/sdc"}, "sdc": {"/nonexistent/sdb"}}
	for _, d := range list {
		name := filepath.Base(d.Name)
		if want, ok := unfit[name]; !strings.Contains(d.Unfit, want) || ok != (d.Unfit != "") {
			t.Errorf("%s is unfit because %q, want %q", name, d.Unfit, want)
		}
		if diff := cmp.Diff(with[name], d.With); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestDiscover_Here finds at least the disk that this machine runs from.
func TestDiscover_Here(t *testing.T) {
	list, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		t.Skip("SKIPPED: this machine shows no disks")
	}
	for _, d := range list {
		if strings.HasPrefix(filepath.Base(d.Name), "loop") || d.Size == 0 {
			t.Errorf("%s should not be listed", d.Name)
		}
	}
	t.Logf("%+v, started by %s", list, System{}.BootMode())
}

func TestResolve_Refuses(t *testing.T) {
	for path, hint := range map[string]string{
		"/dev/no-such-disk": "lsblk", "/dev/null": "such as /dev/sda", t.TempDir(): "such as /dev/sda",
	} {
		if _, err := Resolve([]string{path}); !errors.Is(err, ErrBadDevice) || !strings.Contains(err.Error(), hint) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// TestResolve_FileSystems makes real file systems on a real device.
func TestResolve_FileSystems(t *testing.T) {
	for want, args := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q"}, "ext2": {"mkfs.ext2", "-q"}, "xfs": {"mkfs.xfs", "-q"}, "swap": {"mkswap"}, "vfat": {"mkfs.vfat"}, "": {"true"},
	} {
		t.Run(want, func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skipf("SKIPPED: %v", err)
			}
			l := fault.Loop(t, 320<<20)
			if out, err := exec.Command(args[0], append(args[1:], l.Path)...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got, err := Resolve([]string{l.Path, l.Path})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].FileSystem != want || got[0].Size != 320<<20 || got[0].Name != l.Path {
				t.Fatalf("got %+v", got)
			}
		})
	}
}

func TestTableID(t *testing.T) {
	disk := make([]byte, 8192)
	write := func() string {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if got := tableID(write()); got != "" {
		t.Errorf("no table: got %q", got)
	}
	copy(disk[440:], "\x78\x56\x34\x12")
	copy(disk[510:], "\x55\xaa")
	if got := tableID(write()); got != "mbr:12345678" {
		t.Errorf("got %q", got)
	}
	disk[446] = 0xeb
	if got := tableID(write()); got != "" {
		t.Errorf("boot code: got %q", got)
	}
	copy(disk[512:], "EFI PART")
	copy(disk[512+56:], "\x04\x03\x02\x01\x06\x05\x08\x07\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10")
	if got, want := tableID(write()), "gpt:01020304-0506-0708-090a-0b0c0d0e0f10"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
