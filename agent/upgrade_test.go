package agent

import (
	"testing"
	"time"
)

// TestUnproven: a new version is kept only if it does all that the one before did.
func TestUnproven(t *testing.T) {
	began := time.Now()
	later := began.Add(time.Second)
	well := Status{Running: true, PID: 7, Version: "2.0.0", Time: later, Answered: later}
	before := Status{Running: true}
	for name, c := range map[string]struct {
		change func(now, before *Status)
		proven bool
	}{
		"Well":                {func(_, _ *Status) {}, true},
		"Gone":                {func(now, _ *Status) { now.Running = false }, false},
		"OldOne":              {func(now, _ *Status) { now.Version = "1.0.0" }, false},
		"OldStatus":           {func(now, _ *Status) { now.Time = began.Add(-time.Second) }, false},
		"Alone":               {func(now, _ *Status) { now.Answered = time.Time{}; now.Service = "no answer" }, false},
		"AloneAsBefore":       {func(now, before *Status) { now.Answered, before.Service = time.Time{}, "no answer" }, true},
		"Fails":               {func(now, _ *Status) { now.Error = "connect" }, false},
		"FailsAsBefore":       {func(now, before *Status) { now.Error, before.Error = "connect", "connect" }, true},
		"NothingBefore":       {func(now, before *Status) { now.Answered, before.Running = time.Time{}, false }, true},
		"NothingBeforeOrNow":  {func(now, before *Status) { now.Running, before.Running = false, false }, false},
		"AnsweredLongBefore ": {func(now, _ *Status) { now.Answered = began.Add(-time.Minute) }, false},
	} {
		now, old := well, before
		c.change(&now, &old)
		if err := unproven(now, "2.0.0", old, began); (err == nil) != c.proven {
			t.Errorf("%s: %v", name, err)
		}
	}
}
