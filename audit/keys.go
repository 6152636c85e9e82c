package audit

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// keySize is the size of a key, in bytes.
const keySize = 32

// Keys are the keys that a log's macs can be of, newest first: the first one writes, any
// of them checks. A log outlives its keys: a file whose key is gone is vouched for by the
// next one whose key is here, since that begins with the hash of all before it.
type Keys [][]byte

func (keys Keys) validate() error {
	if len(keys) == 0 {
		return fmt.Errorf("an audit log needs a key of %d bytes", keySize)
	}
	for _, k := range keys {
		if len(k) != keySize {
			return fmt.Errorf("the key of an audit log has %d bytes, not %d", keySize, len(k))
		}
	}
	return nil
}

// keyName tells keys apart in files. It is no secret.
func keyName(key []byte) string {
	name, err := hkdf.Key(sha256.New, key, nil, "rehost audit key name v1", 4)
	if err != nil {
		panic(fmt.Sprintf("audit: name a key: %v", err)) // only of lengths that cannot be
	}
	return hex.EncodeToString(name)
}

// of is the key that a line was written with: the one it names, or, from before they were
// named, the one whose mac it has. nil is none of these.
func (keys Keys) of(name string, s *sealed) []byte {
	for _, k := range keys {
		if mac := sign(k, s.hash); name == keyName(k) || name == "" && mac == s.mac {
			return k
		}
	}
	return nil
}
