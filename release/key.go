package release

import (
	"fmt"
	"strings"

	"aead.dev/minisign"
)

// keys are whom this program believes: public keys of minisign, separated by
// spaces, which the linker puts here (-X rehost/release.keys=...). There is no
// private key in this tree; whoever makes a release has their own.
var keys string

// Keys are whom this program believes; none if it was built without any.
func Keys() []minisign.PublicKey {
	all, err := ParseKeys(keys)
	if err != nil {
		panic("rehost/release.keys: " + err.Error()) // whoever has linked it sees it at once
	}
	return all
}

// ParseKeys reads public keys as minisign prints them, separated by spaces.
func ParseKeys(text string) (all []minisign.PublicKey, err error) {
	for _, word := range strings.Fields(text) {
		var k minisign.PublicKey
		if err := k.UnmarshalText([]byte(word)); err != nil {
			return nil, fmt.Errorf("key %q: %w", word, err)
		}
		all = append(all, k)
	}
	return all, nil
}

// Sign signs a list of sums as that of a version.
func Sign(key minisign.PrivateKey, version Version, sums []byte) []byte {
	return minisign.SignWithComments(key, sums, comment+version.String(), fmt.Sprintf("signature of Rehost %s", version))
}
