package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rehost/launch/qemu"
)

// What `rehost doctor --exposure` finds is what is there: it looks at the sockets
// of the processes that run in the directory, and connects to them as a stranger
// does. The rules that it holds them against are those of SECURITY.md:
//
//   - What listens beyond this machine speaks TLS: 1.2 with ephemeral keys and
//     AEAD, or 1.3.
//   - A security group guards it, or the keys of the VPN.
//   - Its certificate is in its time, for a week at least.
//   - Keys end by themselves, or are replaced and used.
//   - Nobody else reads secrets, or writes where they are.
//
// A port that its groups open to everyone is warned of and no fault: so MGN opens 1500
// itself, and so does a new service with both, as one that nobody reaches replicates
// nothing. Where that is not to be, --strict makes it a fault.

var (
	errExposed    = errors.New("more can be reached, or by weaker means, than should be")
	errNotRunning = errors.New("no service runs in this directory")
)

// DoctorCmd is `rehost doctor`. Exit status: 0 all is as it should be, 1 it is not,
// 3 no service runs.
type DoctorCmd struct {
	Data     string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	Exposure bool   `help:"Everything that can be reached: ports, TLS, certificates, keys, files." required:""`
	Strict   bool   `help:"What is only warned of is a fault, too: ports that are open to everyone."`
	JSON     bool   `help:"As JSON."`
}

// An exposure is all that a service lets others reach.
type exposure struct {
	Ports []exposedPort `json:"ports"`
	Keys  []keyEntry    `json:"accessKeys"`
	Files []exposedFile `json:"files"`
}

// An exposedPort is one that a process of the service listens on.
type exposedPort struct {
	Address  string      `json:"address"` // host:port
	Network  string      `json:"network"` // tcp, udp
	PID      int         `json:"pid"`
	Program  string      `json:"program"`
	Purpose  string      `json:"purpose"`
	Reach    string      `json:"reach"` // who can get as far as the socket
	Guard    *portGuard  `json:"guard,omitempty"`
	TLS      *offeredTLS `json:"tls,omitempty"`
	Faults   []string    `json:"faults,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
}

// An exposedFile is one that is worth something.
type exposedFile struct {
	Path   string   `json:"path"`
	Mode   string   `json:"mode"`
	Faults []string `json:"faults,omitempty"`
}

// Run looks, and says what it has found.
func (c *DoctorCmd) Run(ctx context.Context, out io.Writer) error {
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return err
	}
	if _, err := os.Stat(data); err != nil {
		return err
	}
	var e exposure
	if e.Ports, err = c.ports(ctx, data); err != nil {
		return err
	}
	defaults := KeysLsCmd{OlderThan: 90 * 24 * time.Hour, Unused: 30 * 24 * time.Hour}
	if e.Keys, err = defaults.lines(ctx, data); err != nil {
		return err
	}
	if e.Files, err = secretFiles(data); err != nil {
		return err
	}
	if c.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(e)
	} else {
		err = e.print(out)
	}
	findings := e.faults()
	if c.Strict {
		findings += e.warnings()
	}
	if err == nil && findings > 0 {
		err = fmt.Errorf("%w: %d findings", errExposed, findings)
	}
	return err
}

func (c *DoctorCmd) ports(ctx context.Context, data string) ([]exposedPort, error) {
	pids, err := processesIn(data)
	if err == nil && len(pids) == 0 {
		err = fmt.Errorf("%s: %w", data, errNotRunning)
	}
	if err != nil {
		return nil, err
	}
	forwards := map[int]string{}
	instances, err := qemu.List(filepath.Join(data, "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, in := range instances {
		for _, f := range in.Forwards {
			forwards[f.HostPort] = fmt.Sprintf("port %d of instance %s", f.GuestPort, in.ID)
		}
	}
	guards, err := findGuards(ctx, data, pids)
	if err != nil {
		return nil, err
	}
	var ports []exposedPort
	for _, pid := range pids {
		sockets, err := listening(pid)
		if err != nil {
			return nil, err
		}
		for _, s := range sockets {
			ports = append(ports, c.port(ctx, s, forwards, guards))
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("%s: %w", data, errNotRunning)
	}
	return ports, nil
}

// port says what a socket is, and holds it against the rules.
func (c *DoctorCmd) port(ctx context.Context, s socket, forwards map[int]string, guards guards) exposedPort {
	p := exposedPort{Address: s.address.String(), Network: s.network, PID: s.pid, Program: s.program, Reach: reach(s.address.Addr())}
	beyond := !s.address.Addr().IsLoopback()
	var err error
	if s.network == "tcp" {
		p.TLS, err = offered(ctx, dialAddress(s.address))
	}
	p.Guard, p.Purpose = guards.of(s)
	if p.TLS != nil {
		p.Faults = p.TLS.faults(time.Now())
	}
	forward := forwards[int(s.address.Port())]
	switch {
	case p.Guard != nil:
	case p.TLS != nil:
		p.Purpose = p.TLS.purpose
	case forward != "":
		p.Purpose = forward
	case err != nil:
		p.Purpose = "not known: " + err.Error()
	default:
		p.Purpose = "says nothing to who connects from here"
	}
	switch {
	case !beyond:
		return p
	case forward != "" && p.Guard == nil:
		p.Faults = append(p.Faults, "an instance can be reached from beyond this machine")
		return p
	case err != nil:
		p.Faults = append(p.Faults, "what is open beyond this machine has to speak TLS")
	}
	faults, warnings := p.Guard.findings(s.address.Port())
	p.Faults, p.Warnings = append(p.Faults, faults...), warnings
	return p
}

// reach says who gets as far as a listening socket.
func reach(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "this machine"
	case a.IsUnspecified():
		return "everyone who reaches this machine"
	}
	return "everyone who reaches " + a.String()
}

// dialAddress is where a listening socket is connected to from here.
func dialAddress(a netip.AddrPort) string {
	if a.Addr().IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if a.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		return netip.AddrPortFrom(loopback, a.Port()).String()
	}
	return a.String()
}

// secretFiles looks at the modes of what must be nobody else's.
func secretFiles(data string) (files []exposedFile, err error) {
	for _, name := range []string{".", "ca", sealingKeyFile, "store.key", "control.db", "replicator.pem", adminFile, installerFile, auditDir} {
		info, err := os.Stat(filepath.Join(data, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // kept elsewhere, or not made yet
		}
		if err != nil {
			return nil, err
		}
		f := exposedFile{Path: filepath.Join(data, name), Mode: fmt.Sprintf("%04o", info.Mode().Perm())}
		switch others := info.Mode().Perm() & 0o077; {
		case others&0o022 != 0:
			f.Faults = append(f.Faults, "others may write it: chmod go-rwx, and make sure that nobody has")
		case others != 0 && !info.IsDir():
			f.Faults = append(f.Faults, "others may read it: chmod go-rwx, and replace what is in it")
		}
		files = append(files, f)
	}
	return files, nil
}

func (e exposure) faults() (n int) {
	for _, p := range e.Ports {
		n += len(p.Faults)
	}
	for _, k := range e.Keys {
		if k.Note != "" {
			n++
		}
	}
	for _, f := range e.Files {
		n += len(f.Faults)
	}
	return n
}

func (e exposure) warnings() (n int) {
	for _, p := range e.Ports {
		n += len(p.Warnings)
	}
	return n
}

func (e exposure) print(out io.Writer) error {
	w := errWriter{w: out}
	w.line("Ports")
	for _, p := range e.Ports {
		w.line("  %s %s: %s (%s, pid %d); %s", p.Network, p.Address, p.Purpose, p.Program, p.PID, p.Reach)
		for _, l := range p.Guard.lines() {
			w.line("      %s", l)
		}
		if p.TLS != nil {
			w.line("      %s", strings.Join(p.TLS.Versions, ", "))
			w.line("      1.2 with %s", strings.Join(p.TLS.Suites, ", "))
			w.line("      certificate until %s", stamp(p.TLS.CertificateEnds))
		}
		w.faults(p.Faults)
		for _, warning := range p.Warnings {
			w.line("    WARNS: %s", warning)
		}
	}
	w.line("Access keys")
	for _, k := range e.Keys {
		ends := "does not end by itself"
		if k.Ends != nil {
			ends = "ends " + stamp(*k.Ends)
		}
		w.line("  %s of %s: %s, %s", k.Key, k.User, k.Status, ends)
		if k.Note != "" {
			w.faults([]string{k.Note})
		}
	}
	w.line("Files")
	for _, f := range e.Files {
		w.line("  %s %s", f.Mode, f.Path)
		w.faults(f.Faults)
	}
	return w.err
}

// An errWriter writes lines until one cannot be written.
type errWriter struct {
	w   io.Writer
	err error
}

func (w *errWriter) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.w, format+"\n", args...)
	}
}

func (w *errWriter) faults(faults []string) {
	for _, f := range faults {
		w.line("    FAILS: %s", f)
	}
}
