package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rehost/block"
)

// The child process of TestReplica_Kill: this test binary, told by its environment
// where to write for ever. It prints each epoch that was acknowledged.
const childEnv = "REHOST_STORE_TEST_CHILD"

var killDisks = []block.Disk{{ID: 2, Name: "/dev/sda", Size: 1 << 30}}

const killBlocks = 97 // blocks that the child's epochs write over and over

func writeForEver() {
	err := func() error {
		dir := os.Getenv(childEnv)
		s, r, err := openKilled(dir, Options{SegmentSize: 4 << 20})
		if err != nil {
			return err
		}
		defer s.Close()
		w, err := r.Begin(context.Background(), r.Generation()+1, nil)
		if err != nil {
			return err
		}
		last, _ := r.Latest()
		for seq := last.Seq + 1; ; seq++ {
			runs := killRuns(seq)
			for i, run := range runs {
				if err := w.Append(context.Background(), seq, uint64(i), run); err != nil {
					return err
				}
			}
			if err := w.Commit(context.Background(), block.Point{Seq: seq}, uint64(len(runs)), 0); err != nil {
				return err
			}
			fmt.Printf("%500d\n", uint64(seq)) // so wide that the pipe holds back who runs far ahead
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// killRuns is what epoch seq writes: some blocks, each full of its number.
func killRuns(seq block.Seq) (runs []block.Run) {
	for i := range 1 + uint64(seq)%9 {
		data := make([]byte, block.Size)
		for j := 0; j < len(data); j += 8 {
			binary.LittleEndian.PutUint64(data[j:], uint64(seq))
		}
		runs = append(runs, block.Run{Extent: block.Extent{Disk: 2, Start: (uint64(seq)*5 + i) % killBlocks, Count: 1}, Codec: block.Raw, Payload: data})
	}
	return runs
}

func openKilled(dir string, opts Options) (*Store, *Replica, error) {
	keys, err := OpenKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		return nil, nil, err
	}
	s, err := Open(filepath.Join(dir, "store"), keys, opts)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.Replica(context.Background(), "s-1")
	return s, r, err
}

// checkKilled compares a point with what all epochs up to it have written.
func checkKilled(r *Replica, seq block.Seq) error {
	v, err := r.At(seq)
	if err != nil {
		return err
	}
	d, err := v.Disk(2)
	if err != nil {
		return err
	}
	want := make([]uint64, killBlocks)
	for s := block.Seq(1); s <= seq; s++ {
		for _, run := range killRuns(s) {
			want[run.Extent.Start] = uint64(s)
		}
	}
	got := make([]byte, killBlocks*block.Size)
	if _, err := d.ReadAt(got, 0); err != nil {
		return err
	}
	for b, n := range want {
		for j := 0; j < block.Size; j += 8 {
			if g := binary.LittleEndian.Uint64(got[b*block.Size+j:]); g != n {
				return fmt.Errorf("point %v, block %d: is of epoch %d, want %d", seq, b, g, n)
			}
		}
	}
	return nil
}

// TestReplica_Kill kills a process that commits as fast as it can, over and over,
// and looks at what it has left; while it runs, another process must not write,
// and sees whole points, none of the acknowledged ones missing.
func TestReplica_Kill(t *testing.T) {
	dir := t.TempDir()
	keys, err := CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "store"), keys, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "s-1", killDisks, ""); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kills := 20
	if testing.Short() || raceEnabled {
		kills = 5
	}
	var acked block.Seq
	for range kills {
		acked = killOnce(t, dir, acked)
	}
	if acked < block.Seq(kills) {
		t.Fatalf("%d epochs in %d lives of the writer", acked, kills)
	}
	t.Logf("%d epochs, %d kills", acked, kills)
}

// killOnce runs the child until it has committed a few epochs, and returns the
// last point that stands.
func killOnce(t *testing.T, dir string, acked block.Seq) block.Seq {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	lines := bufio.NewReader(out)
	before, peek := acked, acked+1+block.Seq(rand.IntN(20))
	for acked < peek+block.Seq(rand.IntN(60)) {
		line, err := lines.ReadString('\n')
		if _, serr := fmt.Sscan(line, (*uint64)(&acked)); err != nil || serr != nil {
			t.Fatalf("child said %q, %v", line, err)
		}
		if acked == peek {
			beside(t, dir, acked)
		}
	}
	// It goes on for a moment, so that it is killed anywhere.
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for { // what it had said before it died
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		fmt.Sscan(line, (*uint64)(&acked))
	}
	cmd.Wait()
	s, r, err := openKilled(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	last, _ := r.Latest()
	if last.Seq < acked || last.Seq > acked+1 || last.Seq <= before {
		t.Fatalf("last point is %d, acknowledged was %d", last.Seq, acked)
	}
	for _, seq := range []block.Seq{last.Seq, 1 + block.Seq(rand.Uint64N(uint64(last.Seq)))} {
		if err := checkKilled(r, seq); err != nil {
			t.Fatal(err)
		}
	}
	return last.Seq
}

// beside looks at the replica while the child writes it.
func beside(t *testing.T, dir string, acked block.Seq) {
	t.Helper()
	s, r, err := openKilled(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 3 {
		last, _ := r.Latest()
		if last.Seq < acked {
			t.Fatalf("beside the writer the last point is %d, acknowledged was %d", last.Seq, acked)
		}
		if err := checkKilled(r, last.Seq); err != nil {
			t.Fatal(err)
		}
		acked = last.Seq
		if err := r.Refresh(); err != nil {
			t.Fatal(err)
		}
	}
	rw, r2, err := openKilled(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rw.Close()
	if _, err := r2.Begin(t.Context(), 1<<40, nil); !errors.Is(err, ErrLocked) {
		t.Fatalf("begin beside another process: got %v, want %v", err, ErrLocked)
	}
}
