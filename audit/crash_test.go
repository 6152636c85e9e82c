package audit

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// What the child is told.
const (
	childDir  = "AUDIT_TEST_DIR"
	childLate = "AUDIT_TEST_LATE"
)

// child writes records and says which were acknowledged, until it is killed. The late
// one is the mutation: it says so before it has written them.
func child(dir string, late bool) int {
	l, err := Open(dir, Options{Keys: testKeys, FileSize: 32 << 10, Files: 1000})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for i := 0; ; i++ {
		if late && i%500 == 0 {
			fmt.Println(i + 499)
		}
		if err := l.Append(numbered(i)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if !late {
			fmt.Println(i)
		}
	}
}

// killed runs a child, kills it after some acknowledgements, and gives the last.
func killed(t *testing.T, dir string, after int, late bool) (acknowledged int) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir)
	if late {
		c.Env = append(c.Env, childLate+"=1")
	}
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ { // to the end: what it said before it died counts
		acknowledged, err = strconv.Atoi(lines.Text())
		must(t, err)
		if n == after {
			must(t, c.Process.Kill())
		}
	}
	if err := c.Wait(); err == nil {
		t.Error("the child ended by itself")
	}
	return acknowledged
}

// TestLog_Killed: kill -9 at any moment loses nothing that was acknowledged, and the
// log can be gone on with and verifies.
func TestLog_Killed(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	for round := range 6 {
		before := 0
		if round > 0 {
			before = len(names(t, dir))
		}
		acknowledged := killed(t, dir, random.IntN(800), false)
		must(t, open(t, dir).Close())
		if r, err := Verify(dir, testKeys); err != nil {
			t.Fatalf("round %d: %+v, %v", round, r, err)
		}
		calls := map[string]bool{}
		for _, n := range names(t, dir)[before:] {
			calls[n] = true
		}
		for i := range acknowledged + 1 {
			if !calls[fmt.Sprint(i)] {
				t.Fatalf("round %d: record %d of %d is lost", round, i, acknowledged+1)
			}
		}
	}
	late := t.TempDir()
	acknowledged := killed(t, late, 0, true)
	must(t, open(t, late).Close())
	for _, n := range names(t, late) {
		if n == fmt.Sprint(acknowledged) {
			t.Error("a writer that acknowledges early was not caught")
		}
	}
}
