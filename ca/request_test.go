package ca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"testing"

	"rehost/ca"
)

// hostileRequests ask for what must not be given; their signatures are good.
func hostileRequests() (out [][]byte) {
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	for _, r := range []*x509.CertificateRequest{
		{Subject: pkix.Name{CommonName: "root", Organization: []string{"Rehost"}}, DNSNames: []string{"evil"}, IPAddresses: []net.IP{{127, 0, 0, 1}}, EmailAddresses: []string{"a@b"}},
		{URIs: []*url.URL{must(url.Parse("urn:rehost:service")), must(url.Parse("urn:rehost:replication-server:" + serverID))}},
		{ExtraExtensions: []pkix.Extension{
			{Id: oid(2, 5, 29, 19), Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},                           // a CA
			{Id: oid(2, 5, 29, 15), Critical: true, Value: []byte{0x03, 0x02, 0x01, 0x06}},                                 // that signs certificates
			{Id: oid(2, 5, 29, 37), Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01}}, // a server
			{Id: oid(1, 2, 3, 4), Critical: true, Value: bytes.Repeat([]byte{0x30}, 4000)},                                 // and something unknown
		}},
		{Attributes: []pkix.AttributeTypeAndValueSET{{Type: oid(1, 2, 840, 113549, 1, 9, 7), Value: [][]pkix.AttributeTypeAndValue{{{Type: oid(1, 2, 3), Value: "secret"}}}}}},
	} {
		out = append(out, must(x509.CreateCertificateRequest(rand.Reader, r, must(ca.NewKey()))))
	}
	return out
}

// TestIssueAgent_Hostile: the requests are signed well, and ask in vain.
func TestIssueAgent_Hostile(t *testing.T) {
	a := authority(t, ca.Options{})
	for i, request := range hostileRequests() {
		chain, err := a.IssueAgent(request, agentID)
		if err != nil {
			t.Errorf("request %d: %v", i, err)
			continue
		}
		leaf := chain[0]
		if leaf.IsCA || len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.UnhandledCriticalExtensions) > 0 ||
			leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 1 || leaf.Subject.String() != "" {
			t.Errorf("request %d got %+v", i, leaf)
		}
		for cut := range request { // no part of one is a request
			if _, err := a.IssueAgent(request[:cut], agentID); !errors.Is(err, ca.ErrRequest) {
				t.Fatalf("request %d cut at %d: %v", i, cut, err)
			}
		}
		if _, err := a.IssueAgent(append(bytes.Clone(request), 0), agentID); !errors.Is(err, ca.ErrRequest) {
			t.Errorf("request %d with something after it: %v", i, err)
		}
	}
}
