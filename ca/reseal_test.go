package ca_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"rehost/ca"
)

// A twoKeys seals with one and opens what another has sealed.
type twoKeys struct{ newest, old ca.Sealer }

func (s twoKeys) Seal(use string, plain []byte) []byte { return s.newest.Seal(use, plain) }

func (s twoKeys) Open(use string, sealed []byte) ([]byte, error) {
	if plain, err := s.newest.Open(use, sealed); err == nil {
		return plain, nil
	}
	return s.old.Open(use, sealed)
}

// TestAuthority_Reseal: after it no key needs the old sealing key, of a root that is
// announced and of one that was exported neither; before it, it is said that they do.
func TestAuthority_Reseal(t *testing.T) {
	dir, exported := t.TempDir(), filepath.Join(t.TempDir(), "root.pem")
	both := ca.Options{Sealer: twoKeys{sealed(2).Sealer, sealed(1).Sealer}}
	a := must(ca.Open(dir, sealed(1)))
	print := a.Fingerprint()
	if err := errors.Join(a.RotateRoot("", 0), a.ExportRoot(exported)); err != nil {
		t.Fatal(err)
	}
	if err := a.CheckKeys(exported); err != nil {
		t.Error(err)
	}
	if err := a.CheckKeys(""); err == nil {
		t.Error("an exported key is not missed")
	}
	if _, err := ca.Open(dir, sealed(2)); !errors.Is(err, ca.ErrSealed) {
		t.Errorf("before it is sealed again: %v", err)
	}
	a = must(ca.Open(dir, both))
	if err := a.Reseal(""); err != nil {
		t.Fatal(err)
	}
	if err := must(ca.Open(dir, sealed(2))).CheckKeys(exported); !errors.Is(err, ca.ErrSealed) {
		t.Errorf("the exported key as it was: %v", err)
	}
	before := must(os.ReadFile(exported))
	for range 2 { // it may be repeated
		if err := a.Reseal(exported); err != nil {
			t.Fatal(err)
		}
	}
	if after := must(os.ReadFile(exported)); bytes.Equal(before, after) {
		t.Error("the exported key was not sealed again")
	}
	b := must(ca.Open(dir, sealed(2)))
	if err := b.CheckKeys(exported); err != nil || b.Fingerprint() != print {
		t.Errorf("with the new key only: %v", err)
	}
	if err := b.RotateIssuer(exported); err != nil {
		t.Error(err)
	}
	if _, err := ca.Open(dir, sealed(1)); !errors.Is(err, ca.ErrSealed) {
		t.Errorf("with the old key: %v", err)
	}
}
