package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/support"
)

const (
	shipEvery = 5 * time.Second
	shipMost  = 50   // lines kept for the service; more are counted
	lineMost  = 2000 // bytes of a line

	recentMost = 1000 // lines kept for a support bundle: a user of its own reads no journal
)

// A shipper sends warnings and errors to the service too: at most shipMost
// lines at a time, redacted. What the service does not take for long is dropped.
// It knows the last lines of the whole log, too.
type shipper struct {
	every time.Duration

	mu      sync.Mutex // guards:
	lines   []formgn.LogLine
	dropped int
	recent  []string // of a ring
	oldest  int      // in recent, once that is full
}

func newShipper() *shipper { return &shipper{every: shipEvery} }

// handler is a [slog.Handler] that writes to next, and keeps what is to be sent.
func (s *shipper) handler(next slog.Handler) slog.Handler {
	return &shippingHandler{Handler: next, to: s}
}

type shippingHandler struct {
	slog.Handler
	to    *shipper
	attrs string
}

// Enabled implements [slog.Handler]: warnings count also where they are not written.
func (h *shippingHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || h.Handler.Enabled(ctx, l)
}

// Handle implements [slog.Handler].
func (h *shippingHandler) Handle(ctx context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message + h.attrs)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	h.to.remember(r.Time, r.Level, b.String())
	if r.Level >= slog.LevelWarn {
		h.to.add(r.Time, r.Level, b.String())
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *shippingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	text := h.attrs
	for _, a := range attrs {
		text += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &shippingHandler{Handler: h.Handler.WithAttrs(attrs), to: h.to, attrs: text}
}

// WithGroup implements [slog.Handler].
func (h *shippingHandler) WithGroup(name string) slog.Handler {
	return &shippingHandler{Handler: h.Handler.WithGroup(name), to: h.to, attrs: h.attrs}
}

func (s *shipper) add(at time.Time, level slog.Level, text string) {
	line := formgn.LogLine{DateTime: awsapi.DateTime(at.UTC()), Level: pointer(level.String()), Message: clip(support.Redact(text), lineMost)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) >= shipMost {
		s.dropped++
		return
	}
	s.lines = append(s.lines, line)
}

func (s *shipper) remember(at time.Time, level slog.Level, text string) {
	line := fmt.Sprintf("%s %s %s\n", at.UTC().Format(time.RFC3339), level, clip(text, lineMost))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recent) < recentMost {
		s.recent = append(s.recent, line)
		return
	}
	s.recent[s.oldest] = line
	s.oldest = (s.oldest + 1) % recentMost
}

// log is what is remembered, oldest first.
func (s *shipper) log() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(append(slices.Clone(s.recent[s.oldest:]), s.recent[:s.oldest]...), ""), nil
}

func (s *shipper) take() []formgn.LogLine {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := s.lines
	if s.dropped > 0 {
		lines = append(lines, formgn.LogLine{DateTime: lines[len(lines)-1].DateTime, Level: pointer("WARN"), Message: fmt.Sprintf("%d more lines were not sent", s.dropped)})
	}
	s.lines, s.dropped = nil, 0
	return lines
}

// run sends until ctx ends. Lines that are not taken are tried once more later.
func (s *shipper) run(ctx context.Context, send func(context.Context, []formgn.LogLine) error) {
	var unsent []formgn.LogLine
	for pause(ctx, s.every) == nil {
		if len(unsent) < shipMost {
			unsent = append(unsent, s.take()...)
		}
		if len(unsent) > 0 && send(ctx, unsent) == nil {
			unsent = nil
		}
	}
}

func clip(text string, n int) string {
	if len(text) > n {
		return strings.ToValidUTF8(text[:n], "") + "..."
	}
	return text
}
