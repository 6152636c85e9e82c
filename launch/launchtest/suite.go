package launchtest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rehost/export"
	"rehost/launch"
)

// patience is how long a guest may take to get somewhere on a busy machine
// without hardware virtualisation.
const patience = 40 * time.Second

// A suite is one target with disks to launch from.
type suite struct {
	target launch.Target
	socket string
	server *export.Server
}

// Run runs the suite. Every test gets a target of its own from open, which may
// skip it; the suite closes it and terminates what it launched.
func Run(t *testing.T, open func(t *testing.T) launch.Target) {
	for name, test := range map[string]func(*testing.T, suite){
		"Life":           life,
		"Repeat":         repeat,
		"Concurrent":     concurrent,
		"BadSpec":        badSpec,
		"NothingLeft":    nothingLeft,
		"FirstBoot":      firstBoot,
		"PowerOff":       powerOff,
		"Identity":       identity,
		"Hydration":      hydration,
		"TerminateEarly": terminateEarly,
		"Closed":         closed,
	} {
		t.Run(name, func(t *testing.T) {
			socket, server := Serve(t, map[string]export.Device{
				"good":  guest("tiny login: ", Halt),
				"panic": guest("tiny\r\nKernel panic - not syncing: no root\r\n", Halt),
				"mute":  guest("nothing of interest\r\n", Halt),
				"off":   guest("good bye\r\n", PowerOff),
			})
			target := open(t)
			t.Cleanup(func() { cleanUp(t, target) })
			test(t, suite{target, socket, server})
		})
	}
}

func cleanUp(t *testing.T, target launch.Target) {
	ctx := context.Background()
	list, err := target.Instances(ctx)
	if err != nil {
		t.Errorf("list instances to terminate: %v", err)
	}
	for _, in := range list {
		if err := target.Terminate(ctx, in.ID); err != nil && !errors.Is(err, launch.ErrClosed) {
			t.Error(err)
		}
	}
	if err := target.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (s suite) spec(id, export string) launch.Spec { return SpecFor(id, s.socket, export, 8<<20) }

func (s suite) launch(t *testing.T, spec launch.Spec) launch.Instance {
	t.Helper()
	in, err := s.target.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// Await describes the instance until ok says yes.
func Await(t *testing.T, target launch.Target, id string, ok func(launch.Instance) bool) launch.Instance {
	t.Helper()
	var in launch.Instance
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var err error
		if in, err = target.Describe(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if ok(in) {
			return in
		}
	}
	if c, can := target.(launch.Console); can {
		out, _ := c.ConsoleOutput(t.Context(), id, 2000)
		t.Logf("console ends: %s", out)
	}
	t.Fatalf("still %+v after %v", in, patience)
	return in
}

func decided(in launch.Instance) bool { return in.FirstBoot != launch.FirstBootWaiting }

func life(t *testing.T, s suite) {
	spec := s.spec("life", "good")
	spec.Network.Forwards = []launch.Forward{{GuestPort: 80}, {GuestPort: 22}}
	in := s.launch(t, spec)
	if in.ID != spec.ID || in.Name != spec.Name || in.State != launch.Running || in.UUID == "" || in.Started.IsZero() {
		t.Errorf("launched: got %+v", in)
	}
	if len(in.Forwards) != 2 || in.Forwards[0].HostPort == 0 || in.Forwards[0].HostPort == in.Forwards[1].HostPort {
		t.Errorf("forwards: got %+v", in.Forwards)
	}
	in = Await(t, s.target, spec.ID, decided)
	if in.FirstBoot != launch.FirstBootSucceeded || !strings.Contains(in.FirstBootReason, "tiny login:") || in.FirstBootAt.IsZero() {
		t.Errorf("booted: got %+v", in)
	}
	if c, can := s.target.(launch.Console); can {
		if out, err := c.ConsoleOutput(t.Context(), spec.ID, 7); err != nil || string(out) != "login: " {
			t.Errorf("end of console: got %q, %v", out, err)
		}
	}
	if list, err := s.target.Instances(t.Context()); err != nil || len(list) != 1 || list[0].ID != spec.ID {
		t.Errorf("instances: got %+v, %v", list, err)
	}
	for range 2 {
		if err := s.target.Terminate(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.target.Describe(t.Context(), spec.ID); !errors.Is(err, launch.ErrNotFound) {
		t.Errorf("describe after termination: got %v", err)
	}
	if list, err := s.target.Instances(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("instances after termination: got %+v, %v", list, err)
	}
}

func repeat(t *testing.T, s suite) {
	spec := s.spec("again", "good")
	first := s.launch(t, spec)
	if second := s.launch(t, spec); second.UUID != first.UUID {
		t.Errorf("the same spec made another machine: %s, %s", first.UUID, second.UUID)
	}
	spec.MemoryMiB++
	if _, err := s.target.Launch(t.Context(), spec); !errors.Is(err, launch.ErrExists) {
		t.Errorf("another spec: got %v", err)
	}
}

func concurrent(t *testing.T, s suite) {
	var wg sync.WaitGroup
	uuids := make([]string, 4)
	for i := range uuids {
		wg.Go(func() {
			in, err := s.target.Launch(t.Context(), s.spec("same", "good"))
			if err != nil {
				t.Error(err)
			}
			uuids[i] = in.UUID
		})
	}
	wg.Wait()
	for _, u := range uuids {
		if u != uuids[0] {
			t.Fatalf("several machines of one id: %v", uuids)
		}
	}
}

func badSpec(t *testing.T, s suite) {
	for name, breakIt := range map[string]func(*launch.Spec){
		"id that climbs":   func(x *launch.Spec) { x.ID = "../x" },
		"no id":            func(x *launch.Spec) { x.ID = "" },
		"no boot mode":     func(x *launch.Spec) { x.BootMode = "" },
		"no CPU":           func(x *launch.Spec) { x.CPUs = 0 },
		"no memory":        func(x *launch.Spec) { x.MemoryMiB = 0 },
		"no disk":          func(x *launch.Spec) { x.Disks = nil },
		"no boot disk":     func(x *launch.Spec) { x.Disks[0].Boot = false },
		"two boot disks":   func(x *launch.Spec) { d := x.Disks[0]; d.Name = "d1"; x.Disks = append(x.Disks, d) },
		"one name twice":   func(x *launch.Spec) { d := x.Disks[0]; d.Boot = false; x.Disks = append(x.Disks, d) },
		"disk that climbs": func(x *launch.Spec) { x.Disks[0].Name = "../d0" },
		"odd size":         func(x *launch.Spec) { x.Disks[0].Size++ },
		"relative socket":  func(x *launch.Spec) { x.Disks[0].Socket = "nbd" },
		"long socket":      func(x *launch.Spec) { x.Disks[0].Socket = "/" + strings.Repeat("x", 107) },
		"port 0":           func(x *launch.Spec) { x.Network.Forwards = []launch.Forward{{}} },
		"port twice":       func(x *launch.Spec) { x.Network.Forwards = []launch.Forward{{GuestPort: 1}, {GuestPort: 1}} },
		"network":          func(x *launch.Spec) { x.Network.Mode = "bridge,script=x" },
		"pattern":          func(x *launch.Spec) { x.FirstBoot.Success = "(" },
	} {
		spec := s.spec("bad", "good")
		breakIt(&spec)
		if _, err := s.target.Launch(t.Context(), spec); !errors.Is(err, launch.ErrBadSpec) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if list, err := s.target.Instances(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("instances: got %+v, %v", list, err)
	}
}

// nothingLeft: a launch that cannot work is an error and no instance, and the
// id is free for one that can.
func nothingLeft(t *testing.T, s suite) {
	spec := s.spec("half", "good")
	for name, breakIt := range map[string]func(*launch.Disk){
		"no server": func(d *launch.Disk) { d.Socket = filepath.Join(t.TempDir(), "none") },
		"no export": func(d *launch.Disk) { d.Export = "none" },
	} {
		bad := spec
		bad.Disks = []launch.Disk{spec.Disks[0]}
		breakIt(&bad.Disks[0])
		if in, err := s.target.Launch(t.Context(), bad); err == nil {
			t.Errorf("%s: got %+v", name, in)
		}
		if _, err := s.target.Describe(t.Context(), spec.ID); !errors.Is(err, launch.ErrNotFound) {
			t.Errorf("%s: describe: got %v", name, err)
		}
	}
	s.launch(t, spec)
}

func firstBoot(t *testing.T, s suite) {
	for _, c := range []struct {
		name, export string
		check        launch.FirstBootCheck
		want         launch.FirstBoot
		reason       string
	}{
		{"panic", "panic", launch.FirstBootCheck{}, launch.FirstBootStopped, "Kernel panic - not syncing: no root"},
		{"unknown", "mute", launch.FirstBootCheck{Timeout: 3 * time.Second}, launch.FirstBootUnknown, "3s"},
		{"marker", "mute", launch.FirstBootCheck{Success: `of interest$`}, launch.FirstBootSucceeded, "nothing of interest"},
		{"failure", "mute", launch.FirstBootCheck{Failure: `nothing of`}, launch.FirstBootStopped, "nothing"},
	} {
		spec := s.spec(c.name, c.export)
		spec.FirstBoot = c.check
		s.launch(t, spec)
		in := Await(t, s.target, spec.ID, decided)
		if in.FirstBoot != c.want || !strings.Contains(in.FirstBootReason, c.reason) || in.State != launch.Running {
			t.Errorf("%s: got %+v, want %s by %q", c.name, in, c.want, c.reason)
		}
		if err := s.target.Terminate(t.Context(), spec.ID); err != nil {
			t.Error(err)
		}
	}
}

func powerOff(t *testing.T, s suite) {
	s.launch(t, s.spec("off", "off"))
	in := Await(t, s.target, "off", func(in launch.Instance) bool { return in.State == launch.Stopped && decided(in) })
	if in.FirstBoot != launch.FirstBootStopped {
		t.Errorf("got %+v", in)
	}
}

// identity: two machines from one disk are two machines.
func identity(t *testing.T, s suite) {
	a, b := s.launch(t, s.spec("one", "good")), s.launch(t, s.spec("two", "good"))
	if a.UUID == b.UUID {
		t.Errorf("both have UUID %s", a.UUID)
	}
	if err := s.target.Terminate(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if in := Await(t, s.target, "two", decided); in.State != launch.Running || in.FirstBoot != launch.FirstBootSucceeded {
		t.Errorf("after the other was terminated: %+v", in)
	}
}

// hydration: once it is complete, the source may go away.
func hydration(t *testing.T, s suite) {
	spec := s.spec("cutover", "good")
	spec.HydrateDisks = true
	if in := s.launch(t, spec); !in.Hydration.Requested || in.Hydration.Total != 8<<20 {
		t.Errorf("launched: got %+v", in.Hydration)
	}
	in := Await(t, s.target, spec.ID, func(in launch.Instance) bool { return in.Hydration.Complete })
	if in.Hydration.Done != in.Hydration.Total || in.Hydration.Error != "" {
		t.Errorf("complete: got %+v", in.Hydration)
	}
	if err := s.server.Close(); err != nil {
		t.Fatal(err)
	}
	in = Await(t, s.target, spec.ID, decided)
	if in.State != launch.Running || in.FirstBoot != launch.FirstBootSucceeded {
		t.Errorf("without its source: got %+v", in)
	}
}

func terminateEarly(t *testing.T, s suite) {
	if err := s.target.Terminate(t.Context(), "never-launched"); err != nil {
		t.Error(err)
	}
	s.launch(t, s.spec("early", "good"))
	if err := s.target.Terminate(t.Context(), "early"); err != nil {
		t.Fatal(err)
	}
	s.launch(t, s.spec("early", "good")) // the id is free again
}

func closed(t *testing.T, s suite) {
	for range 2 {
		if err := s.target.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.target.Launch(t.Context(), s.spec("late", "good")); !errors.Is(err, launch.ErrClosed) {
		t.Errorf("launch: got %v", err)
	}
}
