package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// addressText keeps the hash that addresses are made of apart from every other.
const addressText = "rehost tunnel address\n"

// keySize is that of Curve25519, in bytes.
const keySize = 32

// ErrKey is wrapped by the error of a text that is no key.
var ErrKey = errors.New("not a WireGuard key: 32 bytes in base64 are")

// A Key is a private key. It prints as nothing; [Key.Secret] is for files. It is
// a value and must not be compared.
type Key struct {
	_      [0]func() // not comparable: == takes as long as keys are alike
	secret [keySize]byte
}

// NewKey makes a key.
func NewKey() Key {
	var k Key
	rand.Read(k.secret[:]) // never fails
	return k
}

// ParseKey reads what [Key.Secret] has written, or any WireGuard program.
func ParseKey(text string) (Key, error) {
	var k Key
	return k, decode(text, &k.secret)
}

// Secret is the key as WireGuard's programs write it.
func (k Key) Secret() string { return base64.StdEncoding.EncodeToString(k.secret[:]) }

// String keeps the key out of logs.
func (k Key) String() string { return "**redacted**" }

// GoString keeps it out of %#v too.
func (k Key) GoString() string { return k.String() }

// Public is the key's public half.
func (k Key) Public() PublicKey {
	private, err := ecdh.X25519().NewPrivateKey(k.secret[:])
	if err != nil {
		panic(err) // any 32 bytes are one
	}
	return PublicKey(private.PublicKey().Bytes())
}

func (k Key) hex() string { return hex.EncodeToString(k.secret[:]) }

// A PublicKey names an end of a tunnel.
type PublicKey [keySize]byte

// ParsePublicKey reads what [PublicKey.String] has written.
func ParsePublicKey(text string) (PublicKey, error) {
	var k PublicKey
	if err := decode(text, (*[keySize]byte)(&k)); err != nil {
		return k, err
	}
	if k == (PublicKey{}) {
		return k, fmt.Errorf("%q: %w", text, ErrKey)
	}
	return k, nil
}

// String is the key as WireGuard's programs write it, in base64.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (k PublicKey) hex() string { return hex.EncodeToString(k[:]) }

// Address is where the holder of the key is inside every tunnel: host 1 of a /64
// of its own among the unique local addresses (RFC 4193), so that what counts
// IPv6 addresses by their /64 counts keys.
func (k PublicKey) Address() netip.Addr {
	digest := sha256.Sum256(append([]byte(addressText), k[:]...))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:8], digest[:])
	a[15] = 1
	return netip.AddrFrom16(a)
}

// decode must not show what it was given: it may be a private key.
func decode(text string, to *[keySize]byte) error {
	bytes, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(bytes) != keySize {
		return ErrKey
	}
	*to = [keySize]byte(bytes)
	return nil
}
