package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Phase is where a root is in its life.
//
//	  rotate --root              all have it,              the next one
//	                         or the overlap is over           issues
//	(none) ------> ANNOUNCED -----------------------> ISSUING ------> RETIRING ------> (gone)
//	               believed                           believed        believed    the last leaf
//	                                                                  cannot sign   has ended
//
// One root issues at any time; at most one is announced. Each step is one change
// of the state on the disk, and one that was done is not done again.
type Phase string

// The phases.
const (
	Announced Phase = "ANNOUNCED"
	Issuing   Phase = "ISSUING"
	Retiring  Phase = "RETIRING"
)

// ErrRotating is wrapped where a root is being replaced already.
var ErrRotating = errors.New("a new root is on its way already")

// settled is how long a new root is known before it can issue, even if all who
// have asked have it: others may be about to ask.
const settled = 10 * time.Second

// RotateIssuer has the root sign another intermediate, which issues from then
// on. What the one before has issued stays good. rootKeyFile is the file that
// the root's key was exported to; "" if it was not.
func (a *Authority) RotateIssuer(rootKeyFile string) error {
	err := a.change(func(s *state) error {
		return a.newIssuerIn(s, rootKeyFile)
	})
	if err != nil {
		return fmt.Errorf("rotate the intermediate: %w", err)
	}
	return nil
}

func (a *Authority) newIssuerIn(s *state, rootKeyFile string) error {
	g := s.issuing()
	if g.Direct {
		return errors.New("this authority is from before there were intermediates: rehost ca rotate --root gives it one")
	}
	key, err := a.rootKey(g, rootKeyFile)
	if err != nil {
		return err
	}
	if err := a.newIssuer(g, key); err != nil {
		return err
	}
	for _, other := range s.Generations { // those who believe only these go on believing
		if other == g || other.Key == "" {
			continue
		}
		key, err := a.rootKey(other, "")
		if err == nil {
			err = other.cross(key, g)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// RotateRoot announces a new root, which issues once everyone has it or the
// overlap is over: see [Authority.Advance]. Where the old root's key is at hand
// it signs the new intermediate, so that those who hear of it late believe it
// too. overlap is 0 for the default. ErrRotating if one is announced already.
func (a *Authority) RotateRoot(rootKeyFile string, overlap time.Duration) error {
	if overlap == 0 {
		overlap = a.options.Overlap
	}
	err := a.change(func(s *state) error {
		if g := s.in(Announced); g != nil {
			return fmt.Errorf("%w: %s, announced %s", ErrRotating, g.Root.Subject.CommonName, g.Since.UTC().Format(time.RFC3339))
		}
		if len(s.Generations) >= maxBundleRoots {
			return fmt.Errorf("%d roots are believed, the most there may be: wait until the oldest is gone", len(s.Generations))
		}
		old := s.issuing()
		g, key, err := a.newGeneration(Announced)
		if err != nil {
			return err
		}
		g.Until = g.Since.Add(overlap)
		if err := g.cross(key, old); err != nil {
			return err
		}
		s.Generations = append(s.Generations, g)
		oldKey, err := a.rootKey(old, rootKeyFile)
		if errors.Is(err, errNoRootKey) || old.Direct {
			return nil
		}
		if err != nil {
			return err
		}
		return old.cross(oldKey, g)
	})
	if err != nil {
		return fmt.Errorf("rotate the root: %w", err)
	}
	return nil
}

// Advance does the steps that are due, and reads the state again where another
// process has changed it. everyone says whether all who can still hold a
// certificate have told that they believe the bundle of that digest. It reports
// whether something has changed, for the one who logs it.
func (a *Authority) Advance(everyone func(digest string) bool) (changed bool, err error) {
	if err := a.load(); err != nil {
		return false, fmt.Errorf("authority: %w", err)
	}
	if !a.due(everyone) {
		return false, nil
	}
	err = a.change(func(s *state) error {
		changed = a.advance(s, everyone)
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("authority: %w", err)
	}
	return changed, nil
}

func (a *Authority) due(everyone func(string) bool) bool {
	a.mu.Lock()
	alone := len(a.state.Generations) == 1
	a.mu.Unlock()
	if alone {
		return false
	}
	s, err := a.read() // a copy, to try on
	return err == nil && s != nil && a.advance(s, everyone)
}

// advance changes s as is due.
func (a *Authority) advance(s *state, everyone func(string) bool) (changed bool) {
	now := a.options.Time()
	if g := s.in(Announced); g != nil && now.Sub(g.Since) >= settled && (!now.Before(g.Until) || everyone(a.bundle.Digest())) {
		old := s.issuing()
		g.Phase, g.Since, g.Until = Issuing, now, time.Time{}
		old.Phase, old.Since, old.Until = Retiring, now, s.lastLeaf(old, now)
		old.Key, old.Issuer.Key = "", "" // it signs nothing any more, whoever asks
		changed = true
	}
	n := len(s.Generations)
	s.Generations = slices.DeleteFunc(s.Generations, func(g *generation) bool { return g.Phase == Retiring && now.After(g.Until) })
	return changed || len(s.Generations) != n
}

// lastLeaf is when the last certificate of a generation ends: of servers they
// are known, of agents how long they live at most. An hour is for what another
// process is signing at this moment.
func (s *state) lastLeaf(g *generation, now time.Time) time.Time {
	end := now.Add(maxAgentLifetime + time.Hour)
	for _, c := range s.Issued {
		if c.Issuer == Fingerprint(g.Root.Certificate) && c.NotAfter.After(end) {
			end = c.NotAfter
		}
	}
	return end.Add(clockSkew)
}

// Certified is a certificate of a server that was issued or taken back.
type Certified struct {
	Serial   string    `json:"serial,omitempty"` // empty: every one of that name, for ever
	Name     string    `json:"name"`             // the URI, or the subject of an intermediate
	NotAfter time.Time `json:"notAfter,omitzero"`
	Issuer   string    `json:"issuer,omitempty"` // fingerprint of the root
	At       time.Time `json:"at,omitzero"`      // when it was revoked
}

func certified(leaf *x509.Certificate) Certified {
	c := Certified{Serial: Serial(leaf), NotAfter: leaf.NotAfter, Name: leaf.Subject.CommonName}
	if name, err := PeerName(leaf); err == nil {
		c.Name = name.String()
	}
	return c
}

// ErrUnknown is wrapped where nothing that is named was issued.
var ErrUnknown = errors.New("no such certificate was issued to a server")

// Revoke takes back what has that serial number, or all of the replication
// server with that id (i-…), which then gets no other. It returns what it has
// taken back, which may have been so before. Certificates of agents are the
// service's to revoke: they are gone when their source server ends.
func (a *Authority) Revoke(what string) (revoked []Certified, err error) {
	id := Name{ReplicationServer, what}
	serial := strings.TrimLeft(strings.ToLower(strings.ReplaceAll(what, ":", "")), "0")
	err = a.change(func(s *state) error {
		now := a.options.Time()
		for _, c := range s.known() {
			if c.Serial == serial || c.Name == id.String() {
				c.At = now
				revoked = append(revoked, c)
			}
		}
		if id.Validate() == nil {
			revoked = append(revoked, Certified{Name: id.String(), At: now})
		}
		if len(revoked) == 0 {
			return fmt.Errorf("%q: %w", what, ErrUnknown)
		}
		for _, c := range revoked {
			same := func(r Certified) bool { return r.Serial == c.Serial && r.Name == c.Name }
			if !slices.ContainsFunc(s.Revoked, same) {
				s.Revoked = append(s.Revoked, c)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	return revoked, nil
}

// known are the certificates that can be revoked: of servers, and intermediates
// that issue no more.
func (s *state) known() []Certified {
	out := slices.Clone(s.Issued)
	for _, g := range s.Generations {
		for _, c := range g.Former {
			out = append(out, certified(c.Certificate))
		}
	}
	return out
}

// RevokedName reports whether every certificate of that name was taken back.
func (a *Authority) RevokedName(n Name) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.state.Revoked, func(r Certified) bool { return r.Serial == "" && r.Name == n.String() })
}

// Revocations lists what was taken back.
func (a *Authority) Revocations() []Certified {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.state.Revoked)
}
