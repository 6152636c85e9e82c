package ca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rehost/ca"
)

// TestRenewer follows a certificate of three days through virtual time: on time,
// through a failure of the service, and when it was revoked.
func TestRenewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(72 * time.Hour)}
		var attempts []time.Duration // since begin
		var notes []string
		down, stale, late := false, false, 0.0
		var mu sync.Mutex // guards all of these: the fake clock orders nothing for the race detector
		set := func(do func()) { mu.Lock(); defer mu.Unlock(); do() }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			ca.Renewer{
				Leaf:  func() *x509.Certificate { mu.Lock(); defer mu.Unlock(); return leaf },
				Late:  func() float64 { mu.Lock(); defer mu.Unlock(); return late },
				Stale: func() bool { mu.Lock(); defer mu.Unlock(); return stale },
				Note:  func(err error) { set(func() { notes = append(notes, fmt.Sprint(err)) }) },
				Renew: func(context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					attempts = append(attempts, time.Since(begin).Round(time.Second))
					if down {
						return errors.New("down")
					}
					stale = false
					leaf = &x509.Certificate{NotBefore: time.Now(), NotAfter: time.Now().Add(72 * time.Hour)}
					return nil
				},
			}.Run(ctx)
		}()
		at := func(d time.Duration, want ...time.Duration) {
			t.Helper()
			time.Sleep(time.Until(begin.Add(d)))
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(attempts, want) {
				t.Fatalf("at %v: attempts at %v, want %v", d, attempts, want)
			}
			attempts = nil
		}
		at(47*time.Hour + 59*time.Minute)
		at(48*time.Hour+time.Minute, 48*time.Hour)
		set(func() { late, stale = 0.999, true }) // up to a tenth later; revoked: at once
		at(48*time.Hour+2*time.Minute, 48*time.Hour+time.Minute+time.Second)
		set(func() { down = true })
		due := 48*time.Hour + time.Minute + time.Second + 48*time.Hour*10999/10000
		at(due - time.Minute)
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		mu.Lock()
		n := len(attempts)
		// A twentieth of what is left is more than the most: every 10 minutes, less a quarter here.
		if n < 60 || n > 81 || notes[len(notes)-1] != "down" {
			t.Errorf("%d attempts in 10 hours, last note %q", n, notes[len(notes)-1])
		}
		if gap := attempts[1] - attempts[0]; gap < 7*time.Minute || gap > 10*time.Minute {
			t.Errorf("tries again after %v", gap)
		}
		down = false
		mu.Unlock()
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		mu.Lock()
		if notes[len(notes)-1] != "<nil>" || time.Until(leaf.NotAfter) < 71*time.Hour {
			t.Errorf("it does not recover: %q", notes[len(notes)-1])
		}
		mu.Unlock()
		cancel()
		<-done
	})
}

// TestRenewAt: never before two thirds of the life, never after a tenth of that more.
func TestRenewAt(t *testing.T) {
	begin := time.Unix(0, 0)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(90 * time.Hour)}
	for late, want := range map[float64]time.Duration{0: 60 * time.Hour, 0.5: 63 * time.Hour, 1: 66 * time.Hour} {
		if got := ca.RenewAt(leaf, late).Sub(begin).Round(time.Second); got != want {
			t.Errorf("late %v: got %v, want %v", late, got, want)
		}
	}
}

// TestBundle: what is not a bundle, or has nothing in common with the one that is
// believed, takes no place.
func TestBundle(t *testing.T) {
	a, foreign := authority(t, ca.Options{}), authority(t, ca.Options{})
	both := ca.NewBundle(a.Root(), foreign.Root())
	if err := both.Replace(a.Bundle().Text()); err != nil || len(both.Roots()) != 1 {
		t.Errorf("fewer roots: %v", err)
	}
	if err := a.Bundle().Check(foreign.Bundle().Text()); !errors.Is(err, ca.ErrBundle) {
		t.Errorf("a foreign bundle: %v", err)
	}
	pem := string(ca.EncodeCertificates(a.Root()))
	if plain := must(ca.ParseBundle(pem)); plain.Digest() != a.Bundle().Digest() {
		t.Error("certificates alone are not the bundle of them")
	}
	leaf := string(ca.EncodeCertificates(must(a.IssueService(nil, nil)).Leaf))
	for name, bad := range map[string]string{
		"empty": "", "words": "hello", "newer": "rehost trust bundle 2\n" + pem, "a leaf": leaf, "no root": "rehost trust bundle 1\n",
		"a serial number": "rehost trust bundle 1\nrevoked xyz\n" + pem, "an order": "rehost trust bundle 1\ndrop all\n" + pem,
		"many roots": strings.Repeat(pem, 9), "long": pem + strings.Repeat("\n", 256<<10),
	} {
		if _, err := ca.ParseBundle(bad); !errors.Is(err, ca.ErrBundle) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	revoked := must(ca.ParseBundle("rehost trust bundle 1\nrevoked ab\nrevoked cd\n" + pem))
	if !revoked.Revoked().Contains("ab") || !revoked.Revoked().Contains("cd") {
		t.Error("what is revoked is not")
	}
	if again := must(ca.ParseBundle(revoked.Text())); again.Digest() != revoked.Digest() {
		t.Error("the text form is not one")
	}
}

// FuzzParseBundle: whatever is taken has one text form.
func FuzzParseBundle(f *testing.F) {
	f.Add("rehost trust bundle 1\nrevoked ab\n-----BEGIN CERTIFICATE-----\n")
	f.Add(must(ca.Open(f.TempDir(), ca.Options{})).Bundle().Text())
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ca.ParseBundle(text)
		if err != nil {
			return
		}
		if again, err := ca.ParseBundle(b.Text()); err != nil || again.Text() != b.Text() || len(again.Roots()) == 0 {
			t.Errorf("read again: %v", err)
		}
	})
}

// FuzzIssueAgent: a hostile request gets nothing but the registration's name and
// our usages and dates, on its own key, or is refused as the requester's fault.
func FuzzIssueAgent(f *testing.F) {
	a := must(ca.Open(f.TempDir(), ca.Options{}))
	f.Add(must(ca.NewRequest(must(ca.NewKey()))))
	for _, seed := range hostileRequests() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		chain, err := a.IssueAgent(request, agentID)
		if err != nil {
			if !errors.Is(err, ca.ErrRequest) {
				t.Errorf("not the requester's fault: %v", err)
			}
			return
		}
		leaf := chain[0]
		name, err := ca.PeerName(leaf)
		if err != nil || name != (ca.Name{Role: ca.SourceServer, ID: agentID}) {
			t.Errorf("names %v, %v", name, err)
		}
		if leaf.IsCA || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.UnknownExtKeyUsage) > 0 || len(leaf.Subject.Names) > 0 ||
			leaf.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
			t.Errorf("got %+v", leaf)
		}
		if time.Until(leaf.NotAfter) > 24*time.Hour || len(leaf.Extensions) > 7 {
			t.Errorf("ends %v, %d extensions", leaf.NotAfter, len(leaf.Extensions))
		}
	})
}
