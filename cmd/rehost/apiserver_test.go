package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"rehost/awsapi"
	"rehost/ca"
)

// An apiSite is the server of port 8443 with another handler, on loopback.
type apiSite struct {
	t         *testing.T
	address   string
	authority *ca.Authority
}

func startAPI(t *testing.T, limits timeouts, strangers int) *apiSite {
	t.Helper()
	authority, err := ca.Open(t.TempDir(), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end := ca.Endpoint{Root: authority.Root(), Certificate: func() (*tls.Certificate, error) {
		return authority.ServiceCertificate([]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	}}
	server := newAPIServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}), slog.New(slog.DiscardHandler), limits)
	var done sync.WaitGroup
	done.Go(func() {
		listener := tls.NewListener(limit(l, 100, 100, strangers), end.OptionalConfig(ca.SourceServer, ca.ReplicationServer))
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { server.Close(); done.Wait() })
	return &apiSite{t, l.Addr().String(), authority}
}

// agent makes the certificate of a source server.
func (s *apiSite) agent() tls.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := ca.NewRequest(key)
	if err != nil {
		s.t.Fatal(err)
	}
	leaf, err := s.authority.IssueAgent(request, "s-00000000000000001")
	if err != nil {
		s.t.Fatal(err)
	}
	pair, err := ca.Certificate(leaf, key)
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

func (s *apiSite) client(certificates ...tls.Certificate) *tls.Config {
	end := ca.Endpoint{Root: s.authority.Root()}
	if len(certificates) > 0 {
		end.Certificate = ca.Fixed(certificates[0])
	}
	return end.ClientConfig(ca.Name{Role: ca.Service})
}

// ask sends a request and returns the status, 0 if there is no answer.
func ask(c net.Conn) int {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return 0
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	return answer.StatusCode
}

// TestAPIServer_Slow has clients that are slow on purpose, each at another
// place, on real connections. The server lets each go in its time, and meanwhile
// answers one that works.
func TestAPIServer_Slow(t *testing.T) {
	short := timeouts{header: 300 * time.Millisecond, read: 600 * time.Millisecond, write: time.Minute, idle: 300 * time.Millisecond}
	s := startAPI(t, short, 100)
	secure := func() net.Conn {
		c, err := tls.Dial("tcp", s.address, s.client())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain := func() net.Conn {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, test := range []struct {
		name  string
		dial  func() net.Conn
		first string // said at once
		drip  string // said again and again, in small pieces
	}{
		{"Silent", plain, "", ""},
		{"HalfAHandshake", plain, "\x16\x03\x01\x02\x00\x01", ""},
		{"HandshakeDrop", plain, "\x16\x03\x01\x02\x00\x01", "\x00"},
		{"NoRequest", secure, "", ""},
		{"HalfAHeader", secure, "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", ""},
		{"HeaderDrop", secure, "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", "a"},
		{"HalfABody", secure, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{", ""},
		{"BodyDrop", secure, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{", " "},
		{"Idle", secure, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := test.dial()
			begin := time.Now()
			stop := make(chan struct{})
			var dripping sync.WaitGroup
			dripping.Go(func() {
				io.WriteString(c, test.first)
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for test.drip != "" {
					select {
					case <-stop:
						return
					case <-tick.C:
						io.WriteString(c, test.drip)
					}
				}
			})
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err := io.Copy(io.Discard, c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("still open after %v", time.Since(begin))
			}
			close(stop)
			dripping.Wait()
			c.Close()
		})
	}
	t.Run("Working", func(t *testing.T) {
		t.Parallel()
		c := secure()
		defer c.Close()
		if got := ask(c); got != http.StatusOK {
			t.Errorf("status %d", got)
		}
	})
}

// TestAPIServer_LongHeader: headers are bounded before anybody is known.
func TestAPIServer_LongHeader(t *testing.T) {
	s := startAPI(t, apiTimeouts, 100)
	c, err := tls.Dial("tcp", s.address, s.client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "+strings.Repeat("a", 2*maxHeader)+"\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %+v, %v", answer, err)
	}
}

// TestRateFlags: what is given is what the API gets, and only replication
// servers have no limit.
func TestRateFlags(t *testing.T) {
	l := RateFlags{CallRate: 100, StrangerRate: 20, StrangerConnections: 512}.limits()
	d := awsapi.DefaultLimits
	if l.PrincipalRate != d.PrincipalRate || l.PrincipalBurst != d.PrincipalBurst || l.SourceRate != d.SourceRate || l.SourceBurst != d.SourceBurst {
		t.Errorf("the flags' defaults are %+v, want %+v", l, d)
	}
	for peer, want := range map[string]bool{
		ca.Name{Role: ca.ReplicationServer, ID: "i-00000000000000001"}.String(): true,
		ca.Name{Role: ca.SourceServer, ID: "s-00000000000000001"}.String():      false,
		"": false,
	} {
		if got := l.Unlimited(&awsapi.Caller{Peer: peer}); got != want {
			t.Errorf("%q: unlimited %v", peer, got)
		}
	}
	for _, bad := range []RateFlags{{-1, 1, 1}, {1, -1, 1}, {1, 1, 0}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
