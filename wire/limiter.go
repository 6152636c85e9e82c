package wire

import (
	"context"
	"sync"
	"time"
)

// A limiter spaces bytes out in time. The zero value does not.
type limiter struct {
	mu   sync.Mutex
	rate int64         // bytes a second; 0 is no limit
	next time.Time     // when all that was let through so far is paid for
	wake chan struct{} // closed when rate changes; nil until someone waits
}

// burst is how much unused time may be made up for.
const burst = 100 * time.Millisecond

func (l *limiter) set(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.next = max(rate, 0), time.Now()
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// wait returns when n more bytes may go, or with an error when ctx or done ends.
func (l *limiter) wait(ctx context.Context, done <-chan struct{}, n int) error {
	for {
		wake, delay := l.take(n)
		if delay <= 0 {
			return nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-wake:
		case <-done:
			timer.Stop()
			return ErrClosed
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// take counts n bytes if the time has come for them, and otherwise returns how
// long to wait before asking again.
func (l *limiter) take(n int) (wake <-chan struct{}, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return nil, 0
	}
	now := time.Now()
	if delay := l.next.Sub(now); delay > 0 {
		if l.wake == nil {
			l.wake = make(chan struct{})
		}
		return l.wake, delay
	}
	if floor := now.Add(-burst); l.next.Before(floor) {
		l.next = floor
	}
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	return nil, 0
}
