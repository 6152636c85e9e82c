package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// stepVariable makes this test program take a step of its own, which changes a
// process for good.
const stepVariable = "REHOST_PRIVILEGE_TEST"

var steps = map[string]func(args []string){
	"confine": confined,
	"sealed":  sealed,
	"dropped": dropped,
}

func TestMain(m *testing.M) {
	if step := os.Getenv(stepVariable); step != "" {
		steps[step](os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// take runs a step in a process of its own.
func take(t *testing.T, step string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root has something to give up")
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), stepVariable+"="+step)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// says wants lines in an output.
func says(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("it does not say %q:\n%s", line, out)
		}
	}
}

// confined is shut in with one directory, as root: what is refused here is refused to
// anybody.
func confined(args []string) {
	dir, disk := args[0], args[1]
	fmt.Println("before:", Refused(disk))
	if _, err := Confine(dir); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("disk:", Refused(disk))
	f, err := os.Open(disk)
	fmt.Println("read:", err)
	if err == nil {
		_, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
		fmt.Println("ask:", err)
	}
	fmt.Println("inside:", os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	fmt.Println("outside:", errno(os.WriteFile(dir+".file", []byte("x"), 0o600)))
	fmt.Println("program:", errno(exec.Command("/bin/true").Run()))
	fmt.Println("mount:", unix.Mount("none", dir, "tmpfs", 0, ""))
	fmt.Println("user:", unix.Setuid(1))
	fmt.Println("signal:", unix.Kill(os.Getppid(), 0))
	fmt.Println("debug:", unix.PtraceAttach(os.Getppid()))
	done := make(chan bool)
	for range 20 { // threads are no processes
		go func() { runtime.LockOSThread(); done <- true }()
	}
	for range 20 {
		<-done
	}
	fmt.Println("threads: done")
}

func errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// TestConfine: a process that is shut in reads a disk and writes into its directory,
// and does nothing else, root or not. The disk could be written to before: otherwise
// this shows nothing.
func TestConfine(t *testing.T) {
	out := take(t, "confine", t.TempDir(), fault.Loop(t, 1<<20).Path)
	says(t, out, "before: <nil>", "disk: permission denied", "read: <nil>", "ask: <nil>", "inside: <nil>", "outside: permission denied",
		"program: operation not permitted", "mount: operation not permitted", "user: operation not permitted", "signal: operation not permitted", "debug: operation not permitted", "threads: done")
}

// testGroup is a control group of this run alone: a mutant's is another.
func testGroup() string { return fmt.Sprintf("rehost-privilege-test-%d", os.Getpid()) }

func sealed(args []string) {
	fmt.Println("before:", Refused(args[0]))
	for range 2 { // an agent that starts again seals again
		if err := SealDisks(args[2]); err != nil {
			fmt.Println("SKIPPED:", err)
			return
		}
	}
	fmt.Println("disk:", Refused(args[0]))
	f, err := os.Open(args[0])
	fmt.Println("read:", err)
	f.Close()
	fmt.Println("node:", unix.Mknod(args[1], unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	fmt.Println("null:", os.WriteFile("/dev/null", nil, 0))
}

// TestSealDisks: in the control group even root cannot write to a disk, and the
// kernel says EPERM.
func TestSealDisks(t *testing.T) {
	t.Cleanup(func() {
		if err := UnsealDisks(testGroup()); err != nil {
			t.Error(err)
		}
	})
	out := take(t, "sealed", fault.Loop(t, 1<<20).Path, filepath.Join(t.TempDir(), "node"), testGroup())
	if strings.Contains(out, "SKIPPED") {
		t.Skip(out)
	}
	says(t, out, "before: <nil>", "disk: operation not permitted", "read: <nil>", "node: operation not permitted", "null: <nil>")
}

func dropped([]string) {
	if os.Geteuid() == 0 {
		fmt.Println(Drop(Account{Name: "somebody", UID: 60123, GID: 60124}, 60125, os.Environ()))
		return
	}
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		fmt.Println(strings.Join(strings.Fields(line), " "))
	}
}

// TestDrop: what is left are two capabilities, which nothing started from there can
// exceed.
func TestDrop(t *testing.T) {
	const two = "000000c000000000" // CAP_PERFMON is 38, CAP_BPF 39
	says(t, take(t, "dropped"), "Uid: 60123 60123 60123 60123", "Gid: 60124 60124 60124 60124", "Groups: 60125", "NoNewPrivs: 1",
		"CapInh: "+two, "CapPrm: "+two, "CapEff: "+two, "CapBnd: "+two, "CapAmb: "+two)
}

// TestAs: root does not follow a link to where the owner of a directory could not go
// itself, and what it makes there is the owner's. Afterwards it is root again.
func TestAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can be someone else")
	}
	const uid = 60123
	dir := t.TempDir()
	fault.Passage(t, dir)
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(t.TempDir(), "precious")
	if err := errors.Join(os.WriteFile(precious, []byte("as it was"), 0o600), os.Symlink(precious, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	err := As(uid, uid, func() error {
		err := As(uid, uid, func() error { return os.WriteFile(filepath.Join(dir, "own"), nil, 0o600) })
		return errors.Join(err, os.WriteFile(filepath.Join(dir, "link"), []byte("overwritten"), 0o600))
	})
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("got %v, want a refusal", err)
	}
	if text, err := os.ReadFile(precious); string(text) != "as it was" {
		t.Errorf("root has followed the link: %q, %v", text, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "own"), &st); err != nil || st.Uid != uid {
		t.Errorf("the file is %d's, want %d's: %v", st.Uid, uid, err)
	}
}

// in makes nodes in a directory of /dev, where they may be opened, of a disk of this test.
func in(t *testing.T) (node func(name string, gid int, mode uint32) string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: nodes are made by root")
	}
	dir, err := os.MkdirTemp("/dev", "rehost-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var disk unix.Stat_t
	if err := errors.Join(os.Chmod(dir, 0o711), unix.Stat(fault.Loop(t, 1<<20).Path, &disk)); err != nil {
		t.Fatal(err)
	}
	return func(name string, gid int, mode uint32) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(unix.Mknod(path, unix.S_IFBLK, int(disk.Rdev)), os.Chown(path, 0, gid), os.Chmod(path, os.FileMode(mode))); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// opened is how one of a group alone opens a node for reading, and for writing.
func opened(t *testing.T, path string, group int) (read, write error) {
	t.Helper()
	return as(t, path, os.O_RDONLY, group), as(t, path, os.O_WRONLY, group)
}

func as(t *testing.T, path string, how, group int) error {
	t.Helper()
	groups, err := unix.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) > 0 { // of all threads, for which an operator's rights in a test are no reason
		if err := unix.Setgroups(nil); err != nil {
			t.Fatal(err)
		}
		defer unix.Setgroups(groups)
	}
	return As(60123, group, func() error {
		f, err := os.OpenFile(path, how, 0)
		if err == nil {
			f.Close()
		}
		return errno(err)
	})
}

// TestReadable: the agent may read a node that nobody could by the group for disks, and one
// that another group reads by its own: nameless, or given more than disks as Oracle's is, it
// stays that group's. Nobody else comes to anything, and nobody but that group may write.
func TestReadable(t *testing.T) {
	node := in(t)
	const own, disks, others = 60124, 60125, 60126
	agent := Account{Name: "somebody", UID: 60123, GID: own}
	for i, c := range []struct {
		mode, want uint32
		gid, group int
		reads      int // who may then
	}{
		{0o600, 0o640, 0, disks, disks},
		{0o660, 0o640, 0, disks, disks},
		{0o600, 0o640, others, disks, disks},
		{0o660, 0o660, disks, disks, disks},
		{0o640, 0o640, own, own, own},
		{0o660, 0o660, others, others, own},
		{0o640, 0o640, others, others, own},
	} {
		path := node(fmt.Sprint(i), c.gid, c.mode)
		for range 2 { // it is done before each start
			if err := Readable(path, agent, disks); err != nil {
				t.Fatal(err)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o777 != c.want || int(st.Gid) != c.group {
			t.Errorf("%o of %d: got %o of %d, want %o of %d: %v", c.mode, c.gid, st.Mode&0o777, st.Gid, c.want, c.group, err)
		}
		for _, group := range []int{own, disks, others, others + 1} {
			read, write := opened(t, path, group)
			member := group == c.group
			if may := member || group == c.reads; (read == nil) != may {
				t.Errorf("%o of %d: group %d reads: %v", c.mode, c.gid, group, read)
			}
			if may := member && c.want&0o020 != 0; (write == nil) != may {
				t.Errorf("%o of %d: group %d writes: %v", c.mode, c.gid, group, write)
			}
		}
	}
}

// TestReadable_NoLists: where a file system keeps no access control lists, what to do is
// said, and the node stays as it is.
func TestReadable_NoLists(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounts a file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "disk")
	err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(7, 255)))
	if err := errors.Join(err, os.Chown(path, 0, 60126), os.Chmod(path, 0o660)); err != nil {
		t.Fatal(err)
	}
	if err := Readable(path, Account{Name: "somebody", UID: 60123, GID: 60124}, 60125); !errors.Is(err, unix.ENOTSUP) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "chgrp disk") {
		t.Errorf("it is not said what to do: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o777 != 0o660 || st.Gid != 60126 {
		t.Errorf("the node is %o of %d, was 660 of 60126: %v", st.Mode&0o777, st.Gid, err)
	}
}

// TestUnreadable gives a device back that an agent's own group could read, whether it was the
// group's or lists it, and leaves a list of somebody else's. Nothing else of that group's in
// /dev is touched.
func TestUnreadable(t *testing.T) {
	node := in(t)
	group := 1_000_000 + os.Getpid() // nobody else's, also not of another run
	other := 2_000_000 + os.Getpid()
	agent := Account{Name: "somebody", UID: 60123, GID: group}
	disk, listed, shared := node("disk", 0, 0o600), node("listed", other, 0o660), node("shared", other, 0o660)
	file := filepath.Join(filepath.Dir(disk), "file")
	err := errors.Join(listReader(shared, 0o660, other+1),
		Readable(disk, agent, group), Readable(listed, agent, group), Readable(shared, agent, group),
		os.WriteFile(file, nil, 0o640), os.Chown(file, 0, group))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of   int // whose devices are taken back
		left bool
	}{{group + 1, true}, {group, false}, {group, false}} {
		if err := Unreadable(c.of); err != nil {
			t.Fatal(err)
		}
		var d, f, l unix.Stat_t
		want := 0
		if c.left {
			want = group
		}
		if err := errors.Join(unix.Stat(disk, &d), unix.Stat(file, &f), unix.Stat(listed, &l)); err != nil || int(d.Gid) != want || (d.Mode&0o040 == 0) == c.left || int(f.Gid) != group || int(l.Gid) != other || l.Mode&0o777 != 0o660 {
			t.Errorf("after Unreadable(%d) the disk is %o of %d, that of another group %o of %d, the file of %d: %v", c.of, d.Mode&0o777, d.Gid, l.Mode&0o777, l.Gid, f.Gid, err)
		}
		for _, path := range []string{disk, listed, shared} {
			if read, _ := opened(t, path, group); (read == nil) != c.left {
				t.Errorf("after Unreadable(%d) the group opens %s: %v", c.of, path, read)
			}
		}
		if read, _ := opened(t, shared, other+1); read != nil {
			t.Errorf("after Unreadable(%d) who was in the list before opens it: %v", c.of, read)
		}
	}
	if _, err := unix.Getxattr(listed, accessList, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a list is left: %v", err)
	}
}

// TestMutants: each of the walls, left out, is missed.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root has something to give up")
	}
	for name, m := range map[string]fault.Mutant{
		"SeccompLeftOut":     {File: "confine.go", From: "if seccomp.Supported() {", To: "if false {", Tests: "TestConfine$"},
		"ProcessesAllowed":   {File: "confine.go", From: "calls+\" \"+oldCalls", To: `calls+" clone execve "+oldCalls`, Tests: "TestConfine$"},
		"LandlockLeftOut":    {File: "confine.go", From: "if err := shutFiles(writable); err != nil {", To: "if err := error(nil); err != nil {", Tests: "TestConfine$"},
		"DisksWritable":      {File: "confine.go", From: "landlock.PathAccess(look, \"/\")", To: "landlock.PathAccess(look|ll.AccessFSWriteFile, \"/\")", Tests: "TestConfine$"},
		"CapabilityKept":     {File: "drop.go", From: "c != unix.CAP_BPF && c", To: "c != unix.CAP_SYS_ADMIN && c != unix.CAP_BPF && c", Tests: "TestDrop$"},
		"PrivilegesRegained": {File: "drop.go", From: "unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)", To: "error(nil)", Tests: "TestDrop$"},
		"RootsGroupsKept":    {File: "drop.go", From: "return raw(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&g)), 0)", To: "_, _ = g, unsafe.Pointer(nil); return nil", Tests: "TestDrop$"},
		"SealLeftOut":        {File: "devices.go", From: `os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)`, To: "error(nil)", Tests: "TestSealDisks$"},
		"SealOfNodesLeftOut": {File: "devices.go", From: "(devAccessWrite|devAccessMknod)<<16", To: "devAccessWrite<<16", Tests: "TestSealDisks$"},
		"LinksFollowed":      {File: "drop.go", From: "{unix.SYS_SETFSUID, uid}", To: "", Tests: "TestAs$"},
		"GroupMayWrite":      {File: "devices.go", From: "&^0o020", To: "", Tests: "TestReadable$"},
		"ListMayWrite":       {File: "acl.go", From: "mayRead = 4", To: "mayRead = 6", Tests: "TestReadable$"},
		"GroupTakenOver":     {File: "devices.go", From: "st.Mode&0o040 == 0 || st.Gid == 0", To: "st.Mode&0o040 == 0 || int(st.Gid) != disks", Tests: "TestReadable$"},
		"NextGroupListed":    {File: "devices.go", From: "unlistReader(same, st.Mode, group)", To: "error(nil)", Tests: "TestUnreadable$"},
		"NextGroupMayRead":   {File: "devices.go", From: "os.Chown(same, -1, 0)", To: "error(nil)", Tests: "TestUnreadable$"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fault.Caught(t, m)
		})
	}
}
