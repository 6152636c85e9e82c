package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"rehost/awsapi/formgn"
	"rehost/tunnel"
)

// The way to the service through its VPN. The rules are:
//
//   - The private key is born here, and goes nowhere. Its public half goes with the
//     signing request of a certificate and counts as long as that does.
//   - An agent that was installed for the VPN makes every call through it, whether
//     or not the service could be reached otherwise.
//   - It replicates through it where the address that the service names is inside.

// retirement is how long a tunnel that was replaced stays for what still uses it.
const retirement = time.Minute

// A vpnState is the agent's end of the tunnel, as it is kept.
type vpnState struct {
	Version    int    `json:"version"`
	PrivateKey string `json:"privateKey"` // as WireGuard's programs write it
	Service    string `json:"service"`    // its public key
	Endpoint   string `json:"endpoint"`   // host:port, UDP
}

// newVPNState joins an answer of the service with the key that it is for.
func newVPNState(key tunnel.Key, out *formgn.Tunnel) (vpnState, error) {
	if out == nil {
		return vpnState{}, errNoVPN
	}
	hub, err := tunnel.ParsePublicKey(out.PublicKey)
	if err != nil {
		return vpnState{}, fmt.Errorf("read the service's VPN key: %w", err)
	}
	return vpnState{Version: stateVersion, PrivateKey: key.Secret(), Service: hub.String(), Endpoint: out.Endpoint}, nil
}

// errNoVPN says that the service has none.
var errNoVPN = errors.New("the service has no VPN")

func (s vpnState) open(log *slog.Logger) (*tunnel.Client, error) {
	key, err := tunnel.ParseKey(s.PrivateKey)
	if err == nil && s.Version != stateVersion {
		err = fmt.Errorf("version %d is not known", s.Version)
	}
	var hub tunnel.PublicKey
	if err == nil {
		hub, err = tunnel.ParsePublicKey(s.Service)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", vpnFile, err)
	}
	return tunnel.OpenClient(tunnel.ClientOptions{Key: key, Hub: hub, Endpoint: s.Endpoint, Log: log})
}

// String keeps the key out of logs.
func (s vpnState) String() string { return "VPN by " + s.Endpoint }

// GoString keeps it out of %#v too.
func (s vpnState) GoString() string { return s.String() }

// A vpn is the tunnel of an installation. It is safe for concurrent use.
type vpn struct {
	dir stateDir
	log *slog.Logger

	mu     sync.Mutex // guards:
	state  vpnState
	client *tunnel.Client
	old    *tunnel.Client // of the key before, until its retirement; or nil
	closed bool
}

func openVPN(dir stateDir, log *slog.Logger) (*vpn, error) {
	v := &vpn{dir: dir, log: log}
	if err := dir.load(vpnFile, &v.state); err != nil {
		return nil, err
	}
	var err error
	v.client, err = v.state.open(log)
	return v, err
}

func (v *vpn) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	err := v.client.Close()
	if v.old != nil {
		err = errors.Join(err, v.old.Close())
	}
	return err
}

func (v *vpn) now() *tunnel.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.client
}

// dialService makes the connections of calls, whatever the endpoint's address is.
func (v *vpn) dialService(ctx context.Context, _, _ string) (net.Conn, error) {
	return v.now().Dial(ctx, tunnel.APIPort)
}

// dialReplication makes those to a replication server.
func (v *vpn) dialReplication(ctx context.Context, network, address string) (net.Conn, error) {
	c := v.now()
	if to, err := netip.ParseAddrPort(address); err == nil && to.Addr() == c.Hub().Address() {
		return c.Dial(ctx, to.Port())
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// replace keeps another key and goes on with that. It is written before it is
// used, and before the certificate that came with it: an agent that ends in
// between then has one key too many, and not none.
func (v *vpn) replace(next vpnState) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return net.ErrClosed
	}
	client, err := next.open(v.log)
	if err != nil {
		return err
	}
	if err := replaceVPN(v.dir, next); err != nil {
		return errors.Join(err, client.Close())
	}
	if v.old != nil {
		v.old.Close()
	}
	old := v.client
	v.state, v.client, v.old = next, client, old
	time.AfterFunc(retirement, func() { old.Close() }) // closed before, it does nothing
	v.log.Info("VPN key renewed", "endpoint", next.Endpoint)
	return nil
}

// line is what status says.
func (v *vpn) line() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := v.client.Handshake()
	if last.IsZero() {
		return v.state.Endpoint + ", no handshake yet"
	}
	return fmt.Sprintf("%s, last handshake %s", v.state.Endpoint, last.UTC().Format(time.RFC3339))
}

// replaceVPN writes the state, and overwrites the key that it replaces.
func replaceVPN(dir stateDir, s vpnState) error {
	old, err := os.OpenFile(dir.path(vpnFile), os.O_WRONLY, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace VPN key: %w", err)
	}
	err = dir.save(vpnFile, s)
	if old == nil {
		return err
	}
	if err == nil {
		err = overwrite(old) // it has no name any more
	}
	return errors.Join(err, old.Close())
}

// dropVPN removes the state of an installation from before that had a VPN.
func dropVPN(dir stateDir) error {
	err := shred(dir.path(vpnFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// readInvitation reads the file of --vpn-invitation and opens its tunnel.
func readInvitation(path string, log *slog.Logger) (*tunnel.Client, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read invitation: %w", err)
	}
	i, err := tunnel.ParseInvitation(string(text))
	if err != nil {
		return nil, fmt.Errorf("read invitation %s: %w", path, err)
	}
	return tunnel.OpenClient(tunnel.ClientOptions{Key: i.Key, Hub: i.Hub, Endpoint: i.Endpoint, Log: log})
}
