package fault

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Passage lets other users come to directories of the test's, through those on the
// way that are the test's too: an agent is not root.
func Passage(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err == nil {
				err = os.Chmod(dir, info.Mode().Perm()|0o011)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
