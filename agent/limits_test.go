package agent

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSetLimits: a limit of the installation holds from the first copy on, is
// changed while the agent runs, holds for the next agent too, and stays what it
// was where the file cannot be read.
func TestSetLimits(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Limits = Limits{CPU: 150}
	if _, err := Install(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	is := func(percent float64) {
		t.Helper()
		w.wait("the limit", func() bool {
			s, err := ReadStatus(w.state)
			return err == nil && s.Running && s.Tracking != "" && s.CPULimit == percent
		})
	}
	stop := w.run()
	is(150)
	if running, err := SetLimits(w.state, Limits{CPU: 50}); err != nil || !running {
		t.Fatalf("running %v, %v", running, err)
	}
	is(50)
	if err := os.WriteFile(filepath.Join(w.state, limitsFile), []byte(`{"version": 1, "cpuPercent": -3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.wait("a warning", func() bool { return strings.Contains(w.agentLog.String(), "limits are not taken over") })
	is(50)
	if _, err := SetLimits(w.state, Limits{}); err != nil {
		t.Fatal(err)
	}
	is(0)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if running, err := SetLimits(w.state, Limits{CPU: 300}); err != nil || running {
		t.Fatalf("running %v, %v", running, err)
	}
	stop = w.run()
	is(300)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestSetLimits_Refused(t *testing.T) {
	for _, percent := range []float64{-1, .5, math.NaN(), math.Inf(1)} {
		if err := (Limits{CPU: percent}).Validate(); err == nil {
			t.Errorf("%v %% is taken", percent)
		}
	}
	if _, err := SetLimits(t.TempDir(), Limits{}); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("got %v, want %v", err, ErrNotInstalled)
	}
}
