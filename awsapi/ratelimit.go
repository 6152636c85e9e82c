package awsapi

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Limits say how fast calls may come. A rate of 0 is no limit.
//
// Calls of those who have proven who they are count against their principal:
// the user, the session of a role, or the certificate where that alone
// authenticates. Agents behind one address are therefore as free as agents
// with an address each. All other calls count against where they come from:
// the client certificate of the connection, if TLS has verified one, or else
// the address, of IPv6 its /64. So strangers cannot slow down agents and
// replication servers that share an address with them.
type Limits struct {
	PrincipalRate, PrincipalBurst float64 // calls a second, and at once
	SourceRate, SourceBurst       float64 // tokens a second, and at once, of a source's calls that prove nothing

	// Unlimited, if not nil, is whether an authenticated caller is never slowed
	// down: replication servers report for all their agents.
	Unlimited func(*Caller) bool
}

// DefaultLimits leave room for everything regular: an agent makes about one
// call a second. Somebody who tries keys gets four answers a second.
var DefaultLimits = Limits{PrincipalRate: 100, PrincipalBurst: 1000, SourceRate: 20, SourceBurst: 400}

// What a call that proves nothing costs its source, in tokens.
const (
	priceOfMistake = 1 // not signed, or malformed
	priceOfProbe   = 5 // an unknown key or certificate, or a signature that is wrong
)

// maxTracked bounds how many principals and how many sources are remembered,
// about 200 bytes each. Whoever was not seen for longest is forgotten.
const maxTracked = 16384

// A bucket holds tokens: burst of them at first, rate more a second, never more
// than burst. Its zero value is full.
type bucket struct {
	spent float64
	at    time.Time
}

// refill brings the bucket to the time. An injected clock that goes back gives
// nothing; the readings of time.Now that are compared here never do.
func (b *bucket) refill(now time.Time, rate float64) {
	if elapsed := now.Sub(b.at).Seconds(); elapsed > 0 {
		b.spent = max(0, b.spent-elapsed*rate)
		b.at = now
	}
}

// A meter has a bucket for each of many names. It is safe for concurrent use.
type meter struct {
	rate, burst float64

	mu      sync.Mutex
	buckets map[string]*list.Element // guarded by mu
	recent  list.List                // of *metered, the latest first; guarded by mu
}

type metered struct {
	name string
	bucket
}

func newMeter(rate, burst float64) *meter {
	return &meter{rate: rate, burst: max(burst, 1), buckets: map[string]*list.Element{}}
}

// of is the bucket of a name, brought to now. The caller holds the lock.
func (m *meter) of(name string, now time.Time) *bucket {
	e := m.buckets[name]
	if e == nil {
		if m.recent.Len() >= maxTracked {
			oldest := m.recent.Back()
			delete(m.buckets, m.recent.Remove(oldest).(*metered).name)
		}
		e = m.recent.PushFront(&metered{name: name})
		m.buckets[name] = e
	} else {
		m.recent.MoveToFront(e)
	}
	b := &e.Value.(*metered).bucket
	b.refill(now, m.rate)
	return b
}

// take spends a token, or says how long until there is one.
func (m *meter) take(name string, now time.Time) (wait time.Duration) {
	if m.rate <= 0 {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(name, now)
	if wait = m.wait(b); wait == 0 {
		b.spent++
	}
	return wait
}

// wait is how long until the bucket has a token.
func (m *meter) wait(b *bucket) time.Duration {
	missing := b.spent + 1 - m.burst
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / m.rate * float64(time.Second))
}

// peek is take without spending. Names that it has not met it does not remember.
func (m *meter) peek(name string, now time.Time) (wait time.Duration) {
	if m.rate <= 0 {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buckets[name] == nil {
		return 0
	}
	return m.wait(m.of(name, now))
}

// charge spends tokens whether they are there or not: calls that run at once
// are let in before it is known what they cost. The debt is at most a burst.
func (m *meter) charge(name string, price float64, now time.Time) {
	if m.rate <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(name, now)
	b.spent = min(b.spent+price, 2*m.burst)
}

// sourceOf is what the calls of a stranger count against.
func sourceOf(r *http.Request, from netip.Addr) string {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		sum := sha256.Sum256(r.TLS.VerifiedChains[0][0].Raw)
		return "certificate " + hex.EncodeToString(sum[:])
	}
	if from.Is6() {
		if p, err := from.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return from.String()
}

func throttled(wait time.Duration) *Error {
	return &Error{Name: Throttling, Message: "Rate exceeded", RetryAfter: max(wait, time.Second)}
}

// admitSource refuses a source that has proven nothing too often, before
// anything is looked up for it.
func (c *call) admitSource() error {
	if wait := c.server.sources.peek(sourceOf(c.request, c.caller.SourceIP), c.server.Now()); wait > 0 {
		return &reasonedError{throttled(wait), "too many calls of this source prove nothing"}
	}
	return nil
}

// chargeSource makes a call that was not authenticated cost something. What is
// our fault costs nothing, nor what comes after authentication.
func (c *call) chargeSource(err error) {
	var e *Error
	if !errors.As(err, &e) || c.caller.Principal != nil || c.caller.Peer != "" {
		return
	}
	price := float64(priceOfMistake)
	if e.Name == UnrecognizedClient || e.Name == InvalidSignature {
		price = priceOfProbe
	}
	c.server.sources.charge(sourceOf(c.request, c.caller.SourceIP), price, c.server.Now())
}

// admitCaller counts a call of somebody who has proven who it is, or who need not.
func (c *call) admitCaller() error {
	if c.server.Limits.Unlimited != nil && c.server.Limits.Unlimited(&c.caller) {
		return nil
	}
	meter, name := c.server.principals, c.caller.Peer
	if c.caller.Principal != nil {
		name = c.caller.Principal.ARN
	}
	if name == "" { // an operation that nobody signs: whoever calls it is a stranger
		meter, name = c.server.sources, sourceOf(c.request, c.caller.SourceIP)
	}
	if wait := meter.take(name, c.server.Now()); wait > 0 {
		return &reasonedError{throttled(wait), "too many calls of this principal"}
	}
	return nil
}

// Strangers lets everyone have what h answers, as often as a source may make
// calls that prove nothing.
func (s *Server) Strangers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var from netip.Addr
		if addr, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			from = addr.Addr().Unmap()
		}
		if wait := s.sources.take(sourceOf(r, from), s.Now()); wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		h.ServeHTTP(w, r)
	})
}
