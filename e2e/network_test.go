package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
