package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"rehost/internal/testvm"
)

// kernels are suites of Debian whose newest kernels a guest runs: the oldest that
// has all that tracking wants, and the newest that there is.
var kernels = []string{"bookworm", "trixie-backports"}

// notInGuest says which tests of a package, or parts of them, a guest does not run,
// by patterns as of go test -skip, and why. A guest has a processor that is emulated,
// and a minute or two.
var notInGuest = map[string]map[string]string{
	"capture": {
		"^TestModel(_CutShort)?$":     "the kernel is simulated, too",
		"^TestKernelTracker_Excuses$": "makes up how often a program was skipped; kernels from 7.0 on skip some themselves",
		"^TestKernelTracker_Lost$":    "makes up what the kernel has counted",
		"^Test(BtrfsMap|BtrfsKey_Next|FSMap_Answers|PartitionTable|TableID|Record_.*|Set_.*|KernelShift|Pacer.*)$": "asks no kernel",
		"^Test(Discover_Server|Discover_Unfit|Resolve_.*)$":                                                        "reads a made-up /sys, or what this machine's programs write",
		"^TestEngine_(Pause|NotConverging|SinkFails|Retry|BadSectors|Rescan.*)$":                                   "the engine alone; what it asks of the kernel TestEngine_Follows does",
		"^TestEngine_Unreadable$":                              "behind the end of its file a loop device of 6.1 does not fail",
		"^TestEngine_Follows$/granules":                        "the same once more",
		"^TestEngine_Follows$/comparing":                       "what it asks of the kernel is as old as diskstats; it takes as long as the rest of the test",
		"^TestEngine_Oracle$/^(files|memory)$":                 "the busiest of its loads is enough there",
		"^TestMutants$":                                        "builds the package several times",
		"^TestEngine_(OracleMutations|KilledMutations)$":       "shows what the judge sees, not what the kernel does",
		"^TestEngine_(Killed|AdoptsNot)$":                      "takes most of a minute there; what the kernel keeps the other tests of pins show",
		"^TestEngine_FreeSpace(Copied|Rescan|Adopted)$":        "the engine alone, with the maps that TestEngine_FreeSpace and TestFSMap_Batches ask for",
		"^TestEngine_FreeSpace(Partitions|Churn)$":             "takes from half a minute to three there",
		"^TestEngine_FreeSpace$/(ext4|xfs|mixed)":              "takes half a minute each there; TestFSMap_Batches asks for the maps of ext4 and xfs",
		"^TestFSMap_Batches$/_(in|with)_":                      "the same file systems once more",
		"^Test(Engine_Freezes|Engine_FreezesNot|Brake_Takes)$": "builds the freezer, with tools that are not there; freezing is older than all that tracks",
		"^TestEngine_PointAge$":                                "a measurement; an emulated processor has nothing to say in it",
	},
	"capture/bpf": {
		"^TestGenerate$": "needs clang; what it makes is the same everywhere",
		"^TestLockdown$": "asks no kernel",
	},
}

// tools are the programs of this machine that the tests in a guest run.
var tools = []string{"dmsetup", "mdadm", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs", "sync", "setpriv"}

// TestKernel runs the tests of what depends on the kernel, with real disks and file
// systems, on other kernels than this machine's. What the verifier takes, how
// completions arrive and what file systems tell differ from one to the next.
func TestKernel(t *testing.T) {
	need(t, append([]string{"tar", "ldd"}, tools...)...)
	testvm.SourceOf(t, kernels[0]) // skips where there is no emulator
	s := newSuite(t)
	for _, k := range kernels {
		t.Run(k, func(t *testing.T) {
			t.Parallel() // a guest has one processor
			s.onKernel(t, k)
		})
	}
}

// A suite is what a guest needs to run the tests.
type suite struct {
	archive string              // of programs and libraries, to be unpacked at the root
	tests   map[string][]string // of each package
}

// newSuite builds the tests and collects what they need.
func newSuite(t *testing.T) *suite {
	t.Helper()
	dir := t.TempDir()
	s := &suite{archive: filepath.Join(dir, "suite.tgz"), tests: map[string][]string{}}
	for pkg, skipped := range notInGuest {
		path := filepath.Join(dir, "tests", program(pkg))
		build := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s", "-o", path, "rehost/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the tests of %s: %v: %s", pkg, err, out)
		}
		out, err := exec.Command(path, "-test.list", "^Test").Output()
		if err != nil {
			t.Fatal(err)
		}
		s.tests[pkg] = strings.Fields(string(out))
		for pattern := range skipped {
			before := len(s.tests[pkg])
			whole := regexp.MustCompile(pattern)
			if s.tests[pkg] = slices.DeleteFunc(s.tests[pkg], whole.MatchString); len(s.tests[pkg]) == before && !strings.Contains(pattern, "/") {
				t.Errorf("%s has no test %s", pkg, pattern)
			}
		}
	}
	args := []string{"--create", "--gzip", "--dereference", "--file", s.archive, "--directory", dir, "tests", "--directory", "/"}
	if out, err := exec.Command("tar", append(args, closure(t, tools)...)...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return s
}

// program is the name of a package's tests in a guest.
func program(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

// closure are the files of programs and of the libraries that they are linked with,
// from the root on.
func closure(t *testing.T, programs []string) []string {
	t.Helper()
	files := map[string]bool{}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		files[path[1:]] = true
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Fatalf("ldd %s: %v", path, err)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				files[word[1:]] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(files))
}

func (s *suite) onKernel(t *testing.T, kernel string) {
	image := testvm.SourceOf(t, kernel)
	offer, err := testvm.OfferFile(s.archive, "/tmp/suite.tgz")
	if err != nil {
		t.Fatal(err)
	}
	defer offer.Close()
	// A virtio disk whose requests do not fit into its queue together: their driver puts
	// back what has no room. It is slow, so that they meet there.
	short := filepath.Join(t.TempDir(), "short.img")
	if err := os.WriteFile(short, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := testvm.Run(t, testvm.Config{MemoryMiB: 2048, Ports: []int{80},
		Args: []string{"-drive", "if=none,id=short,format=raw,throttling.iops-total=2000,file=" + short,
			"-device", "virtio-blk-pci,drive=short,serial=short,num-queues=1,queue-size=8,indirect_desc=off,discard=off,write-zeroes=off"},
		Disks: []testvm.Disk{{Path: image.Disk0, Bus: "nvme", Snapshot: true}, {Path: image.Disk1, Bus: "nvme", Snapshot: true}}})
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()
	if _, err := vm.Get(ctx, 80, "/"); err != nil {
		t.Fatal(err)
	}
	release, err := vm.Shell(ctx, image.Token, offer.Fetch+"tar -xzf /tmp/suite.tgz -C / && rm /tmp/suite.tgz; echo /bin/modprobe >/proc/sys/kernel/modprobe; modprobe loop; uname -r")
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(notInGuest)) {
		began := time.Now()
		out, err := vm.Shell(ctx, image.Token, fmt.Sprintf("cd /tmp && TMPDIR=/tmp REHOST_SHORT_QUEUE=/dev/vda /tests/%s -test.v -test.timeout 8m -test.run ^Test -test.skip '%s' 2>&1",
			program(pkg), strings.Join(slices.Sorted(maps.Keys(notInGuest[pkg])), "|")))
		t.Logf("kernel %s: %d tests of %s in %v\n%s", strings.TrimSpace(release), len(s.tests[pkg]), pkg, time.Since(began).Round(time.Second), out)
		if err != nil {
			t.Errorf("the tests of %s failed on kernel %s", pkg, release)
		}
		for _, name := range s.tests[pkg] {
			if !strings.Contains(out, "\n--- PASS: "+name+" (") {
				t.Errorf("%s did not run there", name)
			}
		}
		for _, skipped := range regexp.MustCompile(`--- SKIP: (\S+)`).FindAllStringSubmatch(out, -1) {
			t.Errorf("%s was skipped there", skipped[1])
		}
	}
}
