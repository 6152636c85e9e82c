package ca

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ExportRoot moves the key of the root that issues out of the directory, into a
// new file. It stays sealed: to use it takes the file and the sealing key. From
// then on a rotation of the intermediate asks for the file.
//
// A crash leaves the key in both places at worst; the file is then in the way
// of the next attempt, which has to name another.
func (a *Authority) ExportRoot(file string) error {
	err := a.change(func(s *state) error {
		g := s.issuing()
		switch {
		case g.Direct:
			return errors.New("the root signs leaves itself, so its key is needed here: rehost ca rotate --root makes one that need not be")
		case g.Key == "":
			return fmt.Errorf("%s: its key was exported before", g.Root.Subject.CommonName)
		}
		text := append(EncodeCertificates(g.Root.Certificate), g.Key...)
		if err := writeFile(file, text, 0o600, false); err != nil {
			return err
		}
		if _, err := a.rootKey(g, file); err != nil { // read back before the only copy goes
			return err
		}
		g.Key = ""
		return nil
	})
	if err != nil {
		return fmt.Errorf("export the root's key to %s: %w", file, err)
	}
	return nil
}

// A Listed is a certificate or key of the authority, for people to look at.
type Listed struct {
	Kind     string // root, intermediate, former intermediate, certificate, revoked
	Name     string
	Serial   string
	Phase    Phase // of a root
	Begins   time.Time
	Ends     time.Time
	Note     string // what comes next, and when
	Attended bool   // somebody has to do something
}

// List says what there is, roots first.
func (a *Authority) List() ([]Listed, error) {
	s, _, err := a.current()
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	now := a.options.Time()
	var out []Listed
	for _, g := range s.Generations {
		out = append(out, g.list(now)...)
	}
	for _, c := range s.Issued {
		if !now.After(c.NotAfter) && !slices.ContainsFunc(s.Revoked, func(r Certified) bool { return r.Serial == c.Serial }) {
			out = append(out, Listed{Kind: "certificate", Name: c.Name, Serial: c.Serial, Ends: c.NotAfter})
		}
	}
	if pair, err := a.servicePair(); err == nil && now.After(RenewAt(pair.Leaf, 1)) {
		out = append(out, Listed{Kind: "certificate", Name: Name{Role: Service}.String(), Serial: Serial(pair.Leaf), Ends: pair.Leaf.NotAfter,
			Note: "NOT RENEWED in time: is the service running?", Attended: true})
	}
	for _, r := range s.Revoked {
		note := "since " + stamp(r.At)
		if r.Serial == "" {
			note += ", all of this name"
		}
		out = append(out, Listed{Kind: "revoked", Name: r.Name, Serial: r.Serial, Ends: r.NotAfter, Note: note})
	}
	return out, nil
}

func (g *generation) list(now time.Time) []Listed {
	root := Listed{Kind: "root", Name: g.Root.Subject.CommonName, Serial: Serial(g.Root.Certificate), Phase: g.Phase,
		Begins: g.Root.NotBefore, Ends: g.Root.NotAfter}
	switch {
	case g.Phase == Announced:
		root.Note = "issues when all have it, at the latest " + stamp(g.Until)
	case g.Phase == Retiring:
		root.Note = "is believed until " + stamp(g.Until)
	case g.Direct:
		root.Note, root.Attended = "signs leaves itself: rehost ca rotate --root makes one with an intermediate", true
	case g.Key == "":
		root.Note = "key exported"
	}
	if g.Phase == Issuing && now.After(RenewAt(g.Root.Certificate, 0)) {
		root.Note, root.Attended = "grows old: rehost ca rotate --root", true
	}
	out := []Listed{root}
	if g.Direct {
		return out
	}
	i := g.Issuer.Certificate
	middle := Listed{Kind: "intermediate", Name: i.Subject.CommonName, Serial: Serial(i.Certificate), Begins: i.NotBefore, Ends: i.NotAfter}
	if g.Phase == Issuing && now.After(RenewAt(i.Certificate, 0)) {
		middle.Note, middle.Attended = "grows old: rehost ca rotate", true
	}
	out = append(out, middle)
	for _, c := range g.Former {
		out = append(out, Listed{Kind: "former intermediate", Name: c.Subject.CommonName, Serial: Serial(c.Certificate), Begins: c.NotBefore, Ends: c.NotAfter})
	}
	return out
}

// IssuerDue reports whether the intermediate is to be rotated, and whether that
// can be done without the root's key being brought.
func (a *Authority) IssuerDue() (due, can bool) {
	s, _, err := a.current()
	if err != nil {
		return false, false
	}
	g := s.issuing()
	if g.Direct {
		return false, false
	}
	return a.options.Time().After(RenewAt(g.Issuer.Certificate.Certificate, 0)), g.Key != ""
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
