package capture

import (
	"testing"

	"rehost/internal/fault"
)

// TestMutants: what the model does not know of, done wrongly, is noticed on real disks.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"GoneWhileReplicated": {File: "engine.go", From: "if errors.Is(err, ErrGone) { // what was done", To: "if false { // what was done", Tests: "TestEngine_DiskComesBack$"},
		"GoneWhenOpened":      {File: "engine.go", From: "errors.Join(err, Unpin(o.Pins))", To: "err", Tests: "TestEngine_DiskComesBack$"},
		"SweptNotCounted":     {File: "kernel.go", From: "base.counts.LostCompletions -= uint64(t.bpf.Sweep(i))", To: "t.bpf.Sweep(i)", Tests: "TestKernelTracker_Lost$"},
		"PutBackExcuses":      {File: "kernel.go", From: "int64(counts.LostCompletions-base.counts.LostCompletions) > 0", To: "counts.LostCompletions != base.counts.LostCompletions", Tests: "TestKernelTracker_Lost$"},
		"ShortIsExcused":      {File: "kernel.go", From: "int64(counts.LostCompletions-base.counts.LostCompletions) > 0", To: "counts.LostCompletions < 1<<63", Tests: "TestKernelTracker_Lost$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
