package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rehost/e2e/site"
	"rehost/internal/fault"
	"rehost/tunnel"
)

// vpnAt is the one port of the service that the machine outside reaches.
const vpnAt = outerAddress + ":51820"

// A sniffer sees all IPv4 on a wire of the service's machine.
type sniffer struct {
	t    *testing.T
	fd   int
	done chan struct{}

	mu       sync.Mutex // guards:
	captured []datagram
}

// A datagram is one that a sniffer has seen; data is of UDP alone.
type datagram struct {
	out      bool           // the service's machine has sent it
	from, to netip.AddrPort // without ports if it is not of UDP
	udp      bool
	data     []byte
}

func sniff(t *testing.T, ns, device string) *sniffer {
	t.Helper()
	s := &sniffer{t: t, done: make(chan struct{})}
	err := enter(ns, func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)) // in the network's order
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(s.done)
		packet := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(s.fd, packet, 0)
			if l, ok := from.(*unix.SockaddrLinklayer); err == nil && ok {
				s.note(packet[:n], l.Pkttype == unix.PACKET_OUTGOING)
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-s.done; unix.Close(s.fd) })
	return s
}

func (s *sniffer) note(packet []byte, out bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return
	}
	d := datagram{out: out}
	var ports [2]uint16
	if header := int(packet[0]&15) * 4; packet[9] == unix.IPPROTO_UDP && len(packet) >= header+8 {
		d.udp, d.data = true, bytes.Clone(packet[header+8:])
		ports = [2]uint16{binary.BigEndian.Uint16(packet[header:]), binary.BigEndian.Uint16(packet[header+2:])}
	}
	d.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), ports[0])
	d.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:20])), ports[1])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.captured = append(s.captured, d)
}

// take returns what was seen since the last time.
func (s *sniffer) take() (all []datagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, s.captured = s.captured, nil
	return all
}

// TestVPN_BadInput: outside there is nothing of the service but its UDP port. Who comes
// with a key that it does not know, with an invitation that is over, taken back or used,
// or with what somebody else has sent, reaches nothing and hears nothing; who runs the
// agent is told what that can be.
func TestVPN_BadInput(t *testing.T) {
	f := newFenced(t, "--listen", innerAddress+":8443", "--replication-listen", innerAddress+":1500", "--vpn", vpnAt)
	w, disk := f.world, fault.Loop(t, 24<<20)
	f.ip("-n", f.outside, "route", "delete", "default")
	f.sees(f.outside, outerAddress+":8443", portRefused)
	f.sees(f.outside, outerAddress+":1500", portRefused)
	wire := sniff(t, f.service, "outside")

	vpn := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(f.ctx, "ip", in(f.service, filepath.Join(w.bin, "rehost"), append([]string{"vpn", "--data", w.config.Data}, args...)...)...).Output()
		if err != nil {
			t.Fatalf("vpn %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	invite := func(expires string) (i tunnel.Invitation, file string) {
		t.Helper()
		text := vpn("invite", "--expires", expires)
		i, err := tunnel.ParseInvitation(text)
		file = filepath.Join(t.TempDir(), "invitation")
		if err := errors.Join(err, os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return i, file
	}
	agent := func(command, state, invitation string, args ...string) (string, error) {
		cmd := exec.CommandContext(f.ctx, "ip", in(f.outside, filepath.Join(w.bin, "rehost-agent"), append([]string{command, "--state-dir", state, "--bpffs", w.bpffs,
			"--endpoint", "rehost.invalid", "--ca-fingerprint", w.fingerprint(), "--vpn-invitation", invitation}, args...)...)...)
		cmd.Env = append(os.Environ(), w.installer()...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	install := func(state, invitation string) (string, error) {
		return agent("install", state, invitation, "--region", site.Region, "--no-prompt", "--no-service", "--force-volumes", "--devices", disk.Path)
	}
	// refused wants both commands to say what can be the matter, and the port to be silent
	// to them, whatever it says to others meanwhile.
	own := netip.AddrPort{} // of the agent that runs
	refused := func(name, invitation string) {
		t.Helper()
		state := filepath.Join(t.TempDir(), "agent")
		wire.take()
		var both sync.WaitGroup // each waits as long as a dial does
		for command, run := range map[string]func(state, invitation string) (string, error){
			"install": install,
			"doctor":  func(state, invitation string) (string, error) { return agent("doctor", state, invitation) },
		} {
			both.Go(func() {
				out, err := run(state, invitation)
				if err == nil || !strings.Contains(out, "no handshake with "+vpnAt+": wrong key or UDP blocked") || !strings.Contains(out, "an invitation that was used, taken back or is over (rehost vpn invite makes another)") {
					t.Errorf("%s: %s: %v: %s", name, command, err, out)
				}
			})
		}
		both.Wait()
		if _, err := os.Stat(state); err == nil {
			t.Errorf("%s: something was installed", name)
		}
		knocks := map[netip.AddrPort]bool{}
		all := wire.take()
		for _, d := range all {
			if d.udp && !d.out && d.from != own {
				knocks[d.from] = true
			}
		}
		for _, d := range all {
			if d.out && (knocks[d.to] || !d.udp) {
				t.Errorf("%s: the service's machine has sent %d bytes to %v", name, len(d.data), d.to)
			}
		}
		if len(knocks) < 2 {
			t.Errorf("%s: nothing came: %v", name, knocks)
		}
	}

	short, over := invite("1m")
	good, used := invite("1h")
	strange := good
	strange.Key = tunnel.NewKey()
	wrong := filepath.Join(t.TempDir(), "invitation")
	if err := os.WriteFile(wrong, []byte(strange.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("wrong key", wrong)
	unwanted, back := invite("1h")
	vpn("revoke", unwanted.Key.Public().String())
	refused("taken back", back)

	// The invitation that counts installs one agent, which replicates. All that goes by is kept.
	wire.take()
	if out, err := install(w.state, used); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	process, err := site.Start(f.ctx, w.log, "agent started", "ip", in(f.outside, filepath.Join(w.bin, "rehost-agent"), "run", "--state-dir", w.state)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Kill() })
	o := newObserver(w)
	point := func(what string) {
		t.Helper()
		now := time.Now()
		o.until(what, func() bool { return o.last.After(now) })
	}
	stop := scribble(t, []*fault.Disk{disk}, 1)
	defer stop()
	point("a point through the VPN")
	recorded := wire.take()

	// Somebody on the way has kept it, and sends it again from elsewhere.
	const elsewhere = "10.77.2.77"
	f.ip("-n", f.outside, "address", "add", elsewhere+"/24", "dev", "eth0")
	var thief net.Conn
	if err := enter(f.outside, func() (err error) {
		thief, err = (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(elsewhere)}}).Dial("udp", vpnAt)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	handshakes := 0
	for _, d := range recorded {
		if d.udp && !d.out {
			own = d.from // the agent comes after the installation
			if len(d.data) == 148 && d.data[0] == 1 {
				handshakes++
			}
			thief.Write(d.data)
		}
	}
	if handshakes < 2 {
		t.Errorf("only %d handshakes were recorded, of an installation and an agent", handshakes)
	}
	point("a point after the replay") // by now there was time for an answer
	for _, d := range wire.take() {
		if d.out && d.to.Addr().String() == elsewhere {
			t.Errorf("a replay is answered with %d bytes", len(d.data))
		}
	}
	if list := vpn("ls"); strings.Contains(list, elsewhere) || !strings.Contains(list, outsideAddress+":") {
		t.Errorf("after the replay the service sees %s", list)
	}

	// While the agent goes on, nobody else comes by what has let it in.
	gone := func(i tunnel.Invitation) func() bool {
		return func() bool { return !strings.Contains(vpn("ls"), i.Key.Public().String()) }
	}
	eventually(t, f.ctx, "the end of the invitation that was used", gone(good))
	refused("used twice", used)
	eventually(t, f.ctx, "the end of the invitation that is over", gone(short))
	refused("over", over)
	point("a point beside all that")
}
