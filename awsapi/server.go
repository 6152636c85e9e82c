package awsapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"rehost/audit"
	"rehost/identity"
	"rehost/identity/policy"
)

// DefaultMaxBody is how large a request's body may be, in bytes.
const DefaultMaxBody = 1 << 20

// maxBodyOfNone is how large it may be where no operation has one.
const maxBodyOfNone = 4 << 10

// Options says what a [Server] stands on.
type Options struct {
	Identity *identity.Directory // required
	Region   string              // required: the only one that credentials may be scoped to
	Log      *slog.Logger        // nil is slog.Default()
	Audit    Auditor             // keeps a record of each call; nil: Log gets a line of each, not only of those that were not allowed
	Now      func() time.Time    // nil is time.Now
	MaxBody  int64               // 0 is DefaultMaxBody

	// VerifyPeer names the holder of a client certificate that TLS has verified
	// against the service's CA, and refuses those that are revoked or have the
	// wrong role. nil refuses all.
	VerifyPeer func(ctx context.Context, leaf *x509.Certificate) (name string, err error)
	// MapError turns the errors of handlers into an [Exception], so that one
	// table has them all. What is none afterwards is an internal error.
	MapError func(error) error
	// ResourceTags gives the tags of a resource for conditions on
	// aws:ResourceTag; nil for one that is not there. nil means no tags.
	ResourceTags func(ctx context.Context, arn string) map[string]string
	// Limits are how fast calls may come; the zero value is no limits.
	Limits Limits
}

// A Server answers the calls of its services over HTTP. Handlers are
// registered with [Handle] before it serves.
type Server struct {
	Options
	routes     map[string][]*route // by signing name
	describers map[*Service]Describer
	strangers  throttle
	verifier   *verifier

	principals, sources *meter // of Limits
}

// New makes a server of services. Operations without a handler are answered
// with an error that says so.
func New(o Options, services ...*Service) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxBody == 0 {
		o.MaxBody = DefaultMaxBody
	}
	s := &Server{Options: o, routes: map[string][]*route{}, describers: map[*Service]Describer{}}
	s.principals = newMeter(o.Limits.PrincipalRate, o.Limits.PrincipalBurst)
	s.sources = newMeter(o.Limits.SourceRate, o.Limits.SourceBurst)
	s.verifier = &verifier{keys: o.Identity, region: o.Region, now: o.Now, early: earlyChecks, late: lateChecks,
		serves: func(service string) bool { return s.routes[service] != nil }}
	for _, service := range services {
		for _, op := range service.Operations {
			s.routes[service.SigningName] = append(s.routes[service.SigningName], newRoute(service, op))
		}
	}
	return s
}

// A route is an operation on its way to its handler.
type route struct {
	*Operation
	service  *Service
	segments []string // of the path template
	handle   func(*call) (any, error)
}

func newRoute(service *Service, op *Operation) *route {
	return &route{Operation: op, service: service, segments: strings.Split(op.URI, "/")}
}

// match is whether an escaped path fits, and the labels in it. A label is one
// segment: the slashes of an ARN in it are escaped.
func (r *route) match(path string) (labels map[string]string, ok bool) {
	for i, want := range r.segments {
		segment, rest, more := strings.Cut(path, "/")
		if more != (i < len(r.segments)-1) {
			return nil, false
		}
		path = rest
		if !strings.HasPrefix(want, "{") {
			if segment != want {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(segment)
		if err != nil || value == "" {
			return nil, false
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[strings.Trim(want, "{}")] = value
	}
	return labels, true
}

func (s *Server) find(service, method, path string) (*route, map[string]string) {
	for _, r := range s.routes[service] {
		if r.Method == method && r.service.Protocol == RestJSON {
			if labels, ok := r.match(path); ok {
				return r, labels
			}
		}
	}
	return nil, nil
}

// Handle registers the function that does the operation. It panics if the
// operation's service is not served or the operation has a function already.
// The input that the function gets is valid and its caller allowed to make the
// call. See [Options.MapError] for its errors; a nil output is an empty one.
func Handle[In, Out any](s *Server, op *Op[In, Out], do func(context.Context, *In) (*Out, error)) {
	for _, routes := range s.routes {
		for _, r := range routes {
			if r.Operation != &op.Operation {
				continue
			}
			if r.handle != nil {
				panic("awsapi: two handlers of " + op.Name)
			}
			r.handle = func(c *call) (any, error) {
				in := new(In)
				if err := c.admit(in); err != nil {
					return nil, err
				}
				out, err := do(context.WithValue(c.request.Context(), callerKey{}, &c.caller), in)
				if out == nil && r.service.Protocol == RestJSON {
					return struct{}{}, err
				}
				if out == nil {
					out = new(Out)
				}
				if err == nil {
					c.output = out
				}
				return out, err
			}
			return
		}
	}
	panic("awsapi: no served service has the operation " + op.Name)
}

// A Describer tells the ARN of a resource that a request names, and what else
// conditions can ask about the two.
type Describer func(caller *Caller, in any, r Resource) (arn string, keys policy.Context)

// Describe registers what knows the resources of a service better than their
// kind and id do. It is called before the server serves.
func (s *Server) Describe(service *Service, d Describer) { s.describers[service] = d }

// Handles is whether the operation has a handler; without one it is answered
// with NotImplementedException.
func (s *Server) Handles(op *Operation) bool {
	for _, routes := range s.routes {
		for _, r := range routes {
			if r.Operation == op {
				return r.handle != nil
			}
		}
	}
	return false
}

// A call is one request on its way.
type call struct {
	server   *Server
	request  *http.Request
	protocol Protocol
	route    *route // nil until it is found
	body     []byte
	params   Params
	form     *param // of the query protocol
	caller   Caller

	circumstancesOf policy.Context // of the request, without what is known of a resource

	decision  string // of the audit record
	reason    string
	resources []string
	claimed   string // access key id of the signature, before that is verified
	input     any    // once it is understood
	output    any    // of a handler that succeeded
	routine   bool   // the handler has changed nothing that is worth a record
}

// The decisions of an audit record.
const (
	refused = "refused" // not authenticated, or not understood
	denied  = "denied"
	allowed = "allowed"
)

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := s.Now()
	c := &call{server: s, request: r, decision: refused, protocol: s.guessProtocol(r)}
	c.caller.call = c
	c.caller.RequestID = audit.NewID()
	c.caller.Region = s.Region
	c.caller.UserAgent = r.UserAgent()
	if addr, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.caller.SourceIP = addr.Addr().Unmap()
	}
	a := &answer{header: http.Header{}}
	status, failure := c.serve(a)
	if err := c.audit(status, failure, s.Now().Sub(start)); err != nil && failure == nil && !c.route.ReadOnly {
		c.unrecorded(a)
	}
	a.send(w)
}

// serve answers the call and returns what it answered.
func (c *call) serve(w http.ResponseWriter) (status int, failure Exception) {
	out, err := c.perform()
	h := w.Header()
	h.Set("X-Amzn-Requestid", c.caller.RequestID)
	h.Set("Cache-Control", "no-store")
	if err == nil {
		if err = c.succeed(w, out); err == nil {
			return c.route.Success, nil
		}
	}
	e := c.exception(err)
	return c.fail(w, e), e
}

// writeJSON writes nothing if v cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text) // whoever went away gets no answer
	return nil
}

// perform takes the call through all its steps. A panic is an internal error.
func (c *call) perform() (out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // net/http knows it by itself only
				panic(p)
			}
			c.server.Log.Error("handler panicked", "requestID", c.caller.RequestID, "panic", p, "stack", string(debug.Stack()))
			out, err = nil, errPanicked
		}
	}()
	if err := c.admitSource(); err != nil {
		return nil, err
	}
	if err := c.identify(); err != nil {
		c.chargeSource(err)
		return nil, err
	}
	if err := c.admitCaller(); err != nil {
		return nil, err
	}
	if c.route.handle == nil {
		return nil, Errorf(NotImplemented, "%s is not built yet in this version of Rehost", c.route.Name)
	}
	return c.route.handle(c)
}

// identify finds out who calls, and what.
func (c *call) identify() (err error) {
	path, _, _ := strings.Cut(c.request.RequestURI, "?")
	r, ok := c.server.peerRoute(c.request.Method, path)
	if !ok {
		return c.authenticate()
	}
	c.found(r, nil)
	if err := c.authenticatePeer(); err != nil {
		return err
	}
	c.body, err = c.readBody()
	return err
}

var errPanicked = errors.New("handler panicked")

// peerRoute finds an operation that certificates authenticate.
func (s *Server) peerRoute(method, path string) (*route, bool) {
	for service := range s.routes {
		if r, _ := s.find(service, method, path); r != nil && r.MutualTLS {
			return r, true
		}
	}
	return nil, false
}

func (c *call) found(r *route, labels map[string]string) {
	c.route, c.caller.Operation = r, r.Operation
	c.params.Labels = labels
}

// authenticatePeer takes the caller from the connection.
func (c *call) authenticatePeer() error {
	state := c.request.TLS
	if state == nil || len(state.VerifiedChains) == 0 || c.server.VerifyPeer == nil {
		return Errorf(MissingAuthentication, "%s needs a client certificate of this service", c.route.Name)
	}
	leaf := state.VerifiedChains[0][0]
	name, err := c.server.VerifyPeer(c.request.Context(), leaf)
	if err != nil {
		return &reasonedError{Errorf(UnrecognizedClient, "The client certificate is not accepted"), err.Error()}
	}
	c.caller.Peer, c.caller.Certificate = name, leaf
	return nil
}

// notePeer keeps whose certificate came with a signed call.
func (c *call) notePeer() {
	state := c.request.TLS
	if state == nil || len(state.VerifiedChains) == 0 || c.server.VerifyPeer == nil {
		return
	}
	leaf := state.VerifiedChains[0][0]
	if name, err := c.server.VerifyPeer(c.request.Context(), leaf); err == nil {
		c.caller.Peer, c.caller.Certificate = name, leaf
	}
}

// authenticate reads and verifies the signature and finds the operation. What
// costs little is checked first, and nobody learns what operations there are
// without having signed.
func (c *call) authenticate() error {
	r, err := readSignature(c.request)
	if e := (*Error)(nil); c.protocol.form() && errors.As(err, &e) && e.Name == MissingAuthentication {
		return c.withoutSignature(err)
	}
	if err != nil {
		return err
	}
	if service := c.server.service(r.scope.service); service != nil {
		c.protocol = service.Protocol
	}
	c.claimed = r.keyID
	who, err := c.server.verifier.verify(c.request.Context(), r, func() ([]byte, error) {
		c.body, err = c.readBody()
		return c.body, err
	})
	if err != nil {
		return err
	}
	c.caller.Principal, c.params.Query = who, r.query
	c.notePeer()
	if err := c.server.Identity.Used(c.request.Context(), who.AccessKeyID, r.scope.service, r.scope.region); err != nil {
		c.server.Log.Error("the use of an access key is not noted", "err", err)
	}
	if service := c.server.service(r.scope.service); service.Protocol.form() {
		route, err := c.findQuery(c.server.routes[service.SigningName])
		if err != nil {
			return err
		}
		c.found(route, nil)
		return nil
	}
	route, labels := c.server.find(r.scope.service, r.Method, r.path)
	if route == nil {
		return Errorf(UnknownOperation, "There is no operation with this method and path") // which may hold anything
	}
	c.found(route, labels)
	return nil
}

// readBody reads the whole body, which is bounded because it is read before its
// signature can be verified.
func (c *call) readBody() ([]byte, error) {
	limit := c.server.MaxBody
	if c.request.Method == http.MethodGet || c.request.Method == http.MethodDelete {
		limit = min(limit, maxBodyOfNone)
	}
	return c.readBodyUpTo(limit)
}

func (c *call) readBodyUpTo(limit int64) ([]byte, error) {
	tooLarge := func() ([]byte, error) {
		// A client that still sends would find its connection reset, and not read why.
		_, _ = io.CopyN(io.Discard, c.request.Body, maxDrained)
		return nil, Errorf(TooLarge, "The body is larger than %d bytes", limit)
	}
	if c.request.ContentLength > limit {
		return tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(c.request.Body, limit+1))
	if err != nil {
		return nil, unparsable("The body ends too early")
	}
	if int64(len(body)) > limit {
		return tooLarge()
	}
	return body, nil
}

// maxDrained is how much of a body that is too large is read to no purpose.
const maxDrained = 256 << 10

// exception is the answer to an error. What nobody meant for the client stays
// in the log.
func (c *call) exception(err error) Exception {
	if e := (*identity.DeniedError)(nil); errors.As(err, &e) {
		c.decision, c.reason = denied, e.Decision.Reason()
		err = c.denial(e.Error(), e.Action, e.Resource, e.Context, e.Decision)
	}
	if e := Exception(nil); errors.As(err, &e) {
		if e := (*reasonedError)(nil); errors.As(err, &e) {
			c.reason = e.reason
		}
		return e
	}
	if c.server.MapError != nil {
		if e := Exception(nil); errors.As(c.server.MapError(err), &e) {
			if c.route != nil && e.HTTPStatus() < 500 && !c.route.Models(e.ErrorName()) {
				c.server.Log.Warn("error is not in the operation's model", "operation", c.route.Name, "error", e.ErrorName())
			}
			return e
		}
	}
	if !errors.Is(err, errPanicked) && c.request.Context().Err() == nil {
		c.server.Log.Error("call ended in an internal error", "requestID", c.caller.RequestID, "err", err)
	}
	return Errorf(InternalServer, "An internal error occurred; the service's log has it under request id %s", c.caller.RequestID)
}
