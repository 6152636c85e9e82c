package awsapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"rehost/audit"
	"rehost/identity"
)

// An Auditor keeps the records of calls; [audit.Log] is one.
type Auditor interface {
	// Ready is nil if a record can be written now. What changes something is
	// refused otherwise, before anything is done.
	Ready() error
	// Append writes a record. It outlives this process once nil was returned.
	Append(audit.Record) error
	// Repeat is Append for a call that may be counted instead if it is like one
	// before it.
	Repeat(audit.Record) error
}

// Routine says that the call that ctx belongs to has changed nothing but what the
// next of its kind replaces, so that of agents and replication servers, who make such
// calls all the time, it is enough to know their number. A handler that says nothing
// has each of its calls recorded. Outside of a handler it does nothing.
func Routine(ctx context.Context) {
	if caller := CallerOf(ctx); caller != nil && caller.call != nil {
		caller.call.routine = true
	}
}

// repeatable is whether a call may be counted: people and their programs do nothing
// by routine.
func (c *call) repeatable() bool {
	return c.routine && c.caller.Principal != nil && c.caller.Principal.OfService()
}

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

// ready refuses a call that changes something while nobody could keep that.
func (c *call) ready() error {
	if c.server.Audit == nil || c.route.ReadOnly {
		return nil
	}
	if err := c.server.Audit.Ready(); err != nil {
		return Errorf(InternalServer, "The audit log cannot be written, and until it can nothing may be changed: the service's log says why")
	}
	return nil
}

// audit keeps the record of the call, and writes a line if it was not allowed. The
// error is that of the record: then nobody may be told that the call succeeded.
func (c *call) audit(status int, failure Exception, took time.Duration) error {
	var dropped int64
	if c.caller.Principal == nil && c.caller.Peer == "" {
		var ok bool
		if dropped, ok = c.server.strangers.take(c.server.Now()); !ok {
			return nil
		}
	}
	if failure != nil && c.reason == "" && c.decision != allowed {
		c.reason = failure.Error()
	}
	if c.server.Audit == nil || c.decision != allowed {
		attrs := c.auditLine(status, failure, took)
		if dropped > 0 {
			attrs = append(attrs, slog.Int64("refusedAndNotLogged", dropped))
		}
		level := slog.LevelInfo
		if c.server.Audit != nil {
			level = slog.LevelWarn
		}
		c.server.Log.LogAttrs(c.request.Context(), level, "call", attrs...)
	}
	if c.server.Audit == nil {
		return nil
	}
	r := c.record(failure)
	r.AdditionalEventData = &audit.AdditionalEventData{Decision: c.decision, Reason: cut(c.reason, maxReason), TookMicroseconds: took.Microseconds(),
		HTTPStatus: status, NotRecorded: dropped}
	if c.repeatable() {
		return c.server.Audit.Repeat(r) // which looks at how it ended
	}
	return c.server.Audit.Append(r)
}

// record is the call in the shape of CloudTrail's.
func (c *call) record(failure Exception) audit.Record {
	r := audit.Record{EventType: audit.APICall, EventTime: c.server.Now(), EventSource: audit.EventSource, EventName: "Unknown", AWSRegion: c.server.Region,
		UserIdentity: c.userIdentity(), UserAgent: cut(c.caller.UserAgent, maxUserAgent), RequestID: c.caller.RequestID, TLSDetails: tlsDetails(c.request)}
	if c.caller.SourceIP.IsValid() {
		r.SourceIPAddress = c.caller.SourceIP.String()
	}
	if c.route != nil {
		r.EventSource, r.EventName, r.ReadOnly = c.route.service.SigningName+".amazonaws.com", c.route.Name, c.route.ReadOnly
	}
	if c.input != nil {
		r.RequestParameters = redact(c.input)
	}
	if failure != nil {
		_, message, _ := strings.Cut(failure.Error(), ": ")
		r.ErrorCode, r.ErrorMessage = failure.ErrorName(), cut(message, maxReason)
	} else if c.output != nil && !r.ReadOnly {
		r.ResponseElements = redact(c.output)
	}
	for _, arn := range c.resources {
		r.Resources = append(r.Resources, resource(arn))
	}
	return r
}

// resource is what an ARN names: arn:aws:mgn:region:account:source-server/id.
func resource(arn string) audit.Resource {
	out := audit.Resource{ARN: cut(arn, 2048)}
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		kind, _, _ := strings.Cut(parts[5], "/")
		out.AccountID = parts[4]
		out.Type = "AWS::" + strings.ToUpper(parts[2]) + "::"
		for word := range strings.SplitSeq(kind, "-") {
			if word != "" {
				out.Type += strings.ToUpper(word[:1]) + word[1:]
			}
		}
		out.Type = cut(out.Type, 128)
	}
	return out
}

// keyOfAWS is the form of an access key id. What has another may be a secret that
// somebody has put into the wrong place.
var keyOfAWS = regexp.MustCompile(`^A[KS]IA[A-Z0-9]{12,28}$`)

// userIdentity is who has proven to be there, or else whose key was named.
func (c *call) userIdentity() audit.UserIdentity {
	p := c.caller.Principal
	if p == nil {
		id := audit.UserIdentity{Type: "Unknown", PrincipalID: c.caller.Peer}
		if keyOfAWS.MatchString(c.claimed) {
			id.AccessKeyID = c.claimed
		}
		return id
	}
	id := audit.UserIdentity{Type: "IAMUser", PrincipalID: p.UserID, ARN: p.ARN, AccountID: p.Account, AccessKeyID: p.AccessKeyID, UserName: p.Name}
	if !p.Temporary() {
		return id
	}
	id.SessionContext = &audit.SessionContext{Attributes: audit.SessionAttributes{CreationDate: p.Issued.UTC().Truncate(time.Second)}, SourceIdentity: p.SourceIdentity}
	if p.Kind == identity.RolePrincipal {
		role, _, _ := strings.Cut(p.UserID, ":")
		id.Type, id.UserName = string(identity.RolePrincipal), ""
		id.SessionContext.SessionIssuer = &audit.SessionIssuer{Type: "Role", PrincipalID: role, ARN: p.RoleARN(), AccountID: p.Account, UserName: p.Name}
	}
	return id
}

func tlsDetails(r *http.Request) *audit.TLSDetails {
	if r.TLS == nil {
		return nil
	}
	return &audit.TLSDetails{TLSVersion: strings.Replace(tls.VersionName(r.TLS.Version), "TLS ", "TLSv", 1),
		CipherSuite: tls.CipherSuiteName(r.TLS.CipherSuite), ClientProvidedHostHeader: cut(r.Host, 253)}
}

// auditLine is the call as a line of the log.
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

// An answer is held back until its call is in the audit log.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements [http.ResponseWriter].
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements [http.ResponseWriter].
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// unrecorded is the answer to a call that was carried out and could not be recorded.
func (c *call) unrecorded(a *answer) {
	a.body.Reset()
	clear(a.header)
	c.fail(a, Errorf(InternalServer, "The call was carried out, but the audit log cannot be written: the service's log says why. Look what state things are in"))
}

// send answers.
func (a *answer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) // whoever went away gets no answer
}
