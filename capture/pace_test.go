package capture

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A queue is a disk that gives 200 MB/s, of which programs write little, but wait
// the longer the more is read: a write takes 2 ms alone, 40 ms beside all that a
// reader can take.
type queue struct {
	writes  float64 // a second
	read    int64
	sum     writeTimes
	looked  time.Time
	then    int64
	broken  error
	longest time.Duration
}

const queueBytes = 200e6

func (q *queue) look() ([]writeTimes, error) {
	now := time.Now()
	if s := now.Sub(q.looked).Seconds(); s > 0 {
		used := min(.95, float64(q.read-q.then)/s/queueBytes)
		took := time.Duration(float64(2*time.Millisecond) / (1 - used))
		n := uint64(q.writes * s)
		q.sum.writes, q.sum.took = q.sum.writes+n, q.sum.took+time.Duration(n)*took
		q.longest = max(q.longest, took)
	}
	q.looked, q.then = now, q.read
	return []writeTimes{q.sum}, q.broken
}

// readFor reads as fast as the disk and the pacer let it.
func (q *queue) readFor(t *testing.T, p *pacer, d time.Duration) (rate float64) {
	t.Helper()
	const chunk = 1 << 20
	from, end := q.read, time.Now().Add(d)
	for time.Now().Before(end) {
		time.Sleep(chunk * time.Second / queueBytes)
		q.read += chunk
		if err := p.pace(t.Context(), chunk, sleep); err != nil {
			t.Fatal(err)
		}
	}
	return float64(q.read-from) / d.Seconds()
}

// TestPacer: bulk reading leaves a disk to those who write to it, takes what they
// leave, and everything once they are gone.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{writes: 400, looked: time.Now()}
		p := &pacer{look: q.look, now: time.Now}
		q.readFor(t, p, 10*time.Second)
		from := q.sum
		q.longest = 0
		rate := q.readFor(t, p, 2*time.Minute)
		mean := (q.sum.took - from.took) / time.Duration(q.sum.writes-from.writes)
		t.Logf("beside 400 writes a second: %.0f MB/s read, a write takes %v, and %v at the most", rate/1e6, mean, q.longest)
		if mean > 8*time.Millisecond || q.longest > 25*time.Millisecond || rate < 60e6 {
			t.Errorf("%.0f MB/s are read, and a write takes %v, and %v at the most", rate/1e6, mean, q.longest)
		}
		if p.limit() == 0 {
			t.Error("reading is not held back")
		}
		q.writes = 0
		q.readFor(t, p, 30*time.Second)
		if rate := q.readFor(t, p, time.Minute); rate < .97*queueBytes {
			t.Errorf("nobody writes, and %.0f MB/s are read", rate/1e6)
		}
	})
}

// TestPacer_Unpaced is the same disk without: what the test before would see then.
func TestPacer_Unpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{writes: 400, looked: time.Now()}
		q.readFor(t, nil, time.Minute)
		if q.look(); q.longest < 35*time.Millisecond {
			t.Errorf("a write takes %v", q.longest)
		}
	})
}

// TestPacer_Slow: a disk that is slow by itself is read all the same, as are one
// that says nothing and one whose writes are few.
func TestPacer_Slow(t *testing.T) {
	for name, q := range map[string]*queue{"Broken": {writes: 400, broken: errors.New("gone")}, "Few": {writes: 10}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q.looked = time.Now()
				p := &pacer{look: q.look, now: time.Now}
				if rate := q.readFor(t, p, time.Minute); rate < .97*queueBytes {
					t.Errorf("%.0f MB/s are read", rate/1e6)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		sum := writeTimes{}
		p := &pacer{now: time.Now, look: func() ([]writeTimes, error) { // 80 ms a write, read or not
			sum.writes, sum.took = sum.writes+100, sum.took+8*time.Second
			return []writeTimes{sum}, nil
		}}
		q := &queue{}
		if rate := q.readFor(t, p, time.Minute); rate < .97*queueBytes {
			t.Errorf("a disk that is slow by itself is read at %.0f MB/s", rate/1e6)
		}
	})
}

// TestPacer_Ends: whoever waits for the pacer goes when its context does.
func TestPacer_Ends(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	q := &queue{looked: time.Now()}
	p := &pacer{look: q.look, now: time.Now, rate: paceFloor}
	if err := p.pace(ctx, paceFloor, sleep); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
