package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"golang.org/x/sys/unix"

	"rehost/capture/bpf"
	"rehost/e2e/site"
	"rehost/internal/fault"
)

// What a program may hold after all that, with two disks recorded and one beside:
// several times what was measured, and far from what a leak comes to in an hour.
const (
	mostFiles      = 200
	mostGoroutines = 300
	mostThreads    = 120
)

// TestSoak lets everything go wrong, one after the other and in random order, while
// disks are written to: programs are killed and stopped, connections cut, delayed,
// held and truncated, the staging disk is full, bandwidth and load change,
// replication is paused, the source server reboots. Each recovery point on the way
// is judged, and in the end, at rest, the newest one equals the disks byte for byte,
// the store verifies and no program holds more than it should.
//
// SOAK says how long faults go on, SOAK_SEED in which order. As a test it is each
// fault once; `make soak` takes an hour.
func TestSoak(t *testing.T) {
	need(t, "mke2fs")
	if err := bpf.Supported(); err != nil {
		t.Skipf("SKIPPED: without the kernel's marks there are no points under load: %v", err)
	}
	s := newSoak(t)
	began, decks := time.Now(), 0
	for ; decks == 0 || time.Since(began) < s.length; decks++ {
		s.deck()
	}
	s.recorder.Stop()
	s.calm()
	t.Logf("%d rounds of faults in %v: %v", decks, time.Since(began).Round(time.Second), s.did)
	s.end()
}

// A soak is a service, a replication server and an agent, with bad networks between.
type soak struct {
	*world
	rnd        *rand.Rand
	length     time.Duration
	id         string
	disks      []*fault.Disk
	recorder   *fault.Recorder // writes to all but the last of them
	calm       func()          // ends what is written to the last
	control    *fault.Proxy    // between agent and service
	data       *fault.Proxy    // between agent and replication server
	replicator *site.Process
	args       []string // of the replication server
	jury       *jury
	did        map[string]int
	watch      *watch
}

const pace = 20 * time.Millisecond // of each of the recorder's writers

func newSoak(t *testing.T) *soak {
	s := &soak{length: time.Second, did: map[string]int{}}
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if s.length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	t.Logf("seed %d, faults for %v", seed, s.length)
	s.rnd = rand.New(rand.NewPCG(seed, 0))
	s.disks = []*fault.Disk{fault.Loop(t, 768<<10), fault.Loop(t, 512<<10+512*3), fault.Loop(t, 24<<20)}
	fill(t, s.disks[2].Path, s.rnd)

	// Replicas are not thinned out yet: about 3 MB a second stay.
	staging := fault.Loop(t, 2<<30+int64(s.length/time.Second)*6<<20)
	run(t, "mke2fs", "-q", "-t", "ext4", "-F", staging.Path)
	s.world = newWorld(t, 4*time.Minute+3*s.length, mount(t, staging.Path), "--no-replicator")
	s.control = fault.Between(t, fmt.Sprintf("127.0.0.1:%d", s.config.Port))
	port, err := site.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	s.data = fault.Between(t, listen)
	s.args = []string{"replicator", "--data", s.config.Data, "--endpoint", s.service.Endpoint, "--listen", listen, "--address", s.data.Address}
	s.watch = observe(t)
	s.watch.follow("service", s.service.Process)
	t.Cleanup(func() { s.replicator.Kill() })
	s.runReplicator()
	s.recorder = fault.Record(t, seed, pace, s.disks[:2]...)
	s.calm = scribble(t, s.disks[2:], seed)
	s.install()
	server, err := s.service.Server(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.id = aws.ToString(server.SourceServerID)
	eventually(t, s.ctx, "the first point", func() bool {
		server, err := s.service.Server(s.ctx)
		return err == nil && aws.ToString(server.DataReplicationInfo.LastSnapshotDateTime) != ""
	})
	s.jury = newJury(s.recorder, s.replica(s.id), 2)
	return s
}

// install installs an agent that knows the service by the bad network only.
func (s *soak) install() {
	s.t.Helper()
	var paths []string
	for _, d := range s.disks {
		paths = append(paths, d.Path)
	}
	if out, err := s.installed(s.state, s.installer(), strings.Join(paths, ","), "--ca-fingerprint", s.fingerprint(), "--endpoint", "https://"+s.control.Address); err != nil {
		s.t.Fatalf("install: %v: %s", err, out)
	}
	s.startAgent()
}

func (s *soak) startAgent()   { s.t.Helper(); s.runAgent(); s.watch.follow("agent", s.agent) }
func (s *soak) startService() { s.t.Helper(); s.serve(); s.watch.follow("service", s.service.Process) }

func (s *soak) runReplicator() {
	s.t.Helper()
	p, err := site.Start(s.ctx, s.log, "ready", filepath.Join(s.bin, "rehost"), s.args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.replicator = p
	s.watch.follow("replicator", p)
}

// deck is every fault once, in random order.
func (s *soak) deck() {
	faults := map[string]func(){
		"kill agent":          func() { s.kill(s.agent); s.startAgent() },
		"kill service":        func() { s.kill(s.service.Process); s.startService() },
		"kill replicator":     func() { s.kill(s.replicator); s.runReplicator() },
		"stop agent":          func() { s.freeze(s.agent) },
		"stop service":        func() { s.freeze(s.service.Process) },
		"stop replicator":     func() { s.freeze(s.replicator) },
		"cut":                 func() { s.control.Cut(); s.data.Cut() },
		"cut data":            func() { s.data.Cut() },
		"delay":               func() { s.spoil(func(p *fault.Proxy) { p.Delay(time.Duration(1+s.rnd.IntN(80)) * time.Millisecond) }) },
		"hold":                func() { s.spoil((*fault.Proxy).Hold) },
		"truncate":            func() { s.spoil(func(p *fault.Proxy) { p.Truncate(s.rnd.Int64N(200 << 10)); p.Cut() }) },
		"staging disk full":   s.stagingFull,
		"throttle":            s.throttle,
		"pause replication":   s.pause,
		"reboot":              s.reboot,
		"burst of small ones": func() { s.recorder.Pace(0); s.rest(); s.recorder.Pace(pace) },
		"burst of long ones":  func() { stop := scribble(s.t, s.disks[2:], s.rnd.Uint64()); s.rest(); stop() },
	}
	names := slices.Sorted(maps.Keys(faults))
	s.rnd.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		fmt.Fprintf(s.log, "soak: %s\n", name)
		faults[name]()
		s.did[name]++
		s.rest()
		if s.t.Failed() {
			s.t.Fatalf("after %q", name)
		}
	}
}

// rest is up to a second, or, where there is time for it, so long that some faults
// are noticed by who waits for an answer, and replication recovers from others.
// Points are judged meanwhile.
func (s *soak) rest() {
	s.t.Helper()
	if s.length <= time.Minute {
		time.Sleep(time.Duration(s.rnd.Int64N(int64(time.Second))))
		return
	}
	d := time.Duration(s.rnd.Int64N(int64(1+s.rnd.IntN(20)) * int64(time.Second)))
	end := time.Now().Add(d)
	s.sit(d)
	time.Sleep(time.Until(end))
}

// sit has points judged for so long, the newest first.
func (s *soak) sit(d time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, d)
	defer cancel()
	if err := s.jury.replica.Refresh(); err != nil {
		s.t.Fatal(err)
	}
	if err := s.jury.sit(ctx); err != nil {
		s.t.Error(err)
	}
}

func (s *soak) kill(p *site.Process) {
	s.t.Helper()
	if err := p.Kill(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) freeze(p *site.Process) {
	s.t.Helper()
	if err := p.Signal(unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	s.rest()
	if err := p.Signal(unix.SIGCONT); err != nil {
		s.t.Fatal(err)
	}
}

// spoil makes one of the networks a bad one for a while.
func (s *soak) spoil(how func(*fault.Proxy)) {
	p := []*fault.Proxy{s.control, s.data, s.data}[s.rnd.IntN(3)]
	how(p)
	s.rest()
	p.Heal()
}

func (s *soak) stagingFull() {
	s.t.Helper()
	var st unix.Statfs_t
	f, err := os.Create(filepath.Join(s.config.Data, "ballast"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Statfs(s.config.Data, &st); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-24<<20); err != nil {
		s.t.Fatal(err)
	}
	s.rest()
	if err := os.Remove(f.Name()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) throttle() {
	s.t.Helper()
	throttle(s.t, s.world, s.id, 1+s.rnd.Int64N(40))
	s.rest()
	throttle(s.t, s.world, s.id, 10_000)
}

func (s *soak) pause() {
	s.t.Helper()
	if _, err := s.service.API.PauseReplication(s.ctx, &mgn.PauseReplicationInput{SourceServerID: &s.id}); err != nil {
		s.t.Fatal(err)
	}
	s.rest()
	if _, err := s.service.API.ResumeReplication(s.ctx, &mgn.ResumeReplicationInput{SourceServerID: &s.id}); err != nil {
		s.t.Fatal(err)
	}
}

// reboot is one as far as tracking can tell: what it had pinned is gone, and nobody
// saw what was written before the agent started.
func (s *soak) reboot() {
	s.t.Helper()
	s.kill(s.agent)
	if err := os.RemoveAll(filepath.Join(s.bpffs, "rehost-agent")); err != nil {
		s.t.Fatal(err)
	}
	s.rest()
	s.startAgent()
}

// end looks at what is left when all is quiet.
func (s *soak) end() {
	t := s.t
	t.Helper()
	s.kill(s.agent) // which would wait half a minute by now before it tries again
	s.startAgent()
	quiet := time.Now()
	eventually(t, s.ctx, "a point behind the last write", func() bool {
		if err := s.jury.replica.Refresh(); err != nil {
			t.Fatal(err)
		}
		p, ok := s.jury.replica.Consistent()
		return ok && p.Time.After(quiet)
	})
	s.equal(s.id, s.disks)
	s.sit(time.Minute + s.length/20)
	points, lag := 0, time.Duration(0)
	var last time.Time
	for _, p := range s.jury.replica.Points() {
		if !p.Consistent() {
			continue
		}
		if points++; !last.IsZero() {
			lag = max(lag, p.Time.Sub(last))
		}
		last = p.Time
	}
	t.Logf("%v; of %d points %v; worst lag %v; points withdrawn %d times", s.recorder, points, s.jury, lag.Round(time.Millisecond),
		strings.Count(s.log.text(), "withdrawing recovery points"))
	if s.length < time.Minute && len(s.jury.judged) < points || points < 20 {
		t.Errorf("%d points, %d judged", points, len(s.jury.judged))
	}
	data := s.config.Data
	if out, err := s.command(nil, "rehost", "store", "--dir", filepath.Join(data, "store"), "--key", filepath.Join(data, "store.key"), "verify", s.id); err != nil {
		t.Errorf("verify the store: %v: %s", err, out)
	}
	s.watch.judge()
	for name, p := range map[string]*site.Process{"agent": s.agent, "service": s.service.Process, "replicator": s.replicator} {
		if n := s.goroutines(p); n == 0 || n > mostGoroutines {
			t.Errorf("the %s had %d goroutines in the end, more than 0 and at most %d are right", name, n, mostGoroutines)
		} else {
			t.Logf("the %s had %d goroutines in the end", name, n)
		}
	}
}

// goroutines ends a program that shows its stacks then, and counts them.
func (s *soak) goroutines(p *site.Process) int {
	s.t.Helper()
	before := len(s.log.text())
	if err := p.Signal(syscall.SIGQUIT); err != nil {
		s.t.Fatal(err)
	}
	<-p.Done()
	return len(regexp.MustCompile(`(?m)^goroutine \d+ `).FindAllString(s.log.text()[before:], -1))
}

// A watch looks at what programs hold, twice a second.
type watch struct {
	t *testing.T

	mu      sync.Mutex // guards:
	running map[string]int
	most    map[string]held
}

// held is what a program has of the machine.
type held struct{ files, threads, rssKiB int }

// observe looks until the test ends.
func observe(t *testing.T) *watch {
	w := &watch{t: t, running: map[string]int{}, most: map[string]held{}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for range paced(ctx, 500*time.Millisecond) {
			w.look()
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return w
}

func (w *watch) follow(name string, p *site.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name] = p.PID()
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, pid := range w.running {
		dir := fmt.Sprintf("/proc/%d", pid)
		files, err := os.ReadDir(dir + "/fd")
		text, err2 := os.ReadFile(dir + "/status")
		if err != nil || err2 != nil {
			continue // it is being killed
		}
		most := w.most[name]
		most.files = max(most.files, len(files))
		for field, to := range map[string]*int{"Threads:": &most.threads, "VmHWM:": &most.rssKiB} {
			if _, rest, ok := strings.Cut(string(text), field); ok {
				if n, err := strconv.Atoi(strings.Fields(rest)[0]); err == nil {
					*to = max(*to, n)
				}
			}
		}
		w.most[name] = most
	}
}

func (w *watch) judge() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range []string{"agent", "service", "replicator"} {
		m := w.most[name]
		w.t.Logf("the %s held at most %d files and %d threads; RSS at most %d MiB", name, m.files, m.threads, m.rssKiB>>10)
		if m.files == 0 || m.files > mostFiles || m.threads > mostThreads {
			w.t.Errorf("the %s: more than 0 and at most %d files, at most %d threads are right", name, mostFiles, mostThreads)
		}
	}
}
