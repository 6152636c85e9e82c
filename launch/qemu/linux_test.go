package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/export"
	"rehost/internal/testvm"
	"rehost/launch"
	"rehost/launch/launchtest"
)

// A fileDevice is an image file as a device.
type fileDevice struct {
	*os.File
	size int64
}

func (d fileDevice) Size() int64 { return d.size }

func openDevice(t *testing.T, path string) fileDevice {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fileDevice{f, fi.Size()}
}

func serveAt(t *testing.T, socket string, a, b export.Device) *export.Server {
	t.Helper()
	s := export.New(export.Options{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { s.Close() })
	for name, d := range map[string]export.Device{"a": a, "b": b} {
		if err := s.Add(name, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ListenUnix(socket); err != nil {
		t.Fatal(err)
	}
	return s
}

// A guestShell runs commands in the test source server.
type guestShell struct {
	t           *testing.T
	base, token string
}

func (g guestShell) run(command string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.base+"/run", strings.NewReader(command))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: %s: %v: %s", command, resp.Status, err, out)
	}
	return strings.TrimSpace(string(out)) + " [" + resp.Trailer.Get("X-Exit-Status") + "]"
}

// TestLinux takes the test source server, whose disks were NVMe, and cuts it
// over: it boots from NBD as a virtio machine, loses the NBD server in the
// middle of its reading and gets it back, is copied, and goes on without it.
func TestLinux(t *testing.T) {
	image := testvm.Source(t)
	for _, mode := range []launch.BootMode{launch.LegacyBIOS, launch.UEFI} {
		t.Run(string(mode), func(t *testing.T) { cutOver(t, image, mode) })
	}
}

func cutOver(t *testing.T, image testvm.SourceImage, mode launch.BootMode) {
	target := open(t, t.TempDir())
	defer terminateAll(t, target)
	a, b := openDevice(t, image.Disk0), openDevice(t, image.Disk1)
	socket := filepath.Join(t.TempDir(), "d", "nbd")
	server := serveAt(t, socket, a, b)
	spec := launch.Spec{
		ID: "replica", Name: "source", BootMode: mode, CPUs: 1, MemoryMiB: 256, HydrateDisks: mode == launch.LegacyBIOS,
		Disks: []launch.Disk{
			{Name: "d0", Socket: socket, Export: "a", Size: a.size, Boot: true},
			{Name: "d1", Socket: socket, Export: "b", Size: b.size},
		},
		Network: launch.Network{Forwards: []launch.Forward{{GuestPort: 80}}},
	}
	in, err := target.Launch(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", in.Forwards[0].HostPort)
	in = launchtest.Await(t, target, spec.ID, func(in launch.Instance) bool { return in.FirstBoot != launch.FirstBootWaiting })
	if in.FirstBoot != launch.FirstBootSucceeded {
		t.Fatalf("got %+v", in)
	}
	t.Logf("user space is up %v after the launch", in.FirstBootAt.Sub(in.Started).Round(100*time.Millisecond))
	checkMachine(t, base, in.UUID, mode)
	shell := guestShell{t, base, image.Token}
	checkIsolation(t, shell)
	if mode == launch.UEFI {
		return
	}
	const sum = "echo 3 >/proc/sys/vm/drop_caches; find /srv/files /data/files -type f | sort | xargs cat | sha256sum"
	interrupted := make(chan string)
	go func() { interrupted <- shell.run(sum) }()
	time.Sleep(300 * time.Millisecond) // any moment within the reading will do
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	time.Sleep(2 * time.Second)
	server = serveAt(t, socket, a, b)
	first := <-interrupted
	began := time.Now()
	launchtest.Await(t, target, spec.ID, func(in launch.Instance) bool { return in.Hydration.Complete })
	t.Logf("hydrated after another %v", time.Since(began).Round(100*time.Millisecond))
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if second := shell.run(sum); first != second || !strings.HasSuffix(first, "[0]") {
		t.Errorf("files differ: %s with the server gone and back, %s without it", first, second)
	}
	for _, d := range spec.Disks {
		out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "-U", overlay(target.dir(spec.ID), d)).CombinedOutput()
		if err != nil || strings.Contains(string(out), "backing") {
			t.Errorf("disk %s does not stand alone: %v: %s", d.Name, err, out)
		}
	}
	if out := shell.run("reboot"); !strings.HasSuffix(out, "[0]") {
		t.Errorf("reboot: %s", out)
	}
	time.Sleep(2 * time.Second) // so that it is not the old system that answers
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	body, err := testvm.Get(ctx, base+"/records")
	if err != nil || !strings.Contains(string(body), `"boot":{"a":{"run"`) || strings.Contains(string(body), `"consistent":false`) {
		t.Errorf("records after a reboot without the source: %v: %s", err, body)
	}
}

func checkMachine(t *testing.T, base, uuid string, mode launch.BootMode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	body, err := testvm.Get(ctx, base+"/machine")
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ UUID, Root, Firmware string }
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	firmware := map[launch.BootMode]string{launch.LegacyBIOS: "bios", launch.UEFI: "uefi"}[mode]
	if m.UUID != uuid || m.Root != "/dev/vda3" || m.Firmware != firmware {
		t.Errorf("got %+v, want uuid %s, firmware %s", m, uuid, firmware)
	}
}

// checkIsolation: what the host serves on its loopback is out of reach, although
// a user-mode network shows it at 10.0.2.2 by default.
func checkIsolation(t *testing.T, shell guestShell) {
	t.Helper()
	asked := false
	secret := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer secret.Close()
	u, err := url.Parse(secret.URL)
	if err != nil {
		t.Fatal(err)
	}
	out := shell.run("wget -T 2 -q -O - http://10.0.2.2:" + u.Port() + "/")
	if asked || strings.HasSuffix(out, "[0]") {
		t.Errorf("the guest reaches the host: %s", out)
	}
}
