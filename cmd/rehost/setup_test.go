package main

import (
	"path/filepath"
	"testing"
	"time"

	"rehost/ca"
)

// TestPairFile: the service renews the certificate of a replication server that
// is another process, which then takes it from the file.
func TestPairFile(t *testing.T) {
	dir, long := t.TempDir(), 80*24*time.Hour // of 90 days
	path := filepath.Join(dir, "replicator.pem")
	before, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{Time: func() time.Time { return time.Now().Add(-long) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openPair(path, before); err != nil {
		t.Fatal(err)
	}
	now, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	replicator, err := openPair(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := replicator.leaf()
	if time.Now().Before(ca.RenewAt(old, 1)) {
		t.Fatal("the certificate is fresh")
	}
	service, err := openPair(path, now)
	if err != nil || service.id != replicator.id {
		t.Fatalf("%s became %s: %v", replicator.id, service.id, err)
	}
	renew := service.renewer(now, func(err error) {})
	if err := renew.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := replicator.leaf(); got.Equal(old) || !got.Equal(service.leaf()) {
		t.Error("the renewed certificate is not taken over")
	}
	// Revoked, it is stale, and replaced like one that grows old.
	if renew.Stale() {
		t.Error("a good certificate is stale")
	}
	if _, err := now.Revoke(ca.Serial(service.leaf())); err != nil {
		t.Fatal(err)
	}
	if !renew.Stale() {
		t.Error("a revoked certificate is not stale")
	}
}
