package bpf

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// TestHome tracks one disk among others that the kernel side looks for at the same place,
// wherever it stands in their list: its writes are counted for it, and none for another.
func TestHome(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	const granules = 2048
	l := fault.Loop(t, granules<<12)
	real := deviceOf(t, l.Path, granules)
	f, err := os.OpenFile(l.Path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			disks := make([]Disk, 3)
			for i := range disks {
				disks[i] = real
				disks[i].Word0 = uint32(i * granules / 64)
				if i != at {
					disks[i].Major, disks[i].Minor = 511, real.Minor+37*(real.Major-511)+uint32(i)*homes
				}
				if home(disks[i]) != home(real) {
					t.Fatalf("%+v is at home at %d, %+v at %d", disks[i], home(disks[i]), real, home(real))
				}
			}
			tr, err := Load(disks, 3)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			const n = 10
			if c := write(t, tr, at, f, n); c.Issued != n || c.Completed != n || c.OutOfRange != 0 {
				t.Errorf("%d writes to the disk were counted as %+v", n, c)
			}
			for i := range disks {
				if got := tr.Counters(i); i != at && got != (Counters{}) {
					t.Errorf("disk %d, which is not there, has %+v", i, got)
				}
			}
			if got := tr.DirtyBits(at*granules/64, (at+1)*granules/64); got != n {
				t.Errorf("%d granules of the disk are dirty, want %d", got, n)
			}
		})
	}
}
