package ca

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"time"
)

// RenewAt is when a certificate is to be renewed: at two thirds of its life,
// later by up to a tenth of these. late, from 0 to below 1, says by how much, so
// that many who began together do not come together.
func RenewAt(leaf *x509.Certificate, late float64) time.Time {
	return renewAt(leaf, 2.0/3, late)
}

func renewAt(leaf *x509.Certificate, share, late float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(float64(life) * share * (1 + 0.1*late)))
}

// A Renewer renews one certificate in time, for as long as it runs. After a
// failure it tries again after a twentieth of what is left of the certificate's
// life, at least 5 s and at most 10 min, and up to a quarter less than that.
type Renewer struct {
	Leaf  func() *x509.Certificate        // the one in use
	Renew func(ctx context.Context) error // puts another one in its place
	Note  func(err error)                 // how the last attempt ended; nil: well

	Stale func() bool      // it is to be renewed now, looked at every few seconds; nil: never
	Share float64          // of its life; 0 means two thirds
	Now   func() time.Time // nil means time.Now
	Late  func() float64   // nil means rand.Float64
}

const (
	minRetry   = 5 * time.Second
	maxRetry   = 10 * time.Minute
	lookAgain  = time.Second // for what other processes have changed
	shortest   = time.Second
	retryShare = 20
)

// Run renews until ctx ends.
func (r Renewer) Run(ctx context.Context) {
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Late == nil {
		r.Late = rand.Float64
	}
	if r.Share == 0 {
		r.Share = 2.0 / 3
	}
	for {
		leaf := r.Leaf()
		due := renewAt(leaf, r.Share, r.Late())
		if !r.wait(ctx, max(due.Sub(r.Now()), shortest)) {
			return
		}
		for {
			err := r.Renew(ctx)
			if ctx.Err() != nil {
				return
			}
			r.Note(err)
			if err == nil {
				break
			}
			left := r.Leaf().NotAfter.Sub(r.Now())
			pause := min(max(left/retryShare, minRetry), maxRetry)
			if !sleep(ctx, pause-time.Duration(r.Late()*float64(pause)/4)) {
				return
			}
		}
	}
}

// wait is over after d, or when the certificate is stale, or ctx ends (false).
func (r Renewer) wait(ctx context.Context, d time.Duration) bool {
	if r.Stale == nil {
		return sleep(ctx, d)
	}
	for end := r.Now().Add(d); r.Now().Before(end) && !r.Stale(); {
		if !sleep(ctx, min(lookAgain, max(end.Sub(r.Now()), time.Millisecond))) {
			return false
		}
	}
	return ctx.Err() == nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
