package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// A Role says what the holder of a certificate is.
type Role string

// The roles.
const (
	SourceServer      Role = "source-server"      // an agent; id s-<17 hex digits>; client only
	ReplicationServer Role = "replication-server" // id i-<17 hex digits>; server on 1500, client of the API
	Service           Role = "service"            // the API endpoint; no id; server only
)

// A Name is who the holder of a certificate is. Every certificate of the
// authority has exactly one, as a URI among its alternative names.
type Name struct {
	Role Role
	ID   string
}

const namePrefix = "urn:rehost:"

// ErrName is wrapped by every error about a missing, malformed or unexpected name.
var ErrName = errors.New("certificate name")

var ids = map[Role]*regexp.Regexp{
	SourceServer:      regexp.MustCompile(`^s-[0-9a-f]{17}$`),
	ReplicationServer: regexp.MustCompile(`^i-[0-9a-f]{17}$`),
	Service:           regexp.MustCompile(`^$`),
}

// String returns the URI: urn:rehost:role:id, or urn:rehost:role without an id.
func (n Name) String() string {
	if n.ID == "" {
		return namePrefix + string(n.Role)
	}
	return namePrefix + string(n.Role) + ":" + n.ID
}

// Validate reports whether the role is known and the id has its form.
func (n Name) Validate() error {
	form, ok := ids[n.Role]
	if !ok {
		return fmt.Errorf("%w: role %q is unknown", ErrName, n.Role)
	}
	if !form.MatchString(n.ID) {
		return fmt.Errorf("%w: %q is not the id of a %s", ErrName, n.ID, n.Role)
	}
	return nil
}

// ParseName is the inverse of [Name.String]; nothing else is accepted.
func ParseName(uri string) (Name, error) {
	rest, ok := strings.CutPrefix(uri, namePrefix)
	if !ok {
		return Name{}, fmt.Errorf("%w: %q does not begin with %s", ErrName, uri, namePrefix)
	}
	role, id, _ := strings.Cut(rest, ":")
	n := Name{Role(role), id}
	if err := n.Validate(); err != nil {
		return Name{}, err
	}
	if n.String() != uri {
		return Name{}, fmt.Errorf("%w: %q is not in its one form", ErrName, uri)
	}
	return n, nil
}

func (n Name) url() *url.URL {
	return &url.URL{Scheme: "urn", Opaque: strings.TrimPrefix(n.String(), "urn:")}
}

// PeerName is the one name that cert carries. It does not check the chain: ask
// it about certificates whose connection was verified. A certificate with no
// URI, with another one, or with more than one has no name.
func PeerName(cert *x509.Certificate) (Name, error) {
	if len(cert.URIs) != 1 {
		return Name{}, fmt.Errorf("%w: want exactly one URI, got %d", ErrName, len(cert.URIs))
	}
	return ParseName(cert.URIs[0].String())
}
