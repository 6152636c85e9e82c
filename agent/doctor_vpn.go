package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rehost/ca"
	"rehost/tunnel"
)

// passage is the way into the service's VPN, of an invitation or of the
// installation; nil if calls do not go through one.
func (d *doctor) passage(endpoint *url.URL) (*passage, error) {
	switch {
	case d.VPNInvitation != "":
		own, err := readInvitation(d.VPNInvitation, quietLog)
		if err != nil {
			return nil, err
		}
		return &passage{own: own}, nil
	case d.installed && d.config.VPN && endpoint.String() == d.config.Endpoint: // who names another one asks about that
		return openPassage(d.dir)
	}
	return nil, nil
}

// throughVPN looks at the same as without a VPN, by that way, which it closes.
func (d *doctor) throughVPN(ctx context.Context, endpoint *url.URL, way *passage) {
	if d.vpn(ctx, way) {
		if endpoint != nil {
			d.service(ctx, endpoint, way.dialService)
		} else {
			d.nowhere()
		}
		d.replicationInside(ctx, endpoint, way)
	}
	_ = way.close() // of use only if nothing has failed
}

// vpn looks whether the way leads there, and how much of it if not.
func (d *doctor) vpn(ctx context.Context, way *passage) (open bool) {
	const name = "VPN"
	c, err := way.dial(ctx, tunnel.APIPort)
	var silent *tunnel.HandshakeError
	switch {
	case err == nil:
		c.Close()
		by := "a tunnel of its own"
		if way.lent() {
			by = "the running agent's tunnel"
		}
		d.ok(name, "handshake at %s, through %s", way.last().UTC().Format(time.RFC3339), by)
		return true
	case errors.As(err, &silent):
		d.silence(ctx, silent, way.last())
	case errors.Is(err, errNotLent):
		d.note(Skipped, name, Hint(err), "%v", err)
	default:
		d.fails(name, err, "the VPN answers, and the API does not in it: the service's log says why")
	}
	return false
}

// silence says what can be known of a VPN that does not answer. It does not say why
// itself: not to a key that it does not know, nor to a handshake that is older than
// one that it has seen.
func (d *doctor) silence(ctx context.Context, err *tunnel.HandshakeError, last time.Time) {
	const name = "VPN"
	if err.Err != nil {
		d.fails(name, err, "")
		return
	}
	began, end := d.keyTime()
	if last.After(began) {
		began = last
	}
	now := d.now()
	switch {
	case now.Before(began):
		d.note(Fails, name, "set this machine's clock (timedatectl set-ntp true, or chrony): what is older than what the service has seen is taken for a replay, and not answered",
			"no handshake with %s: this machine's clock says %s and was at %s before", err.Endpoint, now.UTC().Format(time.RFC3339), began.UTC().Format(time.RFC3339))
		return
	case !end.IsZero() && now.After(end):
		d.note(Fails, name, "install again (rehost vpn invite, where the service is, makes an invitation), and the machine stays the same source server; if it is not that late, set this machine's clock",
			"no handshake with %s: the agent's key has ended with its certificate, at %s", err.Endpoint, end.UTC().Format(time.RFC3339))
		return
	}
	switch refused := knock(ctx, err.Endpoint); {
	case refused == nil:
		d.fails(name, err, "")
	case errors.Is(refused, unix.ECONNREFUSED):
		d.note(Fails, name, "is the service running, with --vpn and this port? A firewall may say the same (UDP)", "no handshake with %s: nothing listens there, says its machine or a firewall", err.Endpoint)
	default:
		d.note(Fails, name, "let this machine send UDP to "+err.Endpoint+" and get answers: its own firewall or a router on the way does not", "no handshake with %s: %v", err.Endpoint, refused)
	}
}

// keyTime is from when to when the installation's key counts, as far as that is known:
// it was made here, by this clock, and ends with the certificate that it came with.
func (d *doctor) keyTime() (began, end time.Time) {
	if d.VPNInvitation != "" || !d.installed {
		return began, end
	}
	if info, err := os.Lstat(d.dir.path(vpnFile)); err == nil {
		began = info.ModTime()
	}
	pair, err := ca.LoadPair(d.dir.path(pairFile))
	if err != nil {
		return began, end
	}
	if pair.Leaf.NotBefore.After(began) {
		began = pair.Leaf.NotBefore
	}
	return began, pair.Leaf.NotAfter
}

// knocks are how often a port is tried, and knockWait for how long each time.
const (
	knocks    = 3
	knockWait = 500 * time.Millisecond
)

// knock sends a little to a UDP port and returns what the machines on the way say to
// that. Nil is silence, which is all that WireGuard answers too.
func knock(ctx context.Context, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	for range knocks {
		if _, err := c.Write([]byte{0}); err != nil { // tells of the one before, too
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(knockWait))
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return nil
}

// replicationInside knocks at port 1500 in the VPN, if data goes there.
func (d *doctor) replicationInside(ctx context.Context, endpoint *url.URL, way *passage) {
	const name = "replication"
	var p pairing
	if d.installed && d.VPNInvitation == "" {
		p, _ = d.dir.pairing()
	}
	to, err := netip.ParseAddrPort(p.Address)
	switch {
	case p.Address == "":
		d.note(Skipped, name, "", "the service says to an agent that is installed where its data goes")
		return
	case err != nil || !d.hub(to.Addr()):
		d.replication(ctx, endpoint)
		return
	}
	conn, err := way.dial(ctx, to.Port())
	if err == nil {
		err = stays(conn)
	}
	if err != nil {
		d.fails(name, err, "aws mgn describe-source-servers says whether this source server has ended, which closes this port; the service's log, whether the replication server can be reached")
		return
	}
	d.ok(name, "%s can be reached, through the VPN", p.Address)
}

// hub is whether the service's VPN is at that address inside.
func (d *doctor) hub(address netip.Addr) bool {
	var s vpnState
	if err := d.dir.load(vpnFile, &s); err != nil {
		return false
	}
	hub, err := tunnel.ParsePublicKey(s.Service)
	return err == nil && hub.Address() == address
}

// stays closes a connection, which is to be open still: a hub takes one of who may
// not come, and ends it. A server of TLS waits.
func stays(c net.Conn) error {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return fmt.Errorf("connected, and closed at once: %w", err)
}
