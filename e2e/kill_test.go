package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"golang.org/x/sys/unix"

	"rehost/awsapi"
	"rehost/capture/bpf"
	"rehost/internal/fault"
)

const (
	killsInCopy = 12 // while the first copy is under way
	killsLater  = 24
)

// TestKill kills service and agent, the real programs, without a moment's notice
// again and again, during the first copy and afterwards, while two disks are
// written to. Whenever the service is up, it must say sensible things; what it
// has called a recovery point stays one; and in the end, at rest, the replica
// equals the disks byte by byte. Where the kernel tracks, an agent that is killed
// never makes anything be copied again.
func TestKill(t *testing.T) {
	need(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	disks := []*fault.Disk{fault.Loop(t, 96<<20), fault.Loop(t, 64<<20+512)}
	for _, d := range disks {
		fill(t, d.Path, rnd)
	}
	w := newWorld(t, 3*time.Minute, t.TempDir())
	w.install(disks)
	o := newObserver(w)
	throttle(t, w, o.id, 80) // the first copy takes at least 10 s, and is started again and again
	stop := scribble(t, disks, seed)

	kills := map[string]int{}
	for n := range killsInCopy + killsLater {
		if n == killsInCopy {
			throttle(t, w, o.id, 10_000) // not 0, which the SDK would not send
		}
		during, rest := "the first copy", 1500
		if n >= killsInCopy {
			during, rest = "later", 3500
		}
		o.watch(time.Duration(rnd.IntN(rest)) * time.Millisecond)
		victims := []string{"agent", "service"}[rnd.IntN(2):]
		if rnd.IntN(5) > 0 {
			victims = victims[:1]
		}
		for _, victim := range victims {
			kills[victim+" in "+during]++
			o.kill(victim)
		}
	}
	// The first rest in which both live is the first in which a point is sure to come.
	if n := o.states[types.DataReplicationStateRescan]; n > 0 && bpf.Supported() == nil {
		t.Errorf("RESCAN was seen %d times, though tracking went on", n)
	}
	o.until("a point under load", func() bool { return o.last.After(o.agentKilled) })
	stop()
	quiet := time.Now()
	o.until("a point behind the last write", func() bool { return o.last.After(quiet) })
	t.Logf("agents that took tracking over: %d, that began anew: %d", strings.Count(w.log.text(), `keeps="went on`), strings.Count(w.log.text(), `keeps="goes on`)+strings.Count(w.log.text(), `keeps="began`))
	t.Logf("kills: %v; %d looks, %d points seen; states: %v", kills, o.looks, len(o.points), o.states)

	replica := w.equal(o.id, disks)
	there := map[string]bool{}
	for _, p := range replica.Points() {
		if p.Consistent() {
			there[awsapi.DateTime(p.Time)] = true
		}
	}
	if retracted := strings.Contains(w.log.text(), "withdrawing recovery points"); retracted {
		t.Log("the agent has withdrawn points: which are still there is not judged")
	} else {
		for at := range o.points {
			if !there[at] {
				t.Errorf("the point of %s was reported and is gone", at)
			}
		}
	}
	if len(o.points) < 5 {
		t.Errorf("only %d points were seen in the whole run", len(o.points))
	}
}

// An observer looks at the one source server through the API, and does not
// believe everything.
type observer struct {
	*world
	id          string
	looks       int
	states      map[types.DataReplicationState]int
	points      map[string]bool // lastSnapshotDateTime as it was seen
	last        time.Time       // the newest of them
	agentKilled time.Time
}

func newObserver(w *world) *observer {
	server, err := w.service.Server(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return &observer{world: w, id: aws.ToString(server.SourceServerID), states: map[types.DataReplicationState]int{}, points: map[string]bool{}}
}

// watch looks again and again for so long.
func (o *observer) watch(d time.Duration) {
	o.t.Helper()
	end := time.Now().Add(d)
	o.look()
	for time.Now().Before(end) {
		time.Sleep(min(50*time.Millisecond, time.Until(end)))
		o.look()
	}
}

func (o *observer) until(what string, f func() bool) {
	o.t.Helper()
	eventually(o.t, o.ctx, what, func() bool { o.look(); return f() })
}

// look asks once and judges the answer.
func (o *observer) look() types.SourceServer {
	o.t.Helper()
	server, err := o.service.Server(o.ctx)
	now := time.Now()
	if err != nil {
		o.t.Fatalf("the service is up and does not answer: %v", err)
	}
	o.looks++
	info := server.DataReplicationInfo
	state, point := info.DataReplicationState, aws.ToString(info.LastSnapshotDateTime)
	o.states[state]++
	if id := aws.ToString(server.SourceServerID); id != o.id {
		o.t.Fatalf("the source server was %s and is %s", o.id, id)
	}
	if point != "" && !o.points[point] {
		at, err := awsapi.ParseDateTime(point)
		if err != nil {
			o.t.Fatal(err)
		}
		o.points[point] = true
		if at.After(o.last) {
			o.last = at
		}
	}
	before, could := o.last.IsZero(), []types.DataReplicationState{"INITIATING", "RESCAN", "BACKLOG", "CREATING_SNAPSHOT", "CONTINUOUS", "STALLED"}
	if before {
		could[1] = "INITIAL_SYNC"
	}
	if !slices.Contains(could, state) {
		o.t.Errorf("state %s while the last point is of %q", state, point)
	}
	if (state == types.DataReplicationStateStalled) != (info.DataReplicationError != nil) {
		o.t.Errorf("state %s with error %+v", state, info.DataReplicationError)
	}
	if want := map[bool]types.LifeCycleState{true: "NOT_READY", false: "READY_FOR_TEST"}[before]; server.LifeCycle.State != want {
		o.t.Errorf("life cycle %s, want %s: the last point is of %q", server.LifeCycle.State, want, point)
	}
	if before != (point == "") {
		o.t.Errorf("the last point was of %v and is of %q", o.last, point)
	}
	o.judgeLag(info, now)
	return server
}

// judgeLag: writes never stop, so that nothing after the last point, or after
// the death of the agent that could know better, can be in the replica.
func (o *observer) judgeLag(info *types.DataReplicationInfo, now time.Time) {
	o.t.Helper()
	if o.last.IsZero() || o.agentKilled.IsZero() || o.last.After(o.agentKilled) {
		return
	}
	if info.DataReplicationState == types.DataReplicationStateContinuous && now.Sub(o.agentKilled) > 10*time.Second {
		o.t.Errorf("CONTINUOUS, %v after the agent's death and without a point since", now.Sub(o.agentKilled))
	}
	var lag time.Duration
	if text := aws.ToString(info.LagDuration); text != "" {
		var err error
		if lag, err = parseDuration(text); err != nil {
			o.t.Fatal(err)
		}
	}
	if least := now.Sub(o.agentKilled) - 2*time.Second; lag < least {
		o.t.Errorf("lag is %v in state %s; the agent was killed %v ago, and no point has come since", lag, info.DataReplicationState, now.Sub(o.agentKilled))
	}
}

// kill ends one program and starts it again.
func (o *observer) kill(victim string) {
	o.t.Helper()
	if victim == "service" {
		if err := o.service.Kill(); err != nil {
			o.t.Fatal(err)
		}
		o.serve()
		return
	}
	if err := o.agent.Kill(); err != nil {
		o.t.Fatal(err)
	}
	o.agentKilled = time.Now()
	o.runAgent()
}

// parseDuration reads ISO 8601 durations of the API, as P1DT2H3M4.5S.
func parseDuration(text string) (time.Duration, error) {
	days, rest, _ := strings.Cut(strings.TrimPrefix(text, "P"), "T")
	d, err := time.ParseDuration("0h" + strings.ToLower(rest))
	if n, isDays := strings.CutSuffix(days, "D"); err == nil && isDays {
		var whole time.Duration
		whole, err = time.ParseDuration(n + "h")
		d += 24 * whole
	}
	return d, err
}

func throttle(t *testing.T, w *world, id string, mbit int64) {
	t.Helper()
	if _, err := w.service.API.UpdateReplicationConfiguration(w.ctx, &mgn.UpdateReplicationConfigurationInput{SourceServerID: &id, BandwidthThrottling: mbit}); err != nil {
		t.Fatal(err)
	}
}

// fill makes a disk full of noise, but for every third MiB.
func fill(t *testing.T, path string, rnd *rand.Rand) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(chunk)) {
		noise(rnd, chunk)
		if off>>20%3 == 2 {
			continue
		}
		if _, err := f.WriteAt(chunk[:min(int64(len(chunk)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func noise(rnd *rand.Rand, b []byte) {
	for i := 0; i+8 <= len(b); i += 8 {
		v := rnd.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
}

// scribble writes to the disks, past the page cache, until stop is called: noise,
// zeros, and discards, about 2 MB/s on each.
func scribble(t *testing.T, disks []*fault.Disk, seed uint64) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for n, d := range disks {
		f, err := os.OpenFile(d.Path, os.O_WRONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Seek(0, 2)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer f.Close()
			rnd := rand.New(rand.NewPCG(seed, uint64(n+1)))
			block, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Munmap(block)
			for range paced(ctx, 8*time.Millisecond) {
				length := int64(4096 * (1 + rnd.IntN(8)))
				off := rnd.Int64N((size-length)/4096) * 4096
				if rnd.IntN(10) == 0 {
					clear(block[:length])
				} else {
					noise(rnd, block[:length])
				}
				if _, err := f.WriteAt(block[:length], off); err != nil {
					t.Errorf("write to %s: %v", d.Path, err)
					return
				}
				if rnd.IntN(16) == 0 {
					if err := discard(f, off, length); err != nil {
						t.Errorf("discard on %s: %v", d.Path, err)
						return
					}
				}
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); wg.Wait() }) }
	t.Cleanup(stop)
	return stop
}

// discard gives blocks back, which then read as zero.
func discard(f *os.File, off, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}
