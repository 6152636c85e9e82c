package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/ca"
	"rehost/e2e/site"
)

// exposed runs the program on a directory.
func exposed(t *testing.T, program, data string, more ...string) (e exposure, status int) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"doctor", "--exposure", "--json", "--data", data}, more...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		status = statusDone
	} else {
		status = cmd.ProcessState.ExitCode()
	}
	if len(out) > 0 {
		if err := json.Unmarshal(out, &e); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Logf("status %d: %s", status, &said)
	return e, status
}

// TestDoctor_Exposure looks at a real service from beside it: what it finds are its
// two ports with what they offer, its keys and its files; and it says so when one of
// them is not as it should be.
func TestDoctor_Exposure(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	program, data := filepath.Join(t.TempDir(), "rehost"), filepath.Join(t.TempDir(), "data")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, status := exposed(t, program, data); status != statusNotFound {
		t.Errorf("without a service: status %d", status)
	}
	s, err := site.Serve(t.Context(), site.Config{Program: program, Data: data, Advertise: "127.0.0.1", Log: t.Output(), Args: []string{"--proxy-protocol-from", "127.0.0.9"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if _, err := s.API.InitializeService(t.Context(), &mgn.InitializeServiceInput{}); err != nil {
		t.Fatal(err)
	}
	answers := func() bool { // the replication server waits for the service to be initialized
		o, err := offered(t.Context(), fmt.Sprintf("127.0.0.1:%d", s.ReplicationPort))
		return err == nil && o != nil
	}
	for end := time.Now().Add(time.Minute); !answers(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the replication server does not answer")
		}
	}
	e, status := exposed(t, program, data)
	if status != statusDone || e.faults() != 0 {
		t.Errorf("of a new service: status %d, %+v", status, e)
	}
	purposes := map[string]exposedPort{}
	for _, p := range e.Ports {
		purposes[p.Purpose] = p
	}
	for purpose, port := range map[string]int{"the API": s.Port, "replication": s.ReplicationPort} {
		p := purposes[purpose]
		if len(e.Ports) != 2 || p.Address != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)).String() || p.PID != s.PID() || p.Reach != "this machine" ||
			p.TLS == nil || strings.Join(p.TLS.Versions, " ") != "TLS 1.3 TLS 1.2" || len(p.TLS.Suites) < 2 || time.Until(p.TLS.CertificateEnds) < least {
			t.Errorf("%s: %+v of %d ports", purpose, p, len(e.Ports))
		}
		if g := p.Guard; g == nil || g.By != byGroups || len(g.Allowed) != 2 || g.Allowed[0].Addresses[0].Bits() != 0 || g.Local != (purpose == "the API") ||
			len(g.Proxies) != 1 || g.Firewall != "none" {
			t.Errorf("%s is guarded by %+v", purpose, g)
		}
	}
	if _, status := exposed(t, program, data, "--strict"); status != statusDone {
		t.Errorf("open to everyone on loopback alone: status %d", status)
	}
	if len(e.Keys) != 2 || len(e.Files) < 6 {
		t.Errorf("keys and files: %+v", e)
	}

	// What is wrong is found.
	if err := os.Chmod(filepath.Join(data, "store.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if e, status := exposed(t, program, data); status != statusError || e.faults() != 1 {
		t.Errorf("with a key that others may read: status %d, %+v", status, e.Files)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "doctor", "--exposure", "--data", data)
	cmd.Stdout = &out
	_ = cmd.Run()
	if !strings.Contains(out.String(), "FAILS: others may read it") {
		t.Errorf("it does not say so: %s", &out)
	}
	t.Log("\n" + out.String())
}

// TestOffered is the other side of the test above: a server with the faults that
// ours has not, each of which has to be found.
func TestOffered(t *testing.T) {
	authority, err := ca.Open(t.TempDir(), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.ServiceCertificate(nil, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*pair}, MinVersion: tls.VersionTLS10,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = c.(*tls.Conn).Handshake(); c.Close() }()
		}
	}()
	o, err := offered(t.Context(), l.Addr().String())
	if err != nil || o == nil || o.purpose != "the API" {
		t.Fatalf("%+v", o)
	}
	for when, want := range map[time.Time][]string{
		time.Now():                                 {"TLS 1.0 is accepted", "TLS 1.1 is accepted", "AES_128_CBC_SHA is accepted"},
		o.CertificateEnds.Add(-time.Hour):          {"should have been renewed"},
		o.CertificateEnds.Add(time.Hour):           {"its certificate ended"},
		o.CertificateEnds.Add(-8 * 24 * time.Hour): {"TLS 1.0"},
	} {
		faults := strings.Join(o.faults(when), "; ")
		for _, w := range want {
			if !strings.Contains(faults, w) {
				t.Errorf("%q is not found: %s", w, faults)
			}
		}
		if strings.Contains(faults, "GCM") {
			t.Error(faults)
		}
	}

	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 hello\r\n"))
			c.Close()
		}
	}()
	if o, err := offered(t.Context(), plain.Addr().String()); o != nil || !errors.Is(err, errPlain) {
		t.Errorf("a port without TLS: %+v, %v", o, err)
	}
	c := DoctorCmd{}
	p := c.port(t.Context(), socket{"tcp", netip.MustParseAddrPort(plain.Addr().String()), 1, "x"}, nil, guards{})
	if len(p.Faults) != 0 || !strings.HasPrefix(p.Purpose, "not known") {
		t.Errorf("on loopback: %+v", p)
	}
	port := netip.MustParseAddrPort(plain.Addr().String()).Port()
	p = c.port(t.Context(), socket{"tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port), 1, "x"}, nil, guards{})
	if len(p.Faults) != 2 || p.Reach != "everyone who reaches this machine" {
		t.Errorf("beyond loopback: %+v", p)
	}
}

func TestParseSocketAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:20FB": "127.0.0.1:8443", "00000000:05DC": "0.0.0.0:1500", "00000000000000000000000000000000:05DC": "[::]:1500",
		"0000000000000000FFFF00000100007F:05DC": "127.0.0.1:1500", "B80D01200000000000000000010000 00:1": "", "x:1": "", "0100007F": "", "0100007F:10000": "",
	} {
		got, err := parseSocketAddress(text)
		if want == "" && err == nil || want != "" && got.String() != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
