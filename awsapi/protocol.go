package awsapi

import (
	"net/http"
	"strings"
)

// A Protocol is how a service's calls are written in HTTP.
type Protocol int

const (
	// RestJSON is AWS restJson1: a path for every operation, JSON in both directions.
	RestJSON Protocol = iota
	// Query is AWS query: one path, the operation and its input as a form, XML
	// as the answer. https://smithy.io/2.0/aws/protocols/aws-query-protocol.html
	Query
	// EC2Query is AWS ec2: query with other names for the same things, lists
	// without a level of their own, and answers of another form.
	// https://smithy.io/2.0/aws/protocols/aws-ec2-query-protocol.html
	EC2Query
)

// form is whether calls come as a form to the root.
func (p Protocol) form() bool { return p == Query || p == EC2Query }

// service is the one of a signing name, nil for none. Services that share a
// name share the protocol too.
func (s *Server) service(signingName string) *Service {
	if routes := s.routes[signingName]; len(routes) > 0 {
		return routes[0].service
	}
	return nil
}

// guessProtocol tells in which form a request is answered of which nothing is
// known yet: all calls of the query protocols go to the root, and no others do.
func (s *Server) guessProtocol(r *http.Request) Protocol {
	if path, _, _ := strings.Cut(r.RequestURI, "?"); path != "/" {
		return RestJSON
	}
	for _, routes := range s.routes {
		if routes[0].service.Protocol == Query {
			return Query
		}
	}
	return RestJSON
}

// succeed writes the answer of a call that was done; nothing if it cannot be
// encoded.
func (c *call) succeed(w http.ResponseWriter, out any) error {
	switch {
	case c.protocol == EC2Query:
		return c.succeedEC2(w, out)
	case c.protocol == Query:
		return c.succeedQuery(w, out)
	case c.route.Success == http.StatusNoContent:
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return writeJSON(w, c.route.Success, out)
}

// fail writes the answer of a call that was not done, and returns its status.
func (c *call) fail(w http.ResponseWriter, e Exception) (status int) {
	e.WriteHeader(w.Header())
	switch c.protocol {
	case Query:
		return c.failQuery(w, e)
	case EC2Query:
		return c.failEC2(w, e)
	case RestJSON:
		w.Header().Set("X-Amzn-Errortype", e.ErrorName())
		if err := writeJSON(w, e.HTTPStatus(), e); err != nil {
			c.server.Log.Error("answer cannot be written", "requestID", c.caller.RequestID, "err", err)
		}
	}
	return e.HTTPStatus()
}
