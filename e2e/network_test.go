package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A network is three machines, as far as the kernel's network knows: one in the
// middle and two that reach it, each over a wire of its own. It is gone with the test.
type network struct {
	t                        *testing.T
	service, inside, outside string // network namespaces
}

// Addresses in it: of the middle on either wire, and of the other end.
const (
	innerAddress, insideAddress  = "10.77.1.1", "10.77.1.2"
	outerAddress, outsideAddress = "10.77.2.1", "10.77.2.2"
	outer6, outside6             = "fd77:2::1", "fd77:2::2"
)

func newNetwork(t *testing.T) *network {
	t.Helper()
	need(t, "ip")
	name := func(what string) string { return fmt.Sprintf("rehost-%d-%s", os.Getpid(), what) }
	n := &network{t, name("service"), name("inside"), name("outside")}
	for _, ns := range []string{n.service, n.inside, n.outside} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: no network namespaces here: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "netns", "delete", ns).CombinedOutput(); err != nil {
				t.Errorf("remove namespace %s: %v: %s", ns, err, out)
			}
		})
		n.ip("-n", ns, "link", "set", "lo", "up")
	}
	n.wire(n.inside, "inside", innerAddress, insideAddress)
	n.wire(n.outside, "outside", outerAddress, outsideAddress)
	n.ip("-n", n.service, "address", "add", outer6+"/64", "dev", "outside", "nodad")
	n.ip("-n", n.outside, "address", "add", outside6+"/64", "dev", "eth0", "nodad")
	n.ip("-n", n.outside, "route", "add", "default", "via", outerAddress)
	return n
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// wire puts a wire between the middle and another namespace.
func (n *network) wire(to, device, here, there string) {
	n.t.Helper()
	n.ip("-n", n.service, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", to)
	for _, end := range []struct{ ns, device, address string }{{n.service, device, here}, {to, "eth0", there}} {
		n.ip("-n", end.ns, "address", "add", end.address+"/24", "dev", end.device)
		n.ip("-n", end.ns, "link", "set", end.device, "up")
	}
}

// in is a command as one in the namespace.
func in(ns, program string, args ...string) []string {
	return append([]string{"netns", "exec", ns, program}, args...)
}

// enter does something in a namespace: sockets that are made then are its.
func enter(ns string, do func() error) error {
	done := make(chan error)
	go func() { // a thread of its own, which ends with the goroutine, since it is never unlocked
		runtime.LockOSThread()
		f, err := os.Open(filepath.Join("/run/netns", ns))
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// dialer connects from a namespace.
func dialer(ns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = enter(ns, func() (err error) {
			c, err = (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// What somebody who connects sees of a port.
const (
	portSilent  = "silent"  // no answer at all
	portRefused = "refused" // nobody listens
	portReset   = "reset"   // and not a byte before
	portTLS     = "TLS"
)

// scan connects to a port, begins TLS as every client does, and says what comes.
func scan(ns, address string) string {
	c, err := dialer(ns)(context.Background(), "tcp", address)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return portRefused
	case errors.Is(err, unix.ECONNRESET):
		return portReset
	case err != nil:
		return portSilent
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	hello, ours := net.Pipe()
	go func() { // the first record of a handshake, from the library itself
		helloTLS(hello)
		hello.Close()
	}()
	record := make([]byte, 4096)
	k, err := ours.Read(record)
	ours.Close()
	if err != nil {
		return err.Error()
	}
	c.Write(record[:k]) // may find it reset already
	first := make([]byte, 1)
	switch _, err := c.Read(first); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return portSilent
	case err != nil:
		return portReset
	}
	return portTLS
}

// openPorts are all TCP ports of an address that somebody finds open, by asking each.
func openPorts(t *testing.T, ns, address string) (ports []string) {
	t.Helper()
	args := []string{"-n", "-Pn", "-sS", "-p-", "-T4", "--min-rate", "20000", "--max-retries", "1", "-oG", "-"}
	if strings.Contains(address, ":") {
		args = append(args, "-6")
	}
	began := time.Now()
	out, err := exec.CommandContext(t.Context(), "ip", in(ns, "nmap", append(args, address)...)...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "1 IP address (1 host up) scanned") {
		t.Fatalf("nmap: %v: %s", err, out)
	}
	for _, m := range regexp.MustCompile(`\b(\d+)/open/tcp`).FindAllStringSubmatch(string(out), -1) {
		ports = append(ports, m[1])
	}
	t.Logf("%s finds %v open at %s after %v", ns, ports, address, time.Since(began).Round(time.Millisecond))
	return ports
}

// weakSuites are suites of TLS 1.2 without forward secrecy or AEAD, as far as openssl has them.
const weakSuites = "ALL:COMPLEMENTOFALL:!ECDHE-ECDSA-AES128-GCM-SHA256:!ECDHE-ECDSA-AES256-GCM-SHA384:!ECDHE-ECDSA-CHACHA20-POLY1305:@SECLEVEL=0"

// shows asks a port for TLS as a stranger without a certificate can, and checks what it
// shows: 1.3, and 1.2 for SDKs that have no other, with ECDHE and AEAD alone; no
// renegotiation, no compression. The last two answers are what becomes of a connection
// by 1.2 and 1.3 on which somebody wants to negotiate anew.
func shows(t *testing.T, ns, address string, by12, by13 string) {
	t.Helper()
	const asked = "Acceptable client certificate CA names"
	for _, c := range []struct {
		args, typed string // typed once that there is a connection
		want        []string
	}{
		{"-tls1 -cipher ALL:@SECLEVEL=0", "", []string{"alert protocol version", "Cipher is (NONE)"}},
		{"-tls1_1 -cipher ALL:@SECLEVEL=0", "", []string{"alert protocol version", "Cipher is (NONE)"}},
		{"-tls1_2 -cipher " + weakSuites, "", []string{"alert handshake failure", "Cipher is (NONE)"}},
		{"-tls1_2", "R\n", []string{"Cipher is ECDHE-ECDSA-", "Compression: NONE", asked, by12}},
		{"-tls1_3", "", []string{"Cipher is TLS_AES_", "Compression: NONE", asked, by13}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "ip", in(ns, "openssl", append([]string{"s_client", "-connect", address}, strings.Fields(c.args)...)...)...)
		if strings.HasPrefix(c.want[len(c.want)-1], "alert") { // which comes in its own time: openssl would go when its input ends
			typed, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(typed, c.typed); err != nil {
				t.Fatal(err)
			}
		}
		out, _ := cmd.CombinedOutput() // its status depends on its version
		for _, want := range c.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s, %s: no %q in %s", address, c.args, want, out)
			}
		}
		if ctx.Err() != nil {
			t.Errorf("%s, %s: it has not ended by itself", address, c.args)
		}
		cancel()
	}
}

// hears is what a port says to whoever says something else than TLS, or nothing for half a second.
func hears(t *testing.T, ns, address, say string) string {
	t.Helper()
	c, err := dialer(ns)(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	patience := 30 * time.Second
	if say == "" {
		patience = 500 * time.Millisecond
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, say); err != nil {
		t.Fatal(err)
	}
	heard, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) && !(say == "" && errors.Is(err, os.ErrDeadlineExceeded)) {
		t.Errorf("%s, told %q: %v", address, say, err)
	}
	return string(heard)
}
