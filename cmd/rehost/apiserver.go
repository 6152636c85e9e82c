package main

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"rehost/awsapi"
	"rehost/ca"
)

// maxHeader bounds the headers of a request, in bytes; tokens are the longest.
const maxHeader = 64 << 10

// timeouts bound how long a client may take, so that one that is slow on
// purpose holds a connection no longer than one that works.
type timeouts struct {
	header time.Duration // for the TLS handshake, and again for the headers of a request
	read   time.Duration // for all of a request
	write  time.Duration // from the end of the headers to the end of the answer
	idle   time.Duration // between requests; agents call every three seconds
}

var apiTimeouts = timeouts{header: 10 * time.Second, read: time.Minute, write: time.Minute, idle: 2 * time.Minute}

// newAPIServer makes the server of port 8443.
func newAPIServer(h http.Handler, log *slog.Logger, t timeouts) *http.Server {
	return &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), ReadHeaderTimeout: t.header,
		ReadTimeout: t.read, WriteTimeout: t.write, IdleTimeout: t.idle, MaxHeaderBytes: maxHeader, ConnState: noteCertificate}
}

// RateFlags are the limits of calls and connections to the API.
type RateFlags struct {
	CallRate            float64 `help:"Calls a second that a user, a session of a role, or a certificate may make; ten seconds' worth at once. 0: no limit. Replication servers have none." default:"100"`
	StrangerRate        float64 `help:"Calls a second that prove nothing, from one address (IPv6: /64) or with one certificate; twenty seconds' worth at once. A wrong key or signature counts as five. 0: no limit." default:"20"`
	StrangerConnections int     `help:"Connections without a certificate of this service, from one address (IPv6: /64)." default:"512"`
}

// Validate implements kong's hook.
func (f RateFlags) Validate() error {
	if f.CallRate < 0 || f.StrangerRate < 0 || f.StrangerConnections < 1 {
		return errors.New("rates must not be negative, and there has to be a connection")
	}
	return nil
}

// limits are the flags as the API has them.
func (f RateFlags) limits() awsapi.Limits {
	return awsapi.Limits{PrincipalRate: f.CallRate, PrincipalBurst: 10 * f.CallRate, SourceRate: f.StrangerRate, SourceBurst: 20 * f.StrangerRate,
		Unlimited: isReplicationServer}
}

// isReplicationServer is whether a caller has shown a replication server's
// certificate. It reports for all its agents, twice a second for each.
func isReplicationServer(c *awsapi.Caller) bool {
	name, err := ca.ParseName(c.Peer)
	return err == nil && name.Role == ca.ReplicationServer
}
