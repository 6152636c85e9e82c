package qemu

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/internal/testvm"
	"rehost/launch"
	"rehost/launch/launchtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func tcg(context.Context) (string, error) { return TCG, nil }

// open makes a target for tests, which closes itself.
func open(t *testing.T, dir string) *Target {
	t.Helper()
	testvm.Require(t, "qemu-system-x86_64", "qemu-img")
	target, err := Open(Options{Dir: dir, Accel: tcg, Poll: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

func TestTarget(t *testing.T) {
	launchtest.Run(t, func(t *testing.T) launch.Target {
		dir := t.TempDir()
		t.Cleanup(func() {
			// Runs after the suite's own clean-up, which terminates everything.
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 1 || entries[0].Name() != "lock" {
				t.Errorf("left in the directory: %v, %v", entries, err)
			}
		})
		return open(t, dir)
	})
}
