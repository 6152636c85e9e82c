package ca

import (
	"crypto/x509"
	"sync"
)

// Serial is the text form of a certificate's serial number: lower-case
// hexadecimal without leading zeros.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// Revocations is a set of serial numbers that are no longer believed. It only
// grows, lives in memory, and is filled by whoever keeps the list. The zero
// value is empty; a nil one stays so. Safe for concurrent use.
type Revocations struct {
	mu      sync.Mutex
	revoked map[string]struct{}
	watches map[string]map[*watch]struct{}
}

type watch struct{ f func() }

// Add revokes serials, in the form of [Serial]: no new handshake succeeds, and
// whoever watches one is told before Add returns.
func (r *Revocations) Add(serials ...string) {
	var tell []func()
	r.mu.Lock()
	for _, s := range serials {
		if _, known := r.revoked[s]; known {
			continue
		}
		if r.revoked == nil {
			r.revoked = map[string]struct{}{}
		}
		r.revoked[s] = struct{}{}
		for w := range r.watches[s] {
			tell = append(tell, w.f)
		}
		delete(r.watches, s)
	}
	r.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

// Contains reports whether serial is revoked.
func (r *Revocations) Contains(serial string) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.revoked[serial]
	return ok
}

// Watch arranges for f to be called once when serial is revoked, at once if it
// is already, so that live connections end too. f must not block. stop ends
// the watch; it does not wait for f.
func (r *Revocations) Watch(serial string, f func()) (stop func()) {
	if r == nil {
		return func() {}
	}
	r.mu.Lock()
	if _, ok := r.revoked[serial]; ok {
		r.mu.Unlock()
		f()
		return func() {}
	}
	defer r.mu.Unlock()
	w := &watch{f}
	if r.watches == nil {
		r.watches = map[string]map[*watch]struct{}{}
	}
	if r.watches[serial] == nil {
		r.watches[serial] = map[*watch]struct{}{}
	}
	r.watches[serial][w] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(r.watches[serial], w); len(r.watches[serial]) == 0 {
			delete(r.watches, serial)
		}
	}
}
