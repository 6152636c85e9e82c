package control

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/tunnel"
)

// A hub remembers who may come.
type hub struct {
	key tunnel.PublicKey

	mu    sync.Mutex
	peers map[tunnel.PublicKey]string // what each may do
	told  int                         // how often
}

func (h *hub) Key() tunnel.PublicKey { return h.key }

func (h *hub) SetPeers(peers []tunnel.Peer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told++
	h.peers = map[tunnel.PublicKey]string{}
	for _, p := range peers {
		h.peers[p.Key] = "all"
		if slices.Equal(p.Ports, []uint16{tunnel.APIPort}) {
			h.peers[p.Key] = "calls"
		}
	}
	return nil
}

// Sights has been in touch with everybody.
func (h *hub) Sights() map[tunnel.PublicKey]tunnel.Sight {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[tunnel.PublicKey]tunnel.Sight{}
	for key := range h.peers {
		all[key] = tunnel.Sight{Endpoint: "192.0.2.7:4711", Handshake: time.Unix(1700000000, 0), Received: 148, Sent: 92}
	}
	return all
}

// times is how often it was told who may come.
func (h *hub) times() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told
}

func (h *hub) allows(key tunnel.PublicKey) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[key]
}

func withTunnel(t *testing.T) (*world, *hub) {
	w := newWorld(t)
	h := &hub{key: tunnel.NewKey().Public()}
	w.opts.Tunnel, w.opts.TunnelEndpoint = h, "rehost.example.com:51820"
	return w, h
}

// enter has a certificate issued that comes with a key.
func (w *world) enter(caller Caller, id string) tunnel.PublicKey {
	w.t.Helper()
	key := tunnel.NewKey().Public()
	out, err := w.IssueClientCertificate(w.t.Context(), caller, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: id, CertificateSigningRequest: csr(w.t), TunnelKey: p(key.String())})
	w.must(err)
	if out.Tunnel == nil || out.Tunnel.PublicKey != w.opts.Tunnel.Key().String() || out.Tunnel.Endpoint != w.opts.TunnelEndpoint {
		w.t.Errorf("the agent is told %+v", out.Tunnel)
	}
	return key
}

// TestTunnel_Keys: a key of the tunnel counts as long as the certificate that it
// has come with, and not a moment longer.
func TestTunnel_Keys(t *testing.T) {
	w, h := withTunnel(t)
	id := w.register("m1")
	first := w.enter(Caller{ARN: installer}, id)
	if got := h.allows(first); got != "all" {
		t.Fatalf("after the installation: %q", got)
	}
	// The authority has a clock of its own: the first certificate is to end earlier.
	w.must(w.db.update(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `UPDATE certificates SET not_after = ?`, stamp(w.clock.Now().Add(8*time.Hour)))
		return err
	}))
	w.clock.advance(7 * time.Hour)
	second := w.enter(Caller{ARN: "agent", SourceIdentity: id}, id)
	if h.allows(first) != "all" || h.allows(second) != "all" {
		t.Error("a renewal leaves the agent without a key for its answer")
	}
	w.clock.advance(2 * time.Hour)
	w.must(w.letIn(t.Context()))
	if h.allows(first) != "" || h.allows(second) != "all" {
		t.Error("a key has outlived its certificate, or has not lived as long")
	}

	// Installing again takes everything from before.
	if again := w.register("m1"); again != id {
		t.Fatal("another source server")
	}
	third := w.enter(Caller{ARN: installer}, id)
	if h.allows(second) != "" || h.allows(third) != "all" {
		t.Error("a key from before the installation counts")
	}

	// A key belongs to one, and is one's own.
	other := w.register("m2")
	for name, bad := range map[string]string{"of another": third.String(), "of the service": h.key.String(), "none": "x"} {
		_, err := w.IssueClientCertificate(t.Context(), Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: other, CertificateSigningRequest: csr(t), TunnelKey: &bad})
		if refused := new(mgn.ValidationException); !errors.As(err, &refused) {
			t.Errorf("a key %s: %v", name, err)
		}
	}
	w.opts.Tunnel = nil
	_, err := w.IssueClientCertificate(t.Context(), Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: other, CertificateSigningRequest: csr(t), TunnelKey: p(tunnel.NewKey().Public().String())})
	if refused := new(mgn.ValidationException); !errors.As(err, &refused) {
		t.Errorf("without a tunnel: %v", err)
	}
}

// TestTunnel_Ends: a server that has ended loses port 1500 at once and the rest
// when its agent has confirmed, or is given up.
func TestTunnel_Ends(t *testing.T) {
	for name, confirmed := range map[string]bool{"confirmed": true, "given up": false} {
		t.Run(name, func(t *testing.T) {
			w, h := withTunnel(t)
			id := w.register("m1")
			old := w.enter(Caller{ARN: installer}, id)
			if again := w.register("m1"); again != id {
				t.Fatal("another source server")
			}
			key := w.enter(Caller{ARN: installer}, id)
			w.clock.advance(time.Second)
			_, err := w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: id})
			w.must(err)
			w.must(w.letIn(t.Context()))
			if h.allows(key) != "calls" || h.allows(old) != "" {
				t.Fatalf("after the end: %q, and what was revoked before: %q", h.allows(key), h.allows(old))
			}
			_, err = w.GetAgentCommand(t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
			w.must(err)
			over := uninstallGrace + time.Second
			if confirmed {
				_, err = w.UpdateAgentBacklog(t.Context(), &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "DISCONNECTED"})
				w.must(err)
				over = goodbye + time.Second
			}
			w.must(w.letIn(t.Context()))
			if h.allows(key) != "calls" {
				t.Error("the answer cannot reach the agent")
			}
			w.clock.advance(over)
			w.must(w.letIn(t.Context()))
			if got := h.allows(key); got != "" {
				t.Errorf("in the end: %q", got)
			}
		})
	}
}

// TestTunnel_AtOnce: what ends a server is in force within a second, without
// anybody asking.
func TestTunnel_AtOnce(t *testing.T) {
	w, h := withTunnel(t)
	id := w.register("m1")
	key := w.enter(Caller{ARN: installer}, id)
	before := h.times()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.tendTunnel(ctx) }()
	defer func() { cancel(); <-done }()
	for end := time.Now().Add(time.Minute); h.times() == before; time.Sleep(time.Millisecond) { // its first look is not what is to be seen
		if time.Now().After(end) {
			t.Fatal("nobody looks who may come")
		}
	}
	_, err := w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: id})
	w.must(err)
	// No more than tunnelLook, or looking every so often would do as well.
	for end := time.Now().Add(tunnelLook * 9 / 10); h.allows(key) == "all"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server that has ended may replicate on")
		}
	}
}

// TestTunnel_Invitation: an invitation reaches the API alone, once.
func TestTunnel_Invitation(t *testing.T) {
	w, h := withTunnel(t)
	invite := func() tunnel.PublicKey {
		key := tunnel.NewKey().Public()
		out, err := w.CreateTunnelInvitation(t.Context(), &formgn.CreateTunnelInvitationForMgnRequest{TunnelKey: key.String(), LifetimeSeconds: 3600})
		w.must(err)
		if out.Tunnel.Endpoint != "rehost.example.com:51820" || parseStamp(out.NotAfter) != w.clock.Now().Add(time.Hour).UTC() {
			t.Errorf("answered %+v", out)
		}
		return key
	}
	used, unused := invite(), invite()
	if h.allows(used) != "calls" || h.allows(unused) != "calls" {
		t.Fatal("invitations do not let in, or too far:", slices.Collect(maps.Values(h.peers)))
	}
	if _, err := w.CreateTunnelInvitation(t.Context(), &formgn.CreateTunnelInvitationForMgnRequest{TunnelKey: used.String(), LifetimeSeconds: 3600}); err == nil {
		t.Error("a key was invited twice")
	}
	id := w.register("m1")
	key := w.enter(Caller{ARN: installer, Address: used.Address()}, id)
	if h.allows(used) != "calls" || h.allows(key) != "all" {
		t.Error("the answer cannot reach the installer")
	}
	w.clock.advance(goodbye + time.Second)
	w.must(w.letIn(t.Context()))
	if h.allows(used) != "" || h.allows(unused) != "calls" {
		t.Error("an invitation counts twice, or one has ended another")
	}
	w.clock.advance(time.Hour)
	w.must(w.letIn(t.Context()))
	if h.allows(unused) != "" || h.allows(key) != "all" {
		t.Error("an invitation counts after its time")
	}
}

// TestTunnel_Describe: who may come is listed, in pages, and nobody else.
func TestTunnel_Describe(t *testing.T) {
	w, h := withTunnel(t)
	list := func() map[string]formgn.TunnelPeer {
		t.Helper()
		all, in := map[string]formgn.TunnelPeer{}, &formgn.DescribeTunnelKeysForRehostRequest{MaxResults: p(int32(1))}
		for {
			out, err := w.DescribeTunnelKeys(t.Context(), in)
			w.must(err)
			if out.Tunnel.PublicKey != h.key.String() || len(out.Items) > 1 {
				t.Errorf("answered %+v", out)
			}
			for _, item := range out.Items {
				all[item.TunnelKey] = item
			}
			if out.NextToken == "" {
				return all
			}
			in.NextToken = &out.NextToken
		}
	}
	if all := list(); len(all) > 0 {
		t.Errorf("before anybody: %+v", all)
	}
	id := w.register("m1")
	key, invited := w.enter(Caller{ARN: installer}, id), tunnel.NewKey().Public()
	_, err := w.CreateTunnelInvitation(t.Context(), &formgn.CreateTunnelInvitationForMgnRequest{TunnelKey: invited.String(), LifetimeSeconds: 3600})
	w.must(err)
	all := list()
	if len(all) != 2 {
		t.Errorf("listed %+v", all)
	}
	a := all[key.String()]
	if a.Kind != formgn.TunnelPeerKindAgent || a.SourceServerID != id || a.Hostname == "" || a.Address != key.Address().String() || !slices.Equal(a.Ports, []int32{8443, 1500}) ||
		a.Endpoint != "192.0.2.7:4711" || a.LastHandshakeDateTime != "2023-11-14T22:13:20.000000Z" || *a.ReceivedBytes != 148 || *a.SentBytes != 92 {
		t.Errorf("the agent: %+v", a)
	}
	i := all[invited.String()]
	if i.Kind != formgn.TunnelPeerKindInvitation || i.SourceServerID != "" || !slices.Equal(i.Ports, []int32{8443}) || parseStamp(i.NotAfter) != w.clock.Now().Add(time.Hour).UTC() {
		t.Errorf("the invitation: %+v", i)
	}

	// An ended server's key is listed as long as it reaches something.
	_, err = w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: id})
	w.must(err)
	if a := list()[key.String()]; !slices.Equal(a.Ports, []int32{8443}) {
		t.Errorf("after the end: %+v", a)
	}
	w.clock.advance(25 * time.Hour)
	if all := list(); len(all) > 0 || h.allows(key) != "" || h.allows(invited) != "" {
		t.Errorf("in the end: %+v are listed, %q and %q allowed", all, h.allows(key), h.allows(invited))
	}
	w.opts.Tunnel = nil
	if out, err := w.DescribeTunnelKeys(t.Context(), &formgn.DescribeTunnelKeysForRehostRequest{}); err != nil || out.Tunnel != nil || len(out.Items) > 0 {
		t.Errorf("without a tunnel: %+v, %v", out, err)
	}
}

// TestTunnel_DescribePage: each key has its own source server's name, and a page of many asks
// the database no more often than a page of one.
func TestTunnel_DescribePage(t *testing.T) {
	w, _ := withTunnel(t)
	names := map[string]string{}
	for i := range 5 {
		id := fmt.Sprintf("m%d", i)
		names[w.enter(Caller{ARN: installer}, w.register(id)).String()] = "db-" + id
	}
	invited := tunnel.NewKey().Public()
	_, err := w.CreateTunnelInvitation(t.Context(), &formgn.CreateTunnelInvitationForMgnRequest{TunnelKey: invited.String(), LifetimeSeconds: 3600})
	w.must(err)
	names[invited.String()] = ""
	queries := w.countReads()
	page := func(most int32) (items []formgn.TunnelPeer, asked int64) {
		t.Helper()
		before := queries.Load()
		out, err := w.DescribeTunnelKeys(t.Context(), &formgn.DescribeTunnelKeysForRehostRequest{MaxResults: &most})
		w.must(err)
		return out.Items, queries.Load() - before
	}
	all, asked := page(100)
	if len(all) != len(names) {
		t.Errorf("listed %+v", all)
	}
	for _, item := range all {
		if want, ok := names[item.TunnelKey]; !ok || item.Hostname != want {
			t.Errorf("the key %s is of %q, want %q", item.TunnelKey, item.Hostname, want)
		}
	}
	if _, few := page(2); asked != few || few == 0 { // of two, one is an agent's at least
		t.Errorf("a page of %d asks the database %d times, one of 2 %d times", len(all), asked, few)
	}
}

// countReads counts what the readers of the database are asked from now on.
func (w *world) countReads() *atomic.Int64 {
	w.t.Helper()
	c := &countedDriver{real: w.db.reader.Driver(), dsn: "file:" + w.path + "?_pragma=query_only(1)", queries: new(atomic.Int64)}
	w.must(w.db.reader.Close())
	w.db.reader = sql.OpenDB(c)
	return c.queries
}

// A countedDriver opens connections to one database that count queries.
type countedDriver struct {
	real    driver.Driver
	dsn     string
	queries *atomic.Int64
}

func (d *countedDriver) Driver() driver.Driver { return d.real }

func (d *countedDriver) Connect(context.Context) (driver.Conn, error) {
	c, err := d.real.Open(d.dsn)
	return &countedConn{c, d.queries}, err
}

type countedConn struct {
	driver.Conn
	queries *atomic.Int64
}

func (c *countedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.queries.Add(1)
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

// TestTunnel_TakenBack: an invitation that is taken back lets nobody in, and takes
// nobody else with it.
func TestTunnel_TakenBack(t *testing.T) {
	w, h := withTunnel(t)
	back, other := tunnel.NewKey().Public(), tunnel.NewKey().Public()
	for _, key := range []tunnel.PublicKey{back, other} {
		_, err := w.CreateTunnelInvitation(t.Context(), &formgn.CreateTunnelInvitationForMgnRequest{TunnelKey: key.String(), LifetimeSeconds: 3600})
		w.must(err)
	}
	agent := w.enter(Caller{ARN: installer}, w.register("m1"))
	take := func(key tunnel.PublicKey) error {
		_, err := w.DeleteTunnelInvitation(t.Context(), &formgn.DeleteTunnelInvitationForMgnRequest{TunnelKey: key.String()})
		return err
	}
	w.must(take(back))
	if h.allows(back) != "" || h.allows(other) != "calls" || h.allows(agent) != "all" {
		t.Errorf("taken back: %q, another: %q, an agent: %q", h.allows(back), h.allows(other), h.allows(agent))
	}
	for name, key := range map[string]tunnel.PublicKey{"twice": back, "an agent's key": agent, "nobody's key": tunnel.NewKey().Public()} {
		if missing := new(mgn.ResourceNotFoundException); !errors.As(take(key), &missing) {
			t.Errorf("%s is not refused", name)
		}
	}
	w.clock.advance(2 * time.Hour)
	if missing := new(mgn.ResourceNotFoundException); !errors.As(take(other), &missing) {
		t.Error("an invitation that is over is taken back")
	}
	if h.allows(agent) != "all" {
		t.Error("an agent's key went with an invitation")
	}
}

// TestTunnel_Routing: dataPlaneRouting says which way data goes, for agents that
// have both.
func TestTunnel_Routing(t *testing.T) {
	w, h := withTunnel(t)
	inside, outside := netip.AddrPortFrom(h.key.Address(), tunnel.ReplicationPort).String(), "10.0.0.9:1500"
	with, without := w.register("m1"), w.register("m2")
	w.enter(Caller{ARN: installer}, with)
	_, err := w.IssueClientCertificate(t.Context(), Caller{ARN: installer}, &formgn.IssueClientCertificateForMgnRequest{SourceServerID: without, CertificateSigningRequest: csr(t)})
	w.must(err)
	_, err = w.DescribeReplicationServerAssociations(t.Context(), &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: "i-00000000000000001", Address: &outside})
	w.must(err)
	check := func(routing mgn.ReplicationConfigurationDataPlaneRouting, id, want string) {
		t.Helper()
		_, err := w.UpdateReplicationConfiguration(t.Context(), &mgn.UpdateReplicationConfigurationRequest{SourceServerID: id, DataPlaneRouting: routing})
		w.must(err)
		info, err := w.GetAgentReplicationInfo(t.Context(), &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: id})
		w.must(err)
		command, err := w.GetAgentCommand(t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
		w.must(err)
		if info.ReplicatorAddress != want || command.ReplicatorAddress != want {
			t.Errorf("%s, %s: %s and %s, want %s", routing, id, info.ReplicatorAddress, command.ReplicatorAddress, want)
		}
	}
	check("PRIVATE_IP", with, inside)
	check("PUBLIC_IP", with, outside)
	check("PRIVATE_IP", with, inside)
	check("PRIVATE_IP", without, outside)
	check("PUBLIC_IP", without, outside)
}
