package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"rehost/ca"
)

// An offeredTLS is what a port has shown to a stranger.
type offeredTLS struct {
	Versions        []string  `json:"versions"`
	Suites          []string  `json:"suites"` // of versions before 1.3, whose own are all as good
	CertificateEnds time.Time `json:"certificateEnds"`

	purpose string
}

// least is how long a certificate has to last yet: the service renews its own weeks before.
const least = 7 * 24 * time.Hour

// errSeen ends a handshake in which a server has shown all that it is asked for.
var errSeen = errors.New("seen")

// errPlain says that a port answers, and not in TLS.
var errPlain = errors.New("it does not speak TLS")

// offered tries every version and suite that there is; nil for a port that says
// nothing to who connects from here, as one behind a security group. The error is
// [errPlain].
func offered(ctx context.Context, address string) (o *offeredTLS, err error) {
	_, err = shake(ctx, address, tls.VersionTLS13, nil)
	if record := (tls.RecordHeaderError{}); errors.As(err, &record) {
		return nil, errPlain
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return nil, nil // nor would it answer all the others
	}
	try := func(version uint16, suite ...uint16) bool {
		state, _ := shake(ctx, address, version, suite)
		if state == nil {
			return false
		}
		if o == nil {
			o = &offeredTLS{}
		}
		if len(state.PeerCertificates) > 0 {
			o.CertificateEnds, o.purpose = state.PeerCertificates[0].NotAfter, "TLS, under a certificate from elsewhere"
			if name, err := ca.PeerName(state.PeerCertificates[0]); err == nil {
				o.purpose = map[ca.Role]string{ca.Service: "the API", ca.ReplicationServer: "replication"}[name.Role]
			}
		}
		return true
	}
	all := slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites())
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS11, tls.VersionTLS10} {
		accepted := version == tls.VersionTLS13 && try(version)
		if version != tls.VersionTLS13 {
			for _, s := range all {
				if slices.Contains(s.SupportedVersions, version) && try(version, s.ID) {
					accepted = true
					if !slices.Contains(o.Suites, s.Name) {
						o.Suites = append(o.Suites, s.Name)
					}
				}
			}
		}
		if accepted {
			o.Versions = append(o.Versions, tls.VersionName(version))
		}
	}
	return o, nil
}

// shake begins a handshake of one version and some suites; the state is nil if the
// server will not have it, and the error says how it said so.
func shake(ctx context.Context, address string, version uint16, suites []uint16) (state *tls.ConnectionState, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{MinVersion: version, MaxVersion: version, CipherSuites: suites,
		InsecureSkipVerify: true, //nolint:gosec // nothing is believed or said: this only looks
		VerifyConnection:   func(s tls.ConnectionState) error { state = &s; return errSeen }}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
	}
	return state, err
}

// faults holds what was offered against the rules.
func (o *offeredTLS) faults(now time.Time) (faults []string) {
	for _, v := range o.Versions {
		if v != tls.VersionName(tls.VersionTLS12) && v != tls.VersionName(tls.VersionTLS13) {
			faults = append(faults, v+" is accepted")
		}
	}
	for _, s := range o.Suites {
		if !strings.HasPrefix(s, "TLS_ECDHE_") || !strings.Contains(s, "_GCM_") && !strings.Contains(s, "_POLY1305") {
			faults = append(faults, s+" is accepted, which lacks forward secrecy or AEAD")
		}
	}
	switch {
	case now.After(o.CertificateEnds):
		faults = append(faults, fmt.Sprintf("its certificate ended %s", stamp(o.CertificateEnds)))
	case now.Add(least).After(o.CertificateEnds):
		faults = append(faults, fmt.Sprintf("its certificate ends %s, and should have been renewed: see the service's log", stamp(o.CertificateEnds)))
	}
	return faults
}
