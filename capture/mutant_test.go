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
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
