package bpf

import (
	"testing"
	"time"
)

// TestLoad_Disks keeps the verifier's work independent of the number of disks: a
// program that loads for one must load for sixty-four.
func TestLoad_Disks(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	for _, n := range []int{1, MaxDisks} {
		disks := make([]Disk, n)
		for i := range disks { // of a driver that does not exist
			disks[i] = Disk{Major: 511, Minor: uint32(i), Granules: 1000, Word0: uint32(16 * i), Queues: 4, Tags: 256}
		}
		start := time.Now()
		tr, err := Load(disks, 3)
		if err != nil {
			t.Fatalf("%d disks: %v", n, err)
		}
		t.Logf("%d disks: %v", n, time.Since(start))
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(make([]Disk, MaxDisks+1), 3); err == nil {
		t.Fatal("more disks than there is room for were taken")
	}
}
