package export_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rehost/export"
	"rehost/internal/testvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A disk in memory, which may know its zeros and may fail.
type disk struct {
	data   []byte
	broken atomic.Int64 // reads that touch this offset fail; 0: none
	reads  atomic.Int64 // bytes
}

func (d *disk) Size() int64 { return int64(len(d.data)) }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if b := d.broken.Load(); b > 0 && off <= b && b < off+int64(len(p)) {
		return 0, errors.New("bad sector")
	}
	d.reads.Add(int64(len(p)))
	return bytes.NewReader(d.data).ReadAt(p, off)
}

// An aware disk tells zeros by MiB.
type aware struct{ *disk }

func (d aware) NextExtent(off int64) (end int64, zero bool, err error) {
	end = min(d.Size(), (off/(1<<20)+1)<<20)
	return end, len(bytes.Trim(d.data[off:end], "\x00")) == 0, nil
}

// sample is a disk of an odd length with noise, zeros, and noise at the end.
func sample() *disk {
	d := &disk{data: make([]byte, 9<<20+512)}
	r := rand.NewChaCha8([32]byte{4})
	r.Read(d.data[:3<<20])
	r.Read(d.data[8<<20+17:])
	return d
}

func serve(t *testing.T, devices map[string]export.Device) (s *export.Server, socket string) {
	t.Helper()
	s = export.New(export.Options{Logger: slog.New(slog.DiscardHandler), HandshakeTimeout: 2 * time.Second, WriteTimeout: 300 * time.Millisecond})
	t.Cleanup(func() { s.Close() })
	for name, d := range devices {
		if err := s.Add(name, d); err != nil {
			t.Fatal(err)
		}
	}
	socket = filepath.Join(t.TempDir(), "d", "nbd.sock")
	if err := s.ListenUnix(socket); err != nil {
		t.Fatal(err)
	}
	return s, socket
}

func uri(socket, name string) string {
	u := url.URL{Scheme: "nbd+unix", Path: "/" + name, RawQuery: url.Values{"socket": {socket}}.Encode()}
	return u.String()
}

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	return string(out), err
}

// TestClients lets the programs that people use read a disk, by every road.
func TestClients(t *testing.T) {
	testvm.Require(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
	d := sample()
	_, socket := serve(t, map[string]export.Device{"aware": aware{d}, "plain": d, "": d, "with space/and %": d})
	want := sha256.Sum256(d.data)
	dir := t.TempDir()
	for _, name := range []string{"aware", "plain", "", "with space/and %"} {
		for tool, args := range map[string][]string{
			"nbdcopy":          {"nbdcopy", uri(socket, name), ""},
			"nbdcopy simple":   {"nbdcopy", "--synchronous", "--connections=1", uri(socket, name), ""},
			"qemu-img convert": {"qemu-img", "convert", "-f", "raw", "-O", "raw", uri(socket, name), ""},
		} {
			file := filepath.Join(dir, "copy")
			args[len(args)-1] = file
			if out, err := run(t, args[0], args[1:]...); err != nil {
				t.Errorf("%s of %q: %v: %s", tool, name, err, out)
				continue
			}
			got, err := os.ReadFile(file)
			if err != nil || sha256.Sum256(got[:min(len(got), len(d.data))]) != want {
				t.Errorf("%s of %q: copy of %d bytes differs, %v", tool, name, len(got), err)
			}
			os.Remove(file)
		}
	}
	out, err := run(t, "nbdinfo", "--list", "--json", "nbd+unix://?socket="+socket)
	var info struct {
		Exports []struct {
			Name     string `json:"export-name"`
			Size     int64  `json:"export-size"`
			ReadOnly bool   `json:"is_read_only"`
			Multi    bool   `json:"can_multi_conn"`
			Contexts []string
		}
	}
	if err != nil || json.Unmarshal([]byte(out), &info) != nil || len(info.Exports) != 4 {
		t.Fatalf("nbdinfo: %v: %s", err, out)
	}
	for _, e := range info.Exports {
		if e.Size != d.Size() || !e.ReadOnly || !e.Multi || (len(e.Contexts) == 1) != (e.Name == "aware") {
			t.Errorf("nbdinfo: got %+v", e)
		}
	}
	out, err = run(t, "nbdinfo", "--map", "--totals", uri(socket, "aware"))
	if err != nil || !strings.Contains(out, fmt.Sprint(5<<20)) {
		t.Errorf("nbdinfo --map: %v: %s", err, out)
	}
	if out, err = run(t, "qemu-io", "-f", "raw", "-c", "write 0 4096", uri(socket, "plain")); err == nil {
		t.Errorf("a write is not refused: %s", out)
	}
	if sha256.Sum256(d.data) != want {
		t.Error("the disk has changed")
	}
}

// TestExtents: what is known to be zero is not read.
func TestExtents(t *testing.T) {
	testvm.Require(t, "qemu-img")
	d := sample()
	_, socket := serve(t, map[string]export.Device{"x": aware{d}})
	if out, err := run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri(socket, "x"), filepath.Join(t.TempDir(), "copy")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, most := d.reads.Load(), int64(5<<20); got > most {
		t.Errorf("read %d bytes of a disk that has %d that are not zero", got, most)
	}
}

// TestReadError: a bad sector is an error to the client, not a connection lost,
// and never zeros.
func TestReadError(t *testing.T) {
	testvm.Require(t, "qemu-io")
	d := sample()
	d.broken.Store(1<<20 + 5)
	_, socket := serve(t, map[string]export.Device{"x": d})
	out, _ := run(t, "qemu-io", "-r", "-f", "raw", "-c", "read 1M 64k", "-c", "read 0 64k", uri(socket, "x"))
	if !strings.Contains(out, "Input/output error") || !strings.Contains(out, "read 65536/65536 bytes at offset 0") {
		t.Errorf("got %s", out)
	}
}

func TestAddRemove(t *testing.T) {
	s, socket := serve(t, nil)
	d := sample()
	if err := s.Add("x", d); err != nil {
		t.Fatal(err)
	}
	if err := s.Add("x", d); !errors.Is(err, export.ErrExists) {
		t.Errorf("add twice: got %v", err)
	}
	c := dial(t, socket)
	c.goExport("x")
	s.Remove("x")
	s.Remove("x")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its export")
	}
	before := d.reads.Load()
	c = dial(t, socket)
	if kind := c.option(7, infoRequest("x")); kind != 1<<31+6 {
		t.Errorf("removed export: got reply %#x", kind)
	}
	if d.reads.Load() != before {
		t.Error("a removed device was read")
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Add("y", d); !errors.Is(err, export.ErrClosed) {
		t.Errorf("add to a closed server: got %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	_, socket := serve(t, nil)
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: got %v, %v, want %v", path, fi.Mode(), err, want)
		}
	}
	other := export.New(export.Options{})
	defer other.Close()
	if err := other.ListenUnix(socket); !errors.Is(err, export.ErrInUse) {
		t.Errorf("second server: got %v", err)
	}
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := other.ListenUnix(filepath.Join(open, "s")); err == nil {
		t.Error("a directory open to others was taken")
	}
	// What a killed server leaves behind is replaced.
	dead := filepath.Join(filepath.Dir(socket), "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := other.ListenUnix(dead); err != nil {
		t.Errorf("stale socket: %v", err)
	}
}

// drain reads what comes until the connection ends, or the time is over.
func drain(c net.Conn, limit time.Duration) error {
	c.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, c)
	return err
}
