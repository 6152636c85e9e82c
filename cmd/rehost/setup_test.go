package main

import (
	"path/filepath"
	"testing"
	"time"

	"rehost/ca"
)

// TestReplicatorPair: the service renews the certificate of a replication
// server that is another process, which then takes it from the file.
func TestReplicatorPair(t *testing.T) {
	dir, long := t.TempDir(), 80*24*time.Hour // of 90 days
	path := filepath.Join(dir, "replicator.pem")
	before, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{Time: func() time.Time { return time.Now().Add(-long) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := replicatorPair(path, before); err != nil {
		t.Fatal(err)
	}
	now, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id, replicator, err := replicatorPair(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if pair, err := replicator(); err != nil || fresh(pair.Leaf) {
		t.Fatalf("the old certificate has to do while there is no other: %v", err)
	}
	if again, service, err := replicatorPair(path, now); err != nil || again != id {
		t.Fatalf("%s became %s: %v", id, again, err)
	} else if _, err := service(); err != nil {
		t.Fatal(err)
	}
	if pair, err := replicator(); err != nil || !fresh(pair.Leaf) {
		t.Errorf("the renewed certificate is not taken over: %v", err)
	}
}
