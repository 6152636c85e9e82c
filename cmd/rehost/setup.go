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
	"slices"
	"syscall"

	"rehost/block"
	"rehost/control"
	"rehost/export"
	"rehost/identity"
	"rehost/store"
)

// What serve and replicator need around the packages they tie together.

// A logOutput is where a process logs to.
type logOutput struct{ w io.Writer }

func (l *logOutput) logger(level string) (*slog.Logger, error) {
	var lv slog.Level
	if err := lv.UnmarshalText([]byte(level)); err != nil {
		return nil, err
	}
	return slog.New(slog.NewTextHandler(l.w, &slog.HandlerOptions{Level: lv})), nil
}

// hosts are the names under which this machine is reached.
type hosts struct {
	first     string
	names     []string
	addresses []net.IP
}

// findHosts takes what is advertised, or else the host name and all addresses.
// The loopback ones are always among them.
func findHosts(advertised []string) (hosts, error) {
	var h hosts
	if len(advertised) == 0 {
		found, err := net.InterfaceAddrs()
		if err != nil {
			return h, err
		}
		for _, a := range found {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				advertised = append(advertised, n.IP.String())
			}
		}
		if name, err := os.Hostname(); err == nil && name != "" {
			advertised = append(advertised, name)
		}
	}
	advertised = append(advertised, "127.0.0.1", "localhost")
	h.first = advertised[0]
	for _, a := range advertised {
		if ip := net.ParseIP(a); ip == nil && !slices.Contains(h.names, a) {
			h.names = append(h.names, a)
		} else if ip != nil && !slices.ContainsFunc(h.addresses, ip.Equal) {
			h.addresses = append(h.addresses, ip)
		}
	}
	return h, nil
}

// publish writes a file for all to read, if it does not hold that already.
func publish(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
		return nil
	}
	return writeFile(path, text, 0o644)
}

// writeFile writes a file that after a crash is there whole or not at all.
func writeFile(path string, text []byte, mode fs.FileMode) (err error) {
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // what a crash has left may have another mode
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// profile is the name of the administrator's key in the credentials file.
const profile = "rehost"

func writeCredentials(path string, c identity.Credentials, region string) error {
	return writeFile(path, fmt.Appendf(nil, "[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\nregion = %s\n",
		profile, c.AccessKeyID, string(c.SecretAccessKey), region), 0o600)
}

// openStore opens the replicas in the data directory; the first time it makes
// the key that theirs are wrapped with.
func openStore(data string, log *slog.Logger) (*store.Store, error) {
	path := filepath.Join(data, "store.key")
	keys, err := store.OpenKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		keys, err = store.CreateKeyFile(path)
	}
	if err != nil {
		return nil, err
	}
	return store.Open(filepath.Join(data, "store"), keys, store.Options{Logger: log, Reserve: reserve(data)})
}

// reserve is what replicas leave free of the file system that dir is on: a
// twentieth, at most 1 GiB. The database beside them must be able to say that
// the disk is full.
func reserve(dir string) int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0
	}
	return min(1<<30, int64(st.Blocks)*st.Bsize/20)
}

// replicas is the store as the control plane reads it.
type replicas struct{ store *store.Store }

// Points implements [control.Replicas]: those that a machine may be started from.
func (r replicas) Points(ctx context.Context, id string) ([]block.Point, error) {
	replica, err := r.open(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var points []block.Point
	for _, p := range replica.Points() {
		if p.Consistent() {
			points = append(points, p.Point)
		}
	}
	return points, nil
}

// open shows what another process has written meanwhile, too.
func (r replicas) open(ctx context.Context, id string) (*store.Replica, error) {
	replica, err := r.store.Replica(ctx, id)
	if err != nil {
		return nil, err
	}
	return replica, replica.Refresh()
}

// Open implements [control.Replicas].
func (r replicas) Open(ctx context.Context, id string, seq block.Seq) (control.View, error) {
	replica, err := r.open(ctx, id)
	if err != nil {
		return nil, err
	}
	v, err := replica.At(seq)
	if err != nil {
		return nil, err
	}
	if !v.Point().Consistent() { // nothing is started from such a point, whoever asks
		return nil, fmt.Errorf("open point %v of replica %s: it is not crash-consistent: %w", seq, id, store.ErrNoPoint)
	}
	return view{v}, nil
}

// Delete implements [control.Replicas].
func (r replicas) Delete(ctx context.Context, id string) error {
	if err := r.store.Delete(ctx, id); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

type view struct{ *store.View }

// Device implements [control.View].
func (v view) Device(id block.DiskID) (export.Device, error) { return v.View.Disk(id) }

// Close implements [control.View]; a view of the store holds nothing.
func (v view) Close() error { return nil }

// sessions makes the credentials of agents and replication servers.
type sessions struct{ directory *identity.Directory }

func (s sessions) assume(ctx context.Context, role, id string) (control.Credentials, error) {
	c, err := s.directory.AssumeRoleAsService(ctx, identity.ServiceName, identity.AssumeRole{Role: role, Session: id, SourceIdentity: id})
	return control.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: string(c.SecretAccessKey), SessionToken: string(c.SessionToken), Expiration: c.Expires}, err
}

// Agent implements [control.Sessions].
func (s sessions) Agent(ctx context.Context, id string) (control.Credentials, error) {
	return s.assume(ctx, identity.AgentRole, id)
}

// ReplicationServer implements [control.Sessions].
func (s sessions) ReplicationServer(ctx context.Context, id string) (control.Credentials, error) {
	return s.assume(ctx, identity.ReplicationServerRole, id)
}

// Revoke implements [control.Sessions].
func (s sessions) Revoke(ctx context.Context, id string) error {
	return s.directory.RevokeSource(ctx, id)
}

// greet prints what to do next, the first time, and that the service is ready.
func (s *served) greet(stdout, stderr io.Writer) {
	url := s.url()
	if s.first {
		s.explain(stdout, url)
	}
	replication := "no replication server"
	if s.incoming != nil {
		replication = "replication on " + s.incoming.Addr().String()
	}
	if s.vpn != nil {
		replication += ", VPN on " + s.vpn.endpoint
	}
	fmt.Fprintf(stderr, "rehost: ready: API on %s, %s, data in %s\n", url, replication, s.cmd.Data)
}

// url is where others are told to reach the API.
func (s *served) url() string {
	_, port, _ := net.SplitHostPort(s.listener.Addr().String()) // of TCP
	if t, ok := s.listener.Addr().(*net.TCPAddr); ok && t.IP.IsLoopback() {
		return "https://" + s.listener.Addr().String()
	}
	return "https://" + net.JoinHostPort(s.hosts.first, port)
}

// caBundle has clients that are not ours believe the endpoint's certificate,
// unless it is one that they believe anyway.
func (s *served) caBundle() string {
	if s.outside != nil {
		return ""
	}
	return "AWS_CA_BUNDLE=" + s.cmd.Data + "/ca.pem "
}

// explain says what a person does after the first start. Every line can be
// pasted as it is.
func (s *served) explain(w io.Writer, url string) {
	fmt.Fprintf(w, `Rehost is set up in %[1]s. Talk to it with the AWS CLI, as its administrator:

    export AWS_SHARED_CREDENTIALS_FILE=%[1]s/%[2]s AWS_PROFILE=%[3]s
    export %[6]sAWS_ENDPOINT_URL=%[4]s AWS_REGION=%[5]s
    aws mgn initialize-service
    aws mgn describe-source-servers

`, s.cmd.Data, adminFile, profile, url, s.cmd.Region, s.caBundle())
	sum, err := s.agents.sum(agentName)
	if err != nil {
		fmt.Fprintf(w, "The agent is not there to be downloaded: put the program rehost-agent into %s (make build does).\n\n", s.agents.dir)
		return
	}
	// The sum is from here and not from the network, so the download needs no authority.
	fmt.Fprintf(w, `Install the agent on a server that is to move, as root. It asks for an access key: %[1]s/%[2]s has
one that can only install agents and ends by itself after %[3]d days (rehost keys create-installer makes more).

    curl -fsSkO %[4]s/agent/%[5]s
    echo "%[6]s  %[5]s" | sha256sum -c && chmod +x %[5]s
    ./%[5]s install --endpoint %[4]s --region %[7]s --ca-fingerprint %[8]s

Or, where %[1]s/ca.pem was copied to that server (GNU wget does as well):

    curl -fsS --cacert ca.pem %[4]s/install.sh | sh

`, s.cmd.Data, installerFile, int(installerLife.Hours()/24), url, agentName, sum, s.cmd.Region, s.authority.Fingerprint())
}
