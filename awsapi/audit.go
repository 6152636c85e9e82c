package awsapi

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Strangers can make as many refused calls as they like, with as much text in
// them as a header holds: neither may fill a disk.
const (
	strangersBurst = 200 // lines about callers who have proven nothing
	strangersRate  = 20  // and how many a second after those
	maxUserAgent   = 256 // bytes
	maxReason      = 1024
)

// A throttle lets a burst through and then a steady rate, and counts the rest.
type throttle struct {
	mu      sync.Mutex
	tokens  float64
	at      time.Time
	dropped int64
}

// take is whether a line may be written, and how many were not before it.
func (t *throttle) take(now time.Time) (dropped int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at.IsZero() {
		t.tokens = strangersBurst
	} else {
		t.tokens = min(strangersBurst, t.tokens+max(0, now.Sub(t.at).Seconds())*strangersRate)
	}
	t.at = now
	if t.tokens < 1 {
		t.dropped++
		return 0, false
	}
	t.tokens--
	dropped, t.dropped = t.dropped, 0
	return dropped, true
}

// audit writes the line of the call: all of them to the audit log, those that
// were not allowed to the other one too.
func (c *call) audit(status int, failure Exception, took time.Duration) {
	var dropped int64
	if c.caller.Principal == nil && c.caller.Peer == "" {
		var ok bool
		if dropped, ok = c.server.strangers.take(c.server.Now()); !ok {
			return
		}
	}
	attrs := c.auditLine(status, failure, took)
	if dropped > 0 {
		attrs = append(attrs, slog.Int64("refusedAndNotLogged", dropped))
	}
	ctx := c.request.Context()
	c.server.Audit.LogAttrs(ctx, slog.LevelInfo, "call", attrs...)
	if c.server.Audit != c.server.Log && c.decision != allowed {
		c.server.Log.LogAttrs(ctx, slog.LevelWarn, "call", attrs...)
	}
}

func (c *call) auditLine(status int, failure Exception, took time.Duration) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("requestID", c.caller.RequestID),
		slog.String("decision", c.decision),
		slog.Int("status", status),
		slog.String("sourceIP", c.caller.SourceIP.String()),
		slog.Duration("took", took),
	}
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	if c.route != nil {
		add("service", c.route.service.Name)
		add("operation", c.route.Name)
		attrs = append(attrs, slog.Bool("readOnly", c.route.ReadOnly))
	}
	if p := c.caller.Principal; p != nil {
		add("principal", p.ARN)
		add("accessKeyID", p.AccessKeyID)
		add("sourceIdentity", p.SourceIdentity)
	}
	add("peer", c.caller.Peer)
	add("resources", strings.Join(c.resources, " "))
	if failure != nil {
		add("error", failure.ErrorName())
		if c.reason == "" && c.decision != allowed {
			c.reason = failure.Error()
		}
	}
	add("reason", cut(c.reason, maxReason))
	add("userAgent", cut(c.caller.UserAgent, maxUserAgent))
	return attrs
}

// cut shortens a text to n bytes; what JSON cannot hold afterwards is replaced there.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
