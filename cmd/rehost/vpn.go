package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/tunnel"
)

// vpnKeyFile holds the private key of the service's end of the tunnel. It is not
// replaced by itself: agents know the service by it.
const vpnKeyFile = "vpn.key"

// A vpn is the service's end of the tunnel, and where it listens inside.
type vpn struct {
	hub              *tunnel.Hub
	endpoint         string // that agents are told
	api, replication net.Listener
}

// openVPN opens what --vpn asks for: HOST:PORT is what agents are told, and the
// port is opened on all addresses, as WireGuard does.
func openVPN(data, address string, known hosts, log *slog.Logger) (v *vpn, err error) {
	host, service, err := net.SplitHostPort(address)
	port, portErr := strconv.ParseUint(service, 10, 16)
	if err := errors.Join(err, portErr); err != nil {
		return nil, fmt.Errorf("%w: --vpn %s: %w", errUsage, address, err)
	}
	if host == "" {
		host = known.first
	}
	key, err := loadVPNKey(filepath.Join(data, vpnKeyFile))
	if err != nil {
		return nil, err
	}
	v = new(vpn)
	if v.hub, err = tunnel.OpenHub(key, uint16(port), log.With("part", "vpn")); err != nil {
		return nil, fmt.Errorf("--vpn %s: %w", address, err)
	}
	v.endpoint = net.JoinHostPort(host, strconv.Itoa(int(v.hub.Port())))
	if v.api, err = v.hub.Listen(tunnel.APIPort); err == nil {
		v.replication, err = v.hub.Listen(tunnel.ReplicationPort)
	}
	if err != nil {
		return nil, errors.Join(err, v.hub.Close())
	}
	return v, nil
}

// loadVPNKey reads the key; the first time it makes it.
func loadVPNKey(path string) (tunnel.Key, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := tunnel.NewKey()
		return key, writeFile(path, []byte(key.Secret()+"\n"), 0o600)
	}
	if err != nil {
		return tunnel.Key{}, err
	}
	key, err := tunnel.ParseKey(string(text))
	if err != nil {
		return key, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// carry takes what comes to the replication port inside to a replication server
// that is a process of its own, until ctx ends. The tunnel ends here, TLS there.
func (v *vpn) carry(ctx context.Context, to func() string, log *slog.Logger) {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() { v.replication.Close() })
	defer stop()
	for {
		c, err := v.replication.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer c.Close()
			address := to()
			if address == "" {
				log.Warn("nobody is there to replicate to: start rehost replicator")
				return
			}
			out, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				log.Warn("the replication server cannot be reached", "err", err)
				return
			}
			tunnel.Join(ctx, c, out)
		})
	}
}

// VPNCmd is `rehost vpn`.
type VPNCmd struct {
	Data        string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	EndpointURL string `help:"Where the running service is reached; by default the directory says it." placeholder:"URL"`
	Region      string `help:"Region of the service." default:"us-east-1"`

	Invite VPNInviteCmd `cmd:"" help:"Print what a machine needs to be installed through the VPN, when nothing else of the service is open to it; beside a running service."`
	Ls     VPNLsCmd     `cmd:"" help:"List who may come through the VPN, agents and invitations, and when each was heard last."`
	Revoke VPNRevokeCmd `cmd:"" help:"Take back an invitation that nobody has used."`
}

func (c *VPNCmd) open() (*awsapi.Client, error) {
	client, err := besideMGN(c.Data, c.EndpointURL, c.Region)
	if err != nil {
		return nil, fmt.Errorf("the service that runs in %s would have to be asked: %w", c.Data, err)
	}
	return client, nil
}

// VPNInviteCmd is `rehost vpn invite`.
type VPNInviteCmd struct {
	Expires time.Duration `help:"How long the invitation counts." default:"24h"`
}

// Help implements [kong.HelpProvider].
func (c *VPNInviteCmd) Help() string {
	return `Prints a WireGuard configuration with a key of its own, for one installation:

    rehost vpn invite > invitation
    rehost-agent install --vpn-invitation invitation ...

Who has it can reach the API through the VPN, and nothing else, until an agent was installed with it or its time is over; an access key is needed all the same. rehost vpn ls lists the invitations that count, and rehost vpn revoke takes one back. The service keeps the public half only. It is asked by its API, as who is named by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE and AWS_SHARED_CREDENTIALS_FILE, or else as the administrator whose key is in the directory.`
}

// Run prints an invitation. Its private key is nowhere else.
func (c *VPNInviteCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	if c.Expires < time.Minute || c.Expires > 30*24*time.Hour {
		return fmt.Errorf("%w: --expires must be between a minute and 30 days", errUsage)
	}
	client, err := cli.VPN.open()
	if err != nil {
		return err
	}
	defer client.Close()
	key := tunnel.NewKey()
	answer, err := awsapi.Call(ctx, client, formgn.CreateTunnelInvitationForMgn, &formgn.CreateTunnelInvitationForMgnRequest{
		TunnelKey: key.Public().String(), LifetimeSeconds: int32(c.Expires / time.Second)})
	if err != nil {
		return err
	}
	until, err := awsapi.ParseDateTime(answer.NotAfter)
	if err != nil {
		return err
	}
	hub, err := tunnel.ParsePublicKey(answer.Tunnel.PublicKey)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, tunnel.Invitation{Key: key, Hub: hub, Endpoint: answer.Tunnel.Endpoint, Until: until}.Text())
	return err
}
