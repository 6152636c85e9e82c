package control

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
)

// TestAssociations_Wait: a replication server that waits hears that a server
// has ended when it happens, not when it would have asked again.
func TestAssociations_Wait(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	ask := func(revision *int64) *formgn.DescribeReplicationServerAssociationsForMgnResponse {
		out, err := w.DescribeReplicationServerAssociations(ctx, &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID, Revision: revision, WaitSeconds: p(int32(20))})
		if err != nil {
			t.Error(err)
			return &formgn.DescribeReplicationServerAssociationsForMgnResponse{}
		}
		return out
	}
	first := ask(nil) // nothing is known: the answer comes at once
	answer := make(chan *formgn.DescribeReplicationServerAssociationsForMgnResponse)
	began := time.Now()
	go func() { answer <- ask(first.Revision) }()
	if _, err := w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: id}); err != nil {
		t.Fatal(err)
	}
	got := <-answer
	if len(first.Associations) != 1 || len(got.Associations) != 0 || *got.Revision == *first.Revision { // its agent had no certificate yet
		t.Errorf("got %+v, then %+v", first, got)
	}
	if waited := time.Since(began); waited > 15*time.Second {
		t.Errorf("the answer came by itself, after %v", waited)
	}
	ended, end := context.WithCancel(ctx)
	end()
	go func() { answer <- ask(got.Revision) }()
	w.Run(ended) // a service that stops keeps nobody waiting
	<-answer
}

func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChanges(time.Now())
		waits := func(revision int64) time.Duration {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			c.wait(ctx, revision)
			return time.Since(began)
		}
		if d := waits(c.now()); d != time.Minute {
			t.Errorf("nothing happens, and the wait is over after %v", d)
		}
		time.AfterFunc(time.Second, c.happened)
		if d := waits(c.now()); d != time.Second {
			t.Errorf("something happens after a second, and the wait is over after %v", d)
		}
		if d := waits(c.now() - 1); d != 0 {
			t.Errorf("what happened before is waited for %v", d)
		}
		c.end()
		if d := waits(c.now()); d != 0 {
			t.Errorf("at the end there is a wait of %v", d)
		}
	})
}
