package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/ca"
)

// The TLS policy, found out from outside on the two listeners of a real service:
// with OpenSSL, and with hellos made by hand for what OpenSSL has forgotten.

// A scan is of one listener.
type scan struct {
	*testing.T
	openssl string
	name    string
	address string
	agent   string // file with an agent's certificate, chain and key
	foreign string // the same, of another authority
	dir     string
}

// client runs openssl s_client and reports whether a handshake was done.
func (s scan) client(stdin, args string) (ok bool, out string) {
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.openssl, append([]string{"s_client", "-connect", s.address}, strings.Fields(args)...)...)
	cmd.Stdin = strings.NewReader(stdin)
	text, err := cmd.CombinedOutput()
	out = string(text)
	if strings.Contains(out, "unknown option") || strings.Contains(out, "Unknown option") || strings.Contains(out, "Use -help") {
		s.Fatalf("openssl does not know %s:\n%s", args, out)
	}
	return err == nil && strings.Contains(out, "Cipher is ") && !strings.Contains(out, "Cipher is (NONE)"), out
}

func TestServe_TLS(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("SKIPPED: openssl is not installed (scripts/setup test does): THE TLS POLICY WAS NOT SCANNED")
	}
	r := serve(t, filepath.Join(t.TempDir(), "data"))
	_, err = r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	a := r.newAgent("machine-a")
	foreign, err := ca.Open(t.TempDir(), ca.Options{})
	r.must(err)
	key, err := ca.NewKey()
	r.must(err)
	request, err := ca.NewRequest(key)
	r.must(err)
	chain, err := foreign.IssueAgent(request, a.id)
	r.must(err)
	stranger, err := ca.Certificate(chain, key)
	r.must(err)
	dir := t.TempDir()
	r.must(ca.SavePair(filepath.Join(dir, "agent.pem"), a.pair))
	r.must(ca.SavePair(filepath.Join(dir, "foreign.pem"), stranger))
	info := a.pairing()
	api, err := url.Parse(r.api)
	r.must(err)
	for name, address := range map[string]string{"API": api.Host, "replication": info.ReplicatorAddress} {
		t.Run(name, func(t *testing.T) {
			s := scan{t, openssl, name, address, filepath.Join(dir, "agent.pem"), filepath.Join(dir, "foreign.pem"), t.TempDir()}
			s.versions()
			s.clients()
			s.features()
			s.suites()
			s.groups()
		})
	}
}

// pairing is where the agent is told to replicate to.
func (a *agent) pairing() (info *formgn.GetAgentReplicationInfoForMgnResponse) {
	a.t.Helper()
	a.until("a replication server", func() bool {
		var err error
		info, err = awsapi.Call(a.t.Context(), a.client, formgn.GetAgentReplicationInfoForMgn, &formgn.GetAgentReplicationInfoForMgnRequest{SourceServerID: a.id})
		a.must(err)
		return info.ReplicatorAddress != ""
	})
	return info
}

// with has s_client use the certificate, chain and key in a file.
func with(file string) string { return "-cert " + file + " -key " + file + " -cert_chain " + file }

// versions, suites, curves and signatures, one at a time.
func (s scan) versions() {
	own := " " + with(s.agent)
	for _, c := range []struct {
		args string
		ok   bool
	}{
		{"", true},
		{"-tls1_3", true},
		{"-tls1_2", true},
		{"-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", true},
		{"-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384", true},
		{"-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", true},
		{"-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", false},
		{"-tls1_3 -ciphersuites TLS_AES_128_CCM_8_SHA256", false},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", true},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", true},
		{"-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", true},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-CCM:@SECLEVEL=0", false},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", false},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0", false},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0", false},
		{"-tls1_2 -cipher AES128-GCM-SHA256:@SECLEVEL=0", false},
		{"-tls1_2 -cipher AES256-SHA256:@SECLEVEL=0", false},
		{"-tls1_2 -cipher kRSA:@SECLEVEL=0", false},
		{"-tls1_2 -cipher kDHE:@SECLEVEL=0", false},
		{"-tls1_2 -cipher PSK:@SECLEVEL=0", false},
		{"-tls1_2 -cipher aNULL:eNULL:@SECLEVEL=0", false},
		{"-tls1_1 -cipher ALL:@SECLEVEL=0", false},
		{"-tls1 -cipher ALL:@SECLEVEL=0", false},
		{"-groups P-256", true},
		{"-groups X25519", true},
		{"-groups P-384", true},
		{"-tls1_2 -groups P-224", false},
		{"-tls1_2 -groups secp256k1", false},
		{"-tls1_2 -groups brainpoolP256r1", false},
		{"-tls1_3 -groups ffdhe2048", false},
		{"-tls1_3 -groups X448", false},
		{"-tls1_2 -sigalgs ECDSA+SHA1 -cipher ALL:@SECLEVEL=0", false},
		{"-tls1_2 -sigalgs RSA+SHA256", false}, // the certificate is ECDSA
	} {
		if ok, out := s.client("", c.args+own); ok != c.ok {
			s.Errorf("%s: openssl s_client %s: connected %v, want %v\n%s", s.name, c.args, ok, c.ok, out)
		}
	}
}

// clients: whose certificates are taken. TLS 1.2 tells the client in the handshake.
func (s scan) clients() {
	for _, c := range []struct {
		what, args string
		ok         bool
	}{
		{"none", "", s.name == "API"}, // signed calls and downloads need none
		{"an agent's", with(s.agent), true},
		{"a foreign authority's", with(s.foreign), false},
	} {
		if ok, out := s.client("", "-tls1_2 "+c.args); ok != c.ok {
			s.Errorf("%s: client certificate %s: connected %v, want %v\n%s", s.name, c.what, ok, c.ok, out)
		}
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		if c.args != "" {
			pair, err := ca.LoadPair(strings.Fields(c.args)[1])
			if err != nil {
				s.Fatal(err)
			}
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		if err := s.shake(config); (err == nil) != c.ok {
			s.Errorf("%s: client certificate %s, TLS 1.3: %v", s.name, c.what, err)
		}
	}
}

// shake makes a connection and waits for the server to close it or say nothing
// for a moment: in TLS 1.3 the client is done before its certificate is looked at.
func (s scan) shake(config *tls.Config) error {
	conn, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(time.Second))
	_, err = conn.Read(make([]byte, 1))
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// features are renegotiation, compression and resumption.
func (s scan) features() {
	own := " " + with(s.agent)
	if ok, out := s.client("R\n", "-tls1_2"+own); ok || !strings.Contains(out, "RENEGOTIATING") {
		s.Errorf("%s: renegotiated, or not tried\n%s", s.name, out)
	}
	if _, out := s.client("", "-tls1_2 -comp"+own); !strings.Contains(out, "Compression: NONE") {
		s.Errorf("%s: compresses\n%s", s.name, out)
	}
	if _, out := s.client("", "-tls1_2 -reconnect"+own); strings.Contains(out, "Reused,") || strings.Count(out, "New, TLSv1.2") < 2 {
		s.Errorf("%s: TLS 1.2 sessions are resumed\n%s", s.name, out)
	}
	session := filepath.Join(s.dir, "session")
	if _, out := s.client("", "-tls1_3 -sess_out "+session+own); strings.Contains(out, "New Session Ticket arrived") {
		s.Errorf("%s: TLS 1.3 tickets are given out\n%s", s.name, out)
	}
	if _, err := os.Stat(session); err == nil {
		if _, out := s.client("", "-tls1_3 -sess_in "+session+own); strings.Contains(out, "Reused,") {
			s.Errorf("%s: TLS 1.3 sessions are resumed\n%s", s.name, out)
		}
	}
}

// suites offers every number of a suite that was ever given out below 0x0100 and
// in 0xC000 to 0xD005, in old versions too, with compression.
func (s scan) suites() {
	good := []uint16{0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8}
	var bad []uint16
	for id := uint16(1); id < 0x100; id++ {
		bad = append(bad, id)
	}
	for id := uint16(0xc001); id <= 0xd005; id++ {
		if !slices.Contains(good, id) && (id < 0xc100 || id > 0xcca7) {
			bad = append(bad, id)
		}
	}
	for batch := range slices.Chunk(bad, 60) {
		if suite, compression, err := s.hello(0x0303, batch); err == nil {
			s.Errorf("%s: suite %#04x was chosen, compression %d", s.name, suite, compression)
		}
	}
	for _, version := range []uint16{0x0002, 0x0300, 0x0301, 0x0302} {
		if suite, _, err := s.hello(version, append(slices.Clone(good), 0xc009, 0xc00a, 0x002f, 0x0035, 0x000a)); err == nil {
			s.Errorf("%s: version %#04x, suite %#04x was chosen", s.name, version, suite)
		}
	}
	// A scan that nobody could pass would find nothing either.
	suite, compression, err := s.hello(0x0303, append(bad[:20:20], good...))
	if err != nil || !slices.Contains(good, suite) || compression != 0 {
		s.Errorf("%s: a good hello: suite %#04x, compression %d, %v", s.name, suite, compression, err)
	}
}

// hello sends a ClientHello made by hand, which offers DEFLATE besides none, and
// returns what the server chose.
func (s scan) hello(version uint16, suites []uint16) (suite uint16, compression byte, err error) {
	word := func(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
	vector := func(b []byte) []byte { return append(word(len(b)), b...) }
	extension := func(id int, b []byte) []byte { return append(word(id), vector(b)...) }
	var list []byte
	for _, id := range suites {
		list = binary.BigEndian.AppendUint16(list, id)
	}
	extensions := slices.Concat(
		extension(10, vector(slices.Concat(word(29), word(23), word(24)))),                           // groups
		extension(11, []byte{1, 0}),                                                                  // points uncompressed
		extension(13, vector(slices.Concat(word(0x0403), word(0x0503), word(0x0804), word(0x0401)))), // signatures
		extension(0xff01, []byte{0}),                                                                 // no renegotiation
	)
	body := slices.Concat(word(int(version)), bytes.Repeat([]byte{7}, 32), []byte{0}, vector(list), []byte{2, 1, 0})
	if version >= 0x0301 {
		body = append(body, vector(extensions)...)
	}
	message := slices.Concat([]byte{1, 0}, vector(body))
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(slices.Concat([]byte{22}, word(int(max(version, 0x0300))), vector(message))); err != nil {
		return 0, 0, err
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return 0, 0, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return 0, 0, err
	}
	if head[0] != 22 || len(answer) < 39 || answer[0] != 2 {
		return 0, 0, fmt.Errorf("record type %d: % x", head[0], answer[:min(len(answer), 4)])
	}
	rest := answer[39+int(answer[38]):]
	return binary.BigEndian.Uint16(rest), rest[2], nil
}

// groups: what is preferred, when a client can do everything.
func (s scan) groups() {
	pair, err := ca.LoadPair(s.agent)
	if err != nil {
		s.Fatal(err)
	}
	conn, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	if err != nil {
		s.Fatal(err)
	}
	defer conn.Close()
	if state := conn.ConnectionState(); state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		s.Errorf("%s: version %#04x and group %v are preferred, want TLS 1.3 and X25519MLKEM768", s.name, state.Version, state.CurveID)
	}
}
