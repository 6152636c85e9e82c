package awsapi

import (
	"context"
	"crypto/x509"
	"net/netip"

	"rehost/identity"
)

// A Caller is who makes a call, and from where.
type Caller struct {
	// Principal signed the request; nil for an operation that the client
	// certificate authenticates.
	Principal *identity.Principal
	// Peer is the name that [Options.VerifyPeer] found on Certificate, which
	// TLS has verified. Beside a Principal it is only what the connection has
	// shown besides, and none where that was not accepted.
	Peer        string
	Certificate *x509.Certificate

	RequestID string
	Region    string
	SourceIP  netip.Addr // of the connection
	UserAgent string
	Operation *Operation

	call *call
}

// Account is the account called into.
func (c *Caller) Account() string {
	if c.Principal == nil {
		return ""
	}
	return c.Principal.Account
}

type callerKey struct{}

// CallerOf returns the caller of the request that ctx belongs to. Outside of a
// handler it is nil.
func CallerOf(ctx context.Context) *Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	return c
}
