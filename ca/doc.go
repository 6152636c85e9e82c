// Package ca is the service's own certificate authority: signing requests go
// in, certificates that name one role come out, and both ends of every TLS
// connection find here the configuration that checks them.
//
// An [Authority] holds the root key and issues. An [Endpoint] is all that a
// program needs to take part: its own certificate, the root, the revoked ones.
// Its configurations check the name of the peer, role and id, besides the chain.
// Programs on source servers use only the latter half.
package ca
