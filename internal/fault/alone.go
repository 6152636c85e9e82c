package fault

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Alone keeps tests that change the users of this machine from doing so at the same
// time, in whatever package they are, until the test ends.
func Alone(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join("/run", "rehost-tests.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}
