package receive

import (
	"sync"
	"time"
)

// reportEvery is the time between two reports of a session that nothing hurries.
const reportEvery = 500 * time.Millisecond

// A reporter passes progress on, the newest of what came since the last time,
// so that a slow Controller slows nothing down.
type reporter struct {
	send func(Progress)
	wake chan struct{} // capacity 1
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex
	pending *Progress
	urgent  bool
}

func startReporter(send func(Progress)) *reporter {
	r := &reporter{send: send, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

// post makes p the next report; an urgent one does not wait for its turn.
func (r *reporter) post(p Progress, urgent bool) {
	r.mu.Lock()
	r.pending, r.urgent = &p, r.urgent || urgent
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns the report that is due, if any.
func (r *reporter) take(all bool) *Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !all && !r.urgent {
		return nil
	}
	p := r.pending
	r.pending, r.urgent = nil, false
	return p
}

func (r *reporter) run() {
	defer close(r.done)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		all := false
		select {
		case <-r.wake:
		case <-tick.C:
			all = true
		case <-r.quit:
			if p := r.take(true); p != nil {
				r.send(*p)
			}
			return
		}
		if p := r.take(all); p != nil {
			r.send(*p)
		}
	}
}

// stop sends what is pending and waits for it. It is called once.
func (r *reporter) stop() {
	close(r.quit)
	<-r.done
}
