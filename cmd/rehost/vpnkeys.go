package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

var (
	errNoVPN     = errors.New("the service has no VPN")
	errNotInvite = errors.New("no invitation that counts has this key or address")
)

// VPNLsCmd is `rehost vpn ls`.
type VPNLsCmd struct {
	JSON bool `help:"As a JSON list."`
}

// Run lists the keys that may come now.
func (c *VPNLsCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	client, err := cli.VPN.open()
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := tunnelKeys(ctx, client)
	if err != nil {
		return err
	}
	return printList(out, c.JSON, all, "OF\tHOST\tADDRESS\tPUBLIC KEY\tPORTS\tUNTIL\tLAST HANDSHAKE\tRECEIVED\tSENT\tENDPOINT", tunnelKeyRow)
}

// tunnelKeys asks for all of them, agents before invitations.
func tunnelKeys(ctx context.Context, client *awsapi.Client) ([]formgn.TunnelPeer, error) {
	all, err := pages(func(token *string) ([]formgn.TunnelPeer, string, error) {
		out, err := awsapi.Call(ctx, client, formgn.DescribeTunnelKeysForRehost, &formgn.DescribeTunnelKeysForRehostRequest{NextToken: token})
		if err != nil {
			return nil, "", err
		}
		if out.Tunnel == nil {
			return nil, "", errNoVPN
		}
		return out.Items, out.NextToken, nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b formgn.TunnelPeer) int {
		return strings.Compare(string(a.Kind)+a.SourceServerID, string(b.Kind)+b.SourceServerID)
	})
	return all, nil
}

// tunnelKeyRow is one key for people.
func tunnelKeyRow(k formgn.TunnelPeer, now time.Time) string {
	of, handshake, ports := k.SourceServerID, "never", make([]string, len(k.Ports))
	if k.Kind == formgn.TunnelPeerKindInvitation {
		of = "invitation"
	}
	if at, err := awsapi.ParseDateTime(k.LastHandshakeDateTime); err == nil {
		handshake = max(0, now.Sub(at)).Round(time.Second).String() + " ago"
	}
	for i, port := range k.Ports {
		ports[i] = fmt.Sprint(port)
	}
	until := k.NotAfter
	if at, err := awsapi.ParseDateTime(until); err == nil {
		until = at.UTC().Format(time.RFC3339)
	}
	return tableRow(of, k.Hostname, k.Address, k.TunnelKey, strings.Join(ports, ","), until, handshake, fmt.Sprint(awsapi.Value(k.ReceivedBytes)), fmt.Sprint(awsapi.Value(k.SentBytes)), k.Endpoint)
}

// VPNRevokeCmd is `rehost vpn revoke`.
type VPNRevokeCmd struct {
	Key string `arg:"" help:"Public key or address of the invitation, as ls shows them."`
}

// Help implements [kong.HelpProvider].
func (c *VPNRevokeCmd) Help() string {
	return "An agent's key is taken back with its source server (aws mgn disconnect-from-service), or by installing it again."
}

// Run takes the invitation back, at once.
func (c *VPNRevokeCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	client, err := cli.VPN.open()
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := tunnelKeys(ctx, client)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k formgn.TunnelPeer) bool { return k.TunnelKey == c.Key || k.Address == c.Key })
	switch {
	case i < 0:
		return fmt.Errorf("%w: %s", errNotInvite, c.Key)
	case all[i].Kind != formgn.TunnelPeerKindInvitation:
		return fmt.Errorf("%w: %s is of the agent of %s, whose key ends with its source server (aws mgn disconnect-from-service)", errNotInvite, c.Key, all[i].SourceServerID)
	}
	if _, err := awsapi.Call(ctx, client, formgn.DeleteTunnelInvitationForMgn, &formgn.DeleteTunnelInvitationForMgnRequest{TunnelKey: all[i].TunnelKey}); err != nil {
		return err
	}
	fmt.Fprintf(out, "The invitation at %s opens nothing any more.\n", all[i].Address)
	return nil
}
