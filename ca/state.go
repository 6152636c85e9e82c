package ca

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// This file keeps an authority in one file, authority.json, described in
// docs/format/authority.md. The rules are:
//
//   - Every change is one rename of the whole file, so that a crash leaves the
//     state before or after it.
//   - Who changes it holds the lock beside it and has read the file under the
//     lock. So a command may change the authority of a running service, which
//     reads it again when it sees another file.
//   - Private keys in it are sealed, and bound to their certificates.

const (
	stateFile    = "authority.json"
	stateLock    = "lock"
	stateFormat  = "rehost authority"
	stateVersion = 1
)

type state struct {
	Format      string        `json:"format"`
	Version     int           `json:"version"`
	Generations []*generation `json:"generations"` // oldest first
	Issued      []Certified   `json:"issued,omitempty"`
	Revoked     []Certified   `json:"revoked,omitempty"`
}

// A generation is a root and what it has signed.
type generation struct {
	Phase  Phase     `json:"phase"`
	Root   pemCert   `json:"root"`
	Key    string    `json:"key,omitempty"` // PEM; empty if it was exported, or is of no more use
	Direct bool      `json:"direct,omitempty"`
	Since  time.Time `json:"since"`          // of the phase
	Until  time.Time `json:"until,omitzero"` // announced: of the overlap; retiring: when the last leaf ends
	Issuer *issuer   `json:"issuer,omitempty"`
	Former []pemCert `json:"former,omitempty"` // intermediates that issue no more
	Cross  []pemCert `json:"cross,omitempty"`  // issuers of other generations, signed by this root
}

// An issuer is the intermediate that signs leaves. Of a generation that is
// [generation.Direct] it is the root itself.
type issuer struct {
	Certificate pemCert `json:"certificate"`
	Key         string  `json:"key,omitempty"` // PEM
}

// A pemCert is a certificate whose JSON form is its PEM.
type pemCert struct{ *x509.Certificate }

// MarshalText implements [encoding.TextMarshaler].
func (c pemCert) MarshalText() ([]byte, error) { return EncodeCertificates(c.Certificate), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (c *pemCert) UnmarshalText(text []byte) error {
	certs, err := DecodeCertificates(text)
	if err != nil {
		return err
	}
	if len(certs) != 1 {
		return fmt.Errorf("%d certificates where one should be", len(certs))
	}
	c.Certificate = certs[0]
	return nil
}

// issuing is the generation that signs; there is always exactly one.
func (s *state) issuing() *generation { return s.in(Issuing) }

func (s *state) in(p Phase) *generation {
	for _, g := range s.Generations {
		if g.Phase == p {
			return g
		}
	}
	return nil
}

// roots are all that are believed, the one that issues first.
func (s *state) roots() []*x509.Certificate {
	out := []*x509.Certificate{s.issuing().Root.Certificate}
	for _, g := range s.Generations {
		if g.Phase != Issuing {
			out = append(out, g.Root.Certificate)
		}
	}
	return out
}

func (s *state) revoked(now time.Time) (serials []string) {
	for _, r := range s.Revoked {
		if r.Serial != "" && now.Before(r.NotAfter) {
			serials = append(serials, r.Serial)
		}
	}
	slices.Sort(serials)
	return slices.Compact(serials)
}

func (s *state) validate() error {
	n := map[Phase]int{}
	for _, g := range s.Generations {
		n[g.Phase]++
		if g.Root.Certificate == nil || !g.Root.IsCA || g.Issuer == nil || g.Issuer.Certificate.Certificate == nil {
			return errors.New("a generation lacks its root or issuer")
		}
	}
	switch {
	case s.Format != stateFormat || s.Version != stateVersion:
		return fmt.Errorf("format %q version %d is not known to this program", s.Format, s.Version)
	case n[Issuing] != 1 || n[Announced] > 1 || n[Issuing]+n[Announced]+n[Retiring] != len(s.Generations):
		return fmt.Errorf("its generations are in impossible phases: %v", n)
	}
	return nil
}

// change applies do to the state on the disk, under the lock, and takes over
// what comes of it. An error of do changes nothing.
func (a *Authority) change(do func(s *state) error) error {
	lock, err := os.OpenFile(filepath.Join(a.dir, stateLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	s, err := a.read()
	if err != nil {
		return err
	}
	before := ""
	if s != nil {
		before = s.text()
	} else {
		s = &state{Format: stateFormat, Version: stateVersion}
	}
	if err := do(s); err != nil {
		return err
	}
	if err := s.validate(); err != nil {
		return err
	}
	if text := s.text(); text != before {
		if err := writeFile(filepath.Join(a.dir, stateFile), []byte(text), 0o600, true); err != nil {
			return err
		}
	}
	return errors.Join(a.load(), a.publish())
}

// text is the content of the file.
func (s *state) text() string {
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("ca: encode state: %v", err)) // structures of ours always encode
	}
	return string(out) + "\n"
}

// read returns what the file holds, nil if there is none yet.
func (a *Authority) read() (*state, error) {
	path := filepath.Join(a.dir, stateFile)
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// load takes over what the file holds, if it is not the one taken over before.
func (a *Authority) load() error {
	info, err := os.Stat(filepath.Join(a.dir, stateFile))
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.options.Time()
	if a.seen == nil || !os.SameFile(a.seen, info) || !a.seen.ModTime().Equal(info.ModTime()) || a.seen.Size() != info.Size() {
		s, err := a.read()
		if err != nil {
			return err
		}
		if s == nil {
			return fmt.Errorf("%s is gone", stateFile)
		}
		g := s.issuing()
		var key *ecdsa.PrivateKey
		if key, err = a.options.decodeKey(g.Issuer.Certificate.Certificate, g.Issuer.Key); err != nil {
			return fmt.Errorf("issuer %s: %w", g.Issuer.Certificate.Subject, err)
		}
		a.state, a.key, a.seen = s, key, info
	}
	if roots, revoked := a.state.roots(), a.state.revoked(now); a.bundle.Text() != bundleText(roots, revoked) {
		a.bundle.set(roots, revoked)
	}
	return nil
}

// current is the state, read again if another process has changed it.
func (a *Authority) current() (*state, *ecdsa.PrivateKey, error) {
	if err := a.load(); err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.key, nil
}
