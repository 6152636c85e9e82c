package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"rehost/block"
	"rehost/capture"
	"rehost/internal/fault"
	"rehost/store"
)

// TestOracle replicates three disks of one server, through the kernel's tracker,
// TLS and the encrypted store, while a recorder writes to them. Every recovery
// point is then opened and judged: it must be what a power cut at one instant, not
// before the one that it states, would have left. docs/capture.md says what that
// proves.
func TestOracle(t *testing.T) {
	need(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	disks := []*fault.Disk{fault.Loop(t, 512<<10), fault.Loop(t, 384<<10+512*5), fault.Memory(t, 256<<10)}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r := newReplication(ctx, t, disks, capture.Options{Pause: time.Millisecond})
	recorder := fault.Record(t, seed, time.Millisecond, disks...)
	r.start()

	began := time.Now()
	for before := uint64(0); before < 100 || before < 600 && time.Since(began) < 6*time.Second; time.Sleep(50 * time.Millisecond) {
		r.going(t)
		if ctx.Err() != nil {
			t.Fatalf("only %d points within 4 minutes", before)
		}
		now := r.engine.Status().Epochs
		recorder.Yield(now > before)
		before = now
	}
	recorder.Stop()
	quiet := time.Now()
	eventually(t, ctx, "a point behind the last write", func() bool { return r.engine.Status().Point.Time.After(quiet) })
	st := r.engine.Status()
	r.stop()

	replica := r.replica(ctx, t)
	j := newJury(recorder, replica, len(disks))
	if err := j.sit(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("%v; %d rounds, %d conflicts; %v", recorder, st.Rounds, st.Conflicts, j)
	if len(j.judged) < 100 {
		t.Errorf("only %d points were judged: nothing is shown", len(j.judged))
	}
	newest, _ := replica.Consistent()
	for i, d := range disks {
		same(t, replica, newest, i, d.Path)
	}
}

// A jury judges the consistent points of a replica by what a recorder wrote.
type jury struct {
	recorder *fault.Recorder
	replica  *store.Replica
	disks    int // the first ones of the server are the recorder's
	judged   map[block.Seq]time.Time
	slack    []time.Duration
	flying   int
	cut      int
}

func newJury(recorder *fault.Recorder, replica *store.Replica, disks int) *jury {
	return &jury{recorder: recorder, replica: replica, disks: disks, judged: map[block.Seq]time.Time{}}
}

// sit judges every point that was not judged yet, the newest first, until ctx ends.
// It answers for the oldest of those that are impossible, and says how many they are.
func (j *jury) sit(ctx context.Context) (err error) {
	bad := 0
	points, before := j.replica.Points(), time.Now()
	for i, p := range slices.Backward(points) {
		if !p.Consistent() || j.judged[p.Seq].Equal(p.Time) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		known := before
		if i+1 < len(points) {
			known = points[i+1].Time // a round begins when the one before is committed
		}
		v, judgement := j.judge(p, known)
		if errors.Is(judgement, store.ErrNoPoint) {
			continue // withdrawn since
		}
		j.judged[p.Seq] = p.Time
		if judgement != nil {
			err = fmt.Errorf("point %v of %v: %w", p.Seq, p.Time, judgement)
			bad++
			continue
		}
		j.slack, j.flying, j.cut = append(j.slack, v.Slack), j.flying+v.Flying, j.cut+v.Cut
	}
	if bad > 1 {
		err = fmt.Errorf("%d points are bad: %w", bad, err)
	}
	return err
}

func (j *jury) judge(p store.RecoveryPoint, known time.Time) (v fault.Verdict, err error) {
	view, err := j.replica.At(p.Seq)
	if err != nil {
		return v, err
	}
	var disks []io.ReaderAt
	for _, d := range view.Disks()[:j.disks] {
		device, err := view.Disk(d.ID)
		if err != nil {
			return v, err
		}
		disks = append(disks, device)
	}
	return j.recorder.Judge(p.Time, known, disks)
}

// String says what was judged.
func (j *jury) String() string {
	slack := slices.Sorted(slices.Values(j.slack))
	if len(slack) == 0 {
		return "no point judged"
	}
	return fmt.Sprintf("%d points judged; %d sectors in flight at a point, %d cut; slack p50 %v, p99 %v", len(j.judged),
		j.flying, j.cut, slack[len(slack)/2], slack[len(slack)*99/100])
}
