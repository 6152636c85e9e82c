package testvm_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/internal/testvm"
)

// TestSource boots the source image as a server would: from NVMe disks, by
// either firmware.
func TestSource(t *testing.T) {
	image := testvm.Source(t)
	for _, firmware := range []string{"bios", "uefi"} {
		t.Run(firmware, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			began := time.Now()
			vm := testvm.Run(t, testvm.Config{
				UEFI: firmware == "uefi",
				UUID: "6b1e0c7e-0f4a-4d8f-9a51-3a1df5d5a001",
				Disks: []testvm.Disk{
					{Path: image.Disk0, Bus: "nvme", Snapshot: true},
					{Path: image.Disk1, Bus: "nvme", Snapshot: true},
				},
				Ports: []int{80},
			})
			if _, err := vm.WaitFor(ctx, "source login:"); err != nil {
				t.Fatal(err)
			}
			t.Logf("login prompt after %v", time.Since(began).Round(100*time.Millisecond))
			page, err := vm.Get(ctx, 80, "/")
			if err != nil || !strings.Contains(string(page), "<h1>source</h1>") {
				t.Fatalf("page: %v: %s", err, page)
			}
			body, err := vm.Get(ctx, 80, "/machine")
			if err != nil {
				t.Fatal(err)
			}
			var m struct{ UUID, Firmware, Root string }
			if err := json.Unmarshal(body, &m); err != nil {
				t.Fatal(err)
			}
			if m.UUID != "6b1e0c7e-0f4a-4d8f-9a51-3a1df5d5a001" || m.Firmware != firmware || m.Root != "/dev/nvme0n1p3" {
				t.Errorf("got %+v", m)
			}
			// The console leads to a root shell.
			if err := vm.Send("root\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := vm.WaitFor(ctx, "/root # "); err != nil {
				t.Fatal(err)
			}
			if err := vm.Send("echo $((6*7))-$(whoami 2>/dev/null || id -u)\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := vm.WaitFor(ctx, `42-(root|0)`); err != nil {
				t.Fatal(err)
			}
			vm.Kill()
			vm.Kill()
		})
	}
}

// TestWaitFor_Ended: a machine that cannot start is not waited for.
func TestWaitFor_Ended(t *testing.T) {
	vm := testvm.Run(t, testvm.Config{Disks: []testvm.Disk{{Path: filepath.Join(t.TempDir(), "nothing")}}})
	if _, err := vm.WaitFor(t.Context(), "login:"); !errors.Is(err, testvm.ErrEnded) || !strings.Contains(err.Error(), "nothing") {
		t.Fatalf("got %v", err)
	}
}

// TestKill_Silent: a machine that does nothing is killed all the same, and
// nothing of it is left.
func TestKill_Silent(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := testvm.Run(t, testvm.Config{Disks: []testvm.Disk{{Path: disk}}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := vm.WaitFor(ctx, "login:"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	vm.Kill()
	select {
	case <-vm.Done():
	default:
		t.Fatal("still running after Kill")
	}
}
