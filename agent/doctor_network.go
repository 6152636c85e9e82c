package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"rehost/ca"
)

// A clock may differ so far from the service's: signatures end there.
const (
	skewMost = 5 * time.Minute
	skewNote = 30 * time.Second
)

const dialTimeout = 10 * time.Second

// network looks at the way to the service and to the replication server.
func (d *doctor) network(ctx context.Context) {
	endpoint, err := d.endpoint()
	if err != nil {
		d.fails("service", err, "")
		return
	}
	way, err := d.passage(endpoint)
	switch {
	case err != nil:
		d.fails("VPN", err, "")
		return
	case way != nil:
		d.throughVPN(ctx, endpoint, way)
		return
	case endpoint == nil:
		d.nowhere()
		return
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: endpoint})
	if err != nil {
		d.fails("proxy", err, "HTTPS_PROXY is a URL like http://proxy:3128")
		return
	}
	if proxy != nil {
		d.ok("proxy", "%s, to the service; replication does not go through it", proxy.Redacted())
	} else {
		d.ok("proxy", "none")
	}
	target := endpoint
	if proxy != nil {
		target = proxy // which finds the service itself
	}
	if d.resolves(ctx, "DNS", target.Hostname()) {
		d.service(ctx, endpoint, nil)
	}
	d.replication(ctx, endpoint)
}

func (d *doctor) nowhere() {
	d.note(Skipped, "service", "name it with --endpoint, and --ca or --ca-fingerprint", "nobody has said where it is")
}

// endpoint is where the service is; nil if nobody has said it.
func (d *doctor) endpoint() (*url.URL, error) {
	text := d.Endpoint
	if text == "" && d.installed {
		text = d.config.Endpoint
	}
	if text == "" {
		return nil, nil
	}
	text, err := ParseEndpoint(text)
	if err != nil {
		return nil, err
	}
	return url.Parse(text)
}

func (d *doctor) resolves(ctx context.Context, name, host string) bool {
	if net.ParseIP(host) != nil {
		d.ok(name, "%s is an address", host)
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		d.fails(name, err, "")
		return false
	}
	d.ok(name, "%s is %s", host, addresses[0])
	return true
}

// believed is whom this machine believes; nil without an authority.
func (d *doctor) believed(ctx context.Context, endpoint *url.URL, dial dialer) (*ca.Bundle, error) {
	switch {
	case d.CA != "" || d.CAFingerprint != "":
		return findBundle(ctx, endpoint.String(), d.CA, normalFingerprint(d.CAFingerprint), dial)
	case d.installed:
		return loadBundle(d.dir.path(rootFile))
	}
	return nil, nil
}

// service connects as an agent does, and asks nothing but the time. With dial, no
// proxy is asked.
func (d *doctor) service(ctx context.Context, endpoint *url.URL, dial dialer) {
	bundle, err := d.believed(ctx, endpoint, dial)
	if err != nil {
		d.fails("TLS", err, "")
		return
	}
	var config *tls.Config
	if bundle != nil {
		config = ca.Endpoint{Bundle: bundle}.ClientConfig(ca.Name{Role: ca.Service})
	} else {
		config = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: ca.ServiceHost, InsecureSkipVerify: true} //nolint:gosec // nothing is sent or believed but the time
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, TLSHandshakeTimeout: dialTimeout, DisableKeepAlives: true}
	if dial != nil {
		transport.Proxy, transport.DialContext = nil, dial
	}
	client := &http.Client{Transport: transport, Timeout: 2 * dialTimeout}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, endpoint.String()+"/", nil)
	if err != nil {
		d.fails("TLS", err, "")
		return
	}
	sent := d.now()
	answer, err := client.Do(request)
	if err != nil {
		d.fails("service", err, "")
		return
	}
	answer.Body.Close()
	d.ok("service", "%s answers", endpoint.Host)
	d.secured(answer.TLS, bundle != nil)
	d.clock(answer.Header.Get("Date"), sent)
}

func (d *doctor) secured(state *tls.ConnectionState, believed bool) {
	if state == nil || len(state.PeerCertificates) == 0 {
		d.note(Fails, "TLS", "", "there is none")
		return
	}
	leaf, version := state.PeerCertificates[0], tls.VersionName(state.Version)
	switch {
	case !believed:
		d.note(Skipped, "TLS", "give --ca or --ca-fingerprint", "%s with somebody: without the authority nobody has proven to be the service", version)
	case d.now().Add(24 * time.Hour).After(leaf.NotAfter):
		d.note(Warning, "TLS", "the service renews it by itself: its log says why it does not", "%s, but the service's certificate ends %s", version, leaf.NotAfter.UTC().Format(time.RFC3339))
	default:
		d.ok("TLS", "%s; chain and name of the service are right, its certificate ends %s", version, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
}

// clock compares this machine's with what the service says, which is of whole
// seconds and as old as its way here.
func (d *doctor) clock(date string, sent time.Time) {
	theirs, err := http.ParseTime(date)
	if err != nil {
		d.note(Skipped, "clock", "", "the service does not say what time it is")
		return
	}
	var skew time.Duration
	if got := d.now(); theirs.Before(sent.Add(-time.Second)) {
		skew = sent.Sub(theirs)
	} else if theirs.After(got) {
		skew = theirs.Sub(got)
	}
	hint := "set this machine's clock (timedatectl set-ntp true, or chrony): signed calls are refused beyond five minutes"
	switch skew = skew.Round(time.Second); {
	case skew > skewMost:
		d.note(Fails, "clock", hint, "it differs from the service's by %s", skew)
	case skew > skewNote:
		d.note(Warning, "clock", hint, "it differs from the service's by %s", skew)
	default:
		d.ok("clock", "as the service's")
	}
}

// replication knocks where data goes: at what the service has said, or else
// where it is if nobody has said otherwise.
func (d *doctor) replication(ctx context.Context, endpoint *url.URL) {
	const name = "replication"
	var p pairing
	if d.installed {
		p, _ = d.dir.pairing()
	}
	address, sure := p.Address, p.Address != ""
	if !sure {
		address = net.JoinHostPort(endpoint.Hostname(), "1500")
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
		d.ok(name, "%s can be reached", address)
		conn.Close()
	case sure:
		d.fails(name, &connectError{address, err}, "")
	default:
		var dns *net.DNSError
		hint := "if the replication server is there: open TCP 1500 from this machine to it"
		if errors.As(err, &dns) {
			hint = "replication does not go through the proxy: this machine has to find the replication server itself"
		}
		d.note(Warning, name, hint, "%v; the service will say where it is", fmt.Errorf("connect to %s: %w", address, err))
	}
}
