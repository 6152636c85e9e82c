package audit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A poller is a log with a clock that the test moves, and an agent that calls.
type poller struct {
	*Log
	t   *testing.T
	dir string
	now time.Time
}

func newPoller(t *testing.T) *poller {
	p := &poller{t: t, dir: t.TempDir(), now: time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)}
	p.Log = open(t, p.dir, func(o *Options) { o.Now = func() time.Time { return p.now } })
	return p
}

// poll is a call that an agent repeats.
func poll(change ...func(*Record)) Record {
	r := Record{EventType: APICall, EventName: "GetAgentCommandForMgn", EventSource: "mgn.amazonaws.com", ReadOnly: true, SourceIPAddress: "192.0.2.1", RequestID: NewID(),
		UserIdentity: UserIdentity{Type: "AssumedRole", PrincipalID: "AROAX:s-1", AccessKeyID: "ASIA1"}, RequestParameters: map[string]any{"sourceServerID": "s-1"},
		AdditionalEventData: &AdditionalEventData{Decision: "allowed", Reason: "allowed by statement A", TookMicroseconds: time.Now().UnixNano() % 1000, HTTPStatus: 200}}
	for _, c := range change {
		c(&r)
	}
	return r
}

func denied(r *Record) {
	r.ErrorCode, r.AdditionalEventData.Decision = "AccessDeniedException", "denied"
}
func failed(r *Record) { r.ErrorCode = "ConflictException" }

func elsewhere(r *Record) { r.SourceIPAddress = "198.51.100.9" }

// calls makes one call a second.
func (p *poller) calls(n int, change ...func(*Record)) {
	p.t.Helper()
	for range n {
		p.now = p.now.Add(time.Second)
		must(p.t, p.Repeat(poll(change...)))
	}
}

// story is what the log says, a word a record: decision or error, and how many calls it stands for.
func (p *poller) story() (out string) {
	p.t.Helper()
	files, err := Files(p.dir)
	must(p.t, err)
	_, err = Read(files, func(e *Entry, _ []byte) error {
		if e.EventType == ServiceEvent {
			return nil
		}
		what := e.ErrorCode
		if what == "" {
			what = e.SourceIPAddress
		}
		if r := e.AdditionalEventData.Repeated; r != nil {
			what += fmt.Sprintf("*%d[%s-%s]", r.Calls, r.First.Format("04:05"), r.Last.Format("04:05"))
			if !e.EventTime.Equal(r.Last) {
				p.t.Errorf("a record of calls up to %v has the time %v", r.Last, e.EventTime)
			}
		}
		out += " " + what
		return nil
	})
	must(p.t, err)
	if _, err := Verify(p.dir, testKeys); err != nil {
		p.t.Error(err)
	}
	return out
}

func (p *poller) want(want string) {
	p.t.Helper()
	if got := p.story(); got != want {
		p.t.Errorf("the log says\n%s, want\n%s", got, want)
	}
}

// TestLog_Repeat: the first call is there at once, then there is one record for ten
// minutes of them, and one for what is left when the log is closed. After a silence a call is a first one.
func TestLog_Repeat(t *testing.T) {
	p := newPoller(t)
	p.calls(1)
	p.want(" 192.0.2.1")
	p.calls(599)
	p.want(" 192.0.2.1")
	p.calls(300)
	p.want(" 192.0.2.1 192.0.2.1*599[00:02-10:00]")
	p.now = p.now.Add(repeatWindow)
	p.sumDue() // as happens every second
	p.want(" 192.0.2.1 192.0.2.1*599[00:02-10:00] 192.0.2.1*300[10:01-15:00]")
	p.now = p.now.Add(repeatWindow)
	p.sumDue()
	if p.repeating != 0 || len(p.repeats) != 0 {
		t.Errorf("%d silent calls are remembered", p.repeating)
	}
	p.calls(3)
	must(t, p.Close())
	p.want(" 192.0.2.1 192.0.2.1*599[00:02-10:00] 192.0.2.1*300[10:01-15:00] 192.0.2.1 192.0.2.1*2[35:02-35:03]")
	if err := p.Repeat(poll()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// somethingElse is each way in which a call is not the repetition of the one before.
var somethingElse = map[string]func(*Record){
	"denied":     denied,
	"failed":     failed,
	"refused":    func(r *Record) { r.AdditionalEventData.Decision = "refused" },
	"address":    elsewhere,
	"statement":  func(r *Record) { r.AdditionalEventData.Reason = "allowed by statement B" },
	"session":    func(r *Record) { r.UserIdentity.AccessKeyID = "ASIA2" },
	"caller":     func(r *Record) { r.UserIdentity.PrincipalID = "AROAX:s-2" },
	"parameters": func(r *Record) { r.RequestParameters = map[string]any{"sourceServerID": "s-2"} },
	"resource": func(r *Record) {
		r.Resources = []Resource{{ARN: "arn:aws:mgn:us-east-1:123456789012:source-server/s-2"}}
	},
	"user agent":     func(r *Record) { r.UserAgent = "curl" },
	"protocol":       func(r *Record) { r.TLSDetails = &TLSDetails{TLSVersion: "TLSv1.2"} },
	"status":         func(r *Record) { r.AdditionalEventData.HTTPStatus = 202 },
	"name":           func(r *Record) { r.EventName = "DescribeSourceServers" },
	"strangers lost": func(r *Record) { r.AdditionalEventData.NotRecorded = 3 },
	"an event":       func(r *Record) { r.EventType = ServiceEvent },
}

// TestLog_RepeatNotTheSame: whatever a call differs in, it has a record at once.
func TestLog_RepeatNotTheSame(t *testing.T) {
	for what, change := range somethingElse {
		t.Run(what, func(t *testing.T) {
			p := newPoller(t)
			p.calls(5)
			before := p.last.Seq
			p.calls(1, change)
			if p.last.Seq == before {
				t.Error("it was counted as one more of those before")
			}
		})
	}
}

// TestLog_RepeatDenied: what was denied or failed is there one by one, in its place among
// what was allowed. A log that counts those too is caught.
func TestLog_RepeatDenied(t *testing.T) {
	tell := func(change func(*poller)) *poller {
		p := newPoller(t)
		change(p)
		p.calls(10)
		p.calls(3, denied)
		p.calls(4)
		p.calls(2, failed)
		p.now = p.now.Add(time.Second)
		must(t, p.Append(poll())) // the same, and it has changed something
		p.calls(2, elsewhere)
		must(t, p.Close())
		return p
	}
	want := " 192.0.2.1 192.0.2.1*9[00:02-00:10] AccessDeniedException AccessDeniedException AccessDeniedException" +
		" 192.0.2.1 192.0.2.1*3[00:15-00:17] ConflictException ConflictException 192.0.2.1 198.51.100.9 198.51.100.9*1[00:22-00:22]"
	tell(func(*poller) {}).want(want)
	broken := tell(func(p *poller) { p.foldable = func(r *Record) bool { return r.AdditionalEventData != nil } })
	if broken.story() == want {
		t.Error("a log that counts what was denied was not caught")
	}
}

// TestLog_RepeatReports: of what a call reports, the record has the last; the order of
// many callers does not matter.
func TestLog_RepeatReports(t *testing.T) {
	p := newPoller(t)
	for i := range 50 {
		for server := range 3 {
			p.calls(1, func(r *Record) {
				r.EventName, r.ReadOnly, r.UserIdentity.PrincipalID = "NotifyAgentReplicationProgressForMgn", false, "AROAY:i-1"
				r.Resources = []Resource{{ARN: fmt.Sprint("source-server/s-", server)}}
				r.RequestParameters = map[string]any{"receivedBytes": i}
			})
		}
	}
	must(t, p.Close())
	var got []any
	files, err := Files(p.dir)
	must(t, err)
	_, err = Read(files, func(e *Entry, _ []byte) error {
		if e.EventType == APICall {
			got = append(got, e.Resources[0].ARN, e.RequestParameters.(map[string]any)["receivedBytes"])
		}
		return nil
	})
	must(t, err)
	if want := "[source-server/s-0 0 source-server/s-1 0 source-server/s-2 0 source-server/s-0 49 source-server/s-1 49 source-server/s-2 49]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestLog_RepeatUnwritable: nothing is counted while nothing can be written; what
// waits and what is lost has its number, as ever.
func TestLog_RepeatUnwritable(t *testing.T) {
	p := newPoller(t)
	p.calls(3)
	room := limitFiles(t, p.size+100)
	for range 4 {
		if err := p.Repeat(poll(elsewhere)); err == nil {
			t.Fatal("a record was written to a full disk")
		}
	}
	if err := p.Repeat(poll()); err == nil {
		t.Error("a call was counted that nobody may be told of")
	}
	room()
	must(t, p.Ready())
	p.calls(2)
	must(t, p.Close())
	p.want(" 192.0.2.1 198.51.100.9 198.51.100.9 198.51.100.9 198.51.100.9 192.0.2.1 192.0.2.1*4[00:02-00:05]")
}

// TestLog_RepeatBound: what callers can have remembered is bounded; the others are recorded.
func TestLog_RepeatBound(t *testing.T) {
	p := newPoller(t)
	p.repeating = maxRepeats
	p.calls(3)
	p.want(" 192.0.2.1 192.0.2.1 192.0.2.1")
}

// TestLog_RepeatConcurrent: whoever calls when, whatever comes between and however the clock
// goes, each call is in a record or in the number of one.
func TestLog_RepeatConcurrent(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	dir := t.TempDir()
	var clock atomic.Int64
	l := open(t, dir, func(o *Options) {
		o.FileSize, o.Files, o.SyncEvery = 64<<10, 1000, time.Millisecond // which also sums up
		o.Now = func() time.Time { return time.Unix(clock.Load(), 0) }
	})
	const callers, each = 8, 400
	var all sync.WaitGroup
	for c := range callers {
		random := rand.New(rand.NewPCG(seed, uint64(c)))
		all.Go(func() {
			for range each {
				r := poll(func(r *Record) { r.UserIdentity.PrincipalID = fmt.Sprint("AROAX:s-", random.IntN(3)) })
				clock.Add(random.Int64N(20))
				var err error
				switch random.IntN(40) {
				case 0:
					err = l.Append(r)
				case 1:
					denied(&r)
					fallthrough
				default:
					err = l.Repeat(r)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	must(t, l.Close())
	calls, records := 0, 0
	files, err := Files(dir)
	must(t, err)
	_, err = Read(files, func(e *Entry, _ []byte) error {
		if e.EventType == ServiceEvent {
			return nil
		}
		records++
		if r := e.AdditionalEventData.Repeated; r == nil {
			calls++
		} else if calls += r.Calls; r.Last.Before(r.First) || e.AdditionalEventData.Decision != "allowed" {
			t.Errorf("record %d: %+v", e.Seq, r)
		}
		return nil
	})
	must(t, err)
	if calls != callers*each || records == calls {
		t.Errorf("%d calls are in %d records, there were %d", calls, records, callers*each)
	}
	if _, err := Verify(dir, testKeys); err != nil {
		t.Error(err)
	}
}
