package tunnel

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// A network is three machines in a row, as namespaces of the kernel:
//
//	client 10.87.1.2 ---- 10.87.1.1 router 10.87.2.1 ---- 10.87.2.2 hub
type network struct {
	t                   *testing.T
	client, router, hub string
}

const hubAddress = "10.87.2.2"

// newNetwork makes the three, with an MTU between router and hub.
func newNetwork(t *testing.T, mtu int) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: network namespaces are for root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED: no ip (iproute2)")
	}
	prefix := fmt.Sprintf("rh%d", os.Getpid())
	n := &network{t, prefix + "c", prefix + "r", prefix + "h"}
	for _, name := range []string{n.client, n.router, n.hub} {
		n.ip("netns add " + name)
		t.Cleanup(func() { n.ip("netns del " + name) })
		n.ip("-n " + name + " link set lo up")
	}
	n.ip(fmt.Sprintf("-n %s link add west type veth peer name east netns %s", n.client, n.router))
	n.ip(fmt.Sprintf("-n %s link add west type veth peer name east netns %s", n.router, n.hub))
	n.ip(fmt.Sprintf("-n %s addr add 10.87.1.2/24 dev west", n.client))
	n.ip(fmt.Sprintf("-n %s addr add 10.87.1.1/24 dev east", n.router))
	n.ip(fmt.Sprintf("-n %s addr add 10.87.2.1/24 dev west", n.router))
	n.ip(fmt.Sprintf("-n %s addr add %s/24 dev east", n.hub, hubAddress))
	for _, l := range [][2]string{{n.client, "west"}, {n.router, "east"}, {n.router, "west"}, {n.hub, "east"}} {
		n.ip("-n " + l[0] + " link set dev " + l[1] + " up")
	}
	n.ip(fmt.Sprintf("-n %s link set dev west mtu %d", n.router, mtu))
	n.ip(fmt.Sprintf("-n %s link set dev east mtu %d", n.hub, mtu))
	n.ip(fmt.Sprintf("-n %s route add default via 10.87.1.1", n.client))
	n.ip(fmt.Sprintf("-n %s route add default via 10.87.2.1", n.hub))
	n.in(n.router, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	return n
}

func (n *network) ip(args string) {
	n.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// in does something on a machine: sockets that are made then are that machine's.
func (n *network) in(name string, do func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- func() error {
			f, err := os.Open("/run/netns/" + name)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return do()
		}()
	}()
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

// openHub opens a hub on its machine that answers on port 1500.
func (n *network) openHub(peers ...Peer) (h *Hub) {
	n.t.Helper()
	n.in(n.hub, func() error { h = newHub(n.t, peers...); return nil })
	answer(n.t, h, 1500)
	return h
}

// TestClient_Roams: the client's address changes while data flows, over a path
// whose MTU is less than what the tunnel's packets have.
func TestClient_Roams(t *testing.T) {
	n := newNetwork(t, 1000)
	key := NewKey()
	h := n.openHub(Peer{Key: key.Public()})
	var c *Client
	n.in(n.client, func() error {
		c = newClient(t, key, h.Key(), fmt.Sprintf("%s:%d", hubAddress, h.Port()))
		return nil
	})
	data := dial(t, c, 1500)
	echo(t, data, 1<<20, nil)
	if seen := h.Sights()[key.Public()].Endpoint; !strings.HasPrefix(seen, "10.87.1.2:") {
		t.Fatalf("the hub sees the client at %s", seen)
	}
	echo(t, data, 4<<20, func(sent int) {
		if sent == 2<<20 {
			n.ip("-n " + n.client + " addr del 10.87.1.2/24 dev west")
			n.ip("-n " + n.client + " addr add 10.87.1.77/24 dev west")
			n.ip("-n " + n.client + " route replace default via 10.87.1.1")
		}
	})
	if seen := h.Sights()[key.Public()].Endpoint; !strings.HasPrefix(seen, "10.87.1.77:") {
		t.Errorf("after the move the hub sees the client at %s", seen)
	}
}

// TestHub_OtherPrograms: a machine with an invitation, an ordinary WireGuard and
// the kernel's own TCP is understood.
func TestHub_OtherPrograms(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("SKIPPED: no /dev/net/tun")
	}
	n := newNetwork(t, 1500)
	key := NewKey()
	h := n.openHub(Peer{Key: key.Public()})
	i, err := ParseInvitation(Invitation{Key: key, Hub: h.Key(), Endpoint: fmt.Sprintf("%s:%d", hubAddress, h.Port()), Until: time.Now()}.Text())
	if err != nil {
		t.Fatal(err)
	}
	var wg *device.Device
	n.in(n.client, func() error {
		link, err := tun.CreateTUN("wg0", mtu)
		if err != nil {
			return err
		}
		wg = device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		if err := wg.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/128\n", i.Key.hex(), i.Hub.hex(), i.Endpoint, i.Hub.Address())); err != nil {
			return err
		}
		return wg.Up()
	})
	t.Cleanup(wg.Close)
	n.ip(fmt.Sprintf("-n %s addr add %s/128 dev wg0 nodad", n.client, i.Key.Public().Address()))
	n.ip(fmt.Sprintf("-n %s link set wg0 up", n.client))
	n.ip(fmt.Sprintf("-n %s route add %s/128 dev wg0", n.client, i.Hub.Address()))
	var c net.Conn
	n.in(n.client, func() (err error) {
		c, err = (&net.Dialer{Timeout: patience}).Dial("tcp6", fmt.Sprintf("[%s]:1500", i.Hub.Address()))
		return err
	})
	defer c.Close()
	echo(t, c, 4<<20, nil)
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != h.Key().Address() {
		t.Errorf("the hub is at %v", got)
	}
}
