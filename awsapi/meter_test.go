package awsapi

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

// TestMeter_Bounded: more names than are remembered take no more memory, and
// who is busy is not forgotten for those who come once.
func TestMeter_Bounded(t *testing.T) {
	m, now := newMeter(1, 2), time.Unix(1000, 0)
	m.charge("busy", 4, now)
	for n := range 3 * maxTracked {
		m.take(fmt.Sprint(n), now)
		if m.take("busy", now) == 0 {
			t.Fatalf("forgotten after %d others", n)
		}
	}
	if len(m.buckets) != maxTracked || m.recent.Len() != maxTracked {
		t.Errorf("remembers %d and %d", len(m.buckets), m.recent.Len())
	}
	m.peek("a stranger", now)
	if m.buckets["a stranger"] != nil {
		t.Error("asking costs memory")
	}
}

// TestMeter_Rate: over any time no more is let through than burst and rate
// allow, and nearly as much is, whatever the steps of the clock, also backwards.
func TestMeter_Rate(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	m, start := newMeter(10, 50), time.Unix(1000, 0)
	now, latest, let := start, start, 1.0
	m.take("x", start)
	for range 20_000 {
		step := time.Duration(rnd.Int64N(int64(20 * time.Millisecond)))
		if rnd.IntN(10) == 0 {
			step = -step
		}
		if now = now.Add(step); now.After(latest) {
			latest = now
		}
		wait := m.take("x", now)
		if wait == 0 {
			let++
		}
		if most := 50 + 10*latest.Sub(start).Seconds(); let > most+1e-6 {
			t.Fatalf("%v let through, at most %v may be", let, most)
		}
	}
	if least := 0.95 * 10 * latest.Sub(start).Seconds(); let < least {
		t.Errorf("%v let through, want %v or more", let, least)
	}
}

// TestMeter_Debt: however much was charged at once, the way back is bounded.
func TestMeter_Debt(t *testing.T) {
	m, now := newMeter(2, 10), time.Unix(1000, 0)
	for range 1000 {
		m.charge("x", 5, now)
	}
	if wait := m.take("x", now); wait <= 0 || wait > 6*time.Second {
		t.Errorf("wait %v, want 5.5 s", wait)
	}
	if wait := newMeter(0, 0).take("x", now); wait != 0 {
		t.Errorf("no limit: wait %v", wait)
	}
}

// TestSourceOf: who has a network of IPv6 has one source with it.
func TestSourceOf(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"2001:db8::1", "2001:db8::ffff:1", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
	} {
		a, b := sourceOf(r, netip.MustParseAddr(test.a)), sourceOf(r, netip.MustParseAddr(test.b))
		if (a == b) != test.same {
			t.Errorf("%s is %s and %s is %s", test.a, a, test.b, b)
		}
	}
}
