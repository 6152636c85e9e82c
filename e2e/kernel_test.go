package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"rehost/internal/testvm"
)

// inGuest are the tests of package capture that a guest runs on its own kernel.
var inGuest = []string{"TestEngine_Follows", "TestEngine_CrossDisk", "TestSurvey_Here"}

// kernels are suites of Debian whose newest kernels a guest runs: the oldest that
// has all that tracking wants, and the newest that there is.
var kernels = []string{"bookworm", "trixie-backports"}

// TestKernel runs the capture engine's tests with real disks on other kernels
// than this machine's. What the verifier takes and how completions arrive
// differ from one kernel to the next.
func TestKernel(t *testing.T) {
	testvm.SourceOf(t, kernels[0]) // skips where there is no emulator
	program := filepath.Join(t.TempDir(), "capture.test")
	build := exec.Command("go", "test", "-c", "-trimpath", "-o", program, "rehost/capture")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v: %s", err, out)
	}
	for _, suite := range kernels {
		t.Run(suite, func(t *testing.T) { onKernel(t, suite, program) })
	}
}

func onKernel(t *testing.T, suite, program string) {
	image := testvm.SourceOf(t, suite)
	offer, err := testvm.OfferFile(program, "/tmp/capture.test")
	if err != nil {
		t.Fatal(err)
	}
	defer offer.Close()
	vm := testvm.Run(t, testvm.Config{MemoryMiB: 1024, Ports: []int{80},
		Disks: []testvm.Disk{{Path: image.Disk0, Bus: "nvme", Snapshot: true}, {Path: image.Disk1, Bus: "nvme", Snapshot: true}}})
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()
	if _, err := vm.Get(ctx, 80, "/"); err != nil {
		t.Fatal(err)
	}
	kernel, err := vm.Shell(ctx, image.Token, offer.Fetch+"modprobe loop; uname -r")
	if err != nil {
		t.Fatal(err)
	}
	out, err := vm.Shell(ctx, image.Token, "cd /tmp && TMPDIR=/tmp ./capture.test -test.v -test.timeout 8m -test.run '^("+strings.Join(inGuest, "|")+")$' 2>&1")
	t.Logf("kernel %s%s", kernel, out)
	if err != nil {
		t.Fatalf("the tests failed on kernel %s", kernel)
	}
	for _, name := range inGuest {
		if !regexp.MustCompile(`(?m)^--- PASS: `+name+` `).MatchString(out) || strings.Contains(out, "--- SKIP: "+name) {
			t.Errorf("%s did not run there", name)
		}
	}
}
