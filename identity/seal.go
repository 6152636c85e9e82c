package identity

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// A Secret is a string that never prints.
type Secret string

const redacted = "**redacted**"

func (Secret) String() string { return redacted }

// Format implements [fmt.Formatter], so that no verb shows the secret.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// A SealingKey protects the secrets of access keys at rest and the contents of
// session tokens on their way. Whoever has it can make credentials of anyone.
// It can be several keys: the first seals, all open. It is never changed.
// docs/format/session-token.md
type SealingKey struct{ keys []sealer }

// A sealer is one of the keys.
type sealer struct {
	aead  [len(uses)]cipher.AEAD
	id    [4]byte // tells keys apart after one was replaced; not secret
	audit []byte
}

// A use is what something is sealed for. Each has a key derived for it.
type use int

const (
	useSecret use = iota
	useToken
	useMessage
	useAuthority
)

// uses says from what the key of each use is derived, and which version is
// written. Earlier ones are read.
var uses = [...]struct {
	info    string
	version byte
}{
	useSecret:    {"rehost access key secrets v1", 1},
	useToken:     {"rehost session tokens v1", 2},
	useMessage:   {"rehost authorization messages v1", 1},
	useAuthority: {"rehost authority keys v1", 1},
}

const (
	sealingKeySize = 32 // bytes of one key in the file
	maxSealingKeys = 8  // in the file
)

// NewSealingKey makes a key of 32 random bytes, or of several times 32: the
// newest key first, and at most eight.
func NewSealingKey(raw []byte) (*SealingKey, error) {
	if len(raw) == 0 || len(raw)%sealingKeySize != 0 || len(raw) > maxSealingKeys*sealingKeySize {
		return nil, fmt.Errorf("sealing key has %d bytes, want %d for each of at most %d keys", len(raw), sealingKeySize, maxSealingKeys)
	}
	k := new(SealingKey)
	for one := range slices.Chunk(raw, sealingKeySize) {
		s, err := newSealer(one)
		if err != nil {
			return nil, err
		}
		k.keys = append(k.keys, s)
	}
	return k, nil
}

func newSealer(raw []byte) (s sealer, err error) {
	for i, u := range uses {
		sub, err := hkdf.Key(sha256.New, raw, nil, u.info, chacha20poly1305.KeySize)
		if err != nil {
			return s, err
		}
		// Random nonces of 24 bytes never repeat, however many tokens are made.
		if s.aead[i], err = chacha20poly1305.NewX(sub); err != nil {
			return s, err
		}
	}
	id, err := hkdf.Key(sha256.New, raw, nil, "rehost sealing key id", len(s.id))
	copy(s.id[:], id)
	if err != nil {
		return s, err
	}
	s.audit, err = hkdf.Key(sha256.New, raw, nil, "rehost audit log v1", sha256.Size)
	return s, err
}

// AuditKeys are the keys of the audit log's macs (docs/format/audit.md), newest first.
// Whoever has one can check what it has written, and forge it, and nothing else.
func (k *SealingKey) AuditKeys() (keys [][]byte) {
	for _, s := range k.keys {
		keys = append(keys, bytes.Clone(s.audit))
	}
	return keys
}

// Names tell the keys apart, newest first: 8 hexadecimal digits each, which are no secret.
func (k *SealingKey) Names() (names []string) {
	for _, s := range k.keys {
		names = append(names, hex.EncodeToString(s.id[:]))
	}
	return names
}

// Newest is the key that seals, without the older ones: what it opens does not need them.
func (k *SealingKey) Newest() *SealingKey { return &SealingKey{k.keys[:1]} }

// LoadSealingKey reads the key file, or makes it if there is none. It refuses a
// file that others may read.
func LoadSealingKey(path string) (*SealingKey, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := createSealingKey(path); err != nil {
			return nil, fmt.Errorf("create sealing key: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("sealing key: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("sealing key %s can be read by others (mode %04o): run chmod 600 %[1]s, and consider it known to them", path, info.Mode().Perm())
	}
	k, _, err := readSealingKey(path)
	return k, err
}

func readSealingKey(path string) (k *SealingKey, raw []byte, err error) {
	if raw, err = os.ReadFile(path); err != nil {
		return nil, nil, fmt.Errorf("sealing key: %w", err)
	}
	if k, err = NewSealingKey(raw); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, raw, nil
}

// AddSealingKey puts a new key in front of the one in the file, and returns both. Where
// there is more than one, that has been done before and is not done again: the older ones
// are to be retired first. A crash leaves the file as it was or as it is to be.
func AddSealingKey(path string) (*SealingKey, error) {
	k, raw, err := readSealingKey(path)
	if err != nil || len(k.keys) > 1 {
		return k, err
	}
	fresh := make([]byte, sealingKeySize)
	rand.Read(fresh)
	if err := writeSealingKey(path, append(fresh, raw...), os.Rename); err != nil {
		return nil, fmt.Errorf("add a sealing key: %w", err)
	}
	k, _, err = readSealingKey(path)
	return k, err
}

// RetireSealingKeys takes all keys but the newest out of the file. What they have sealed
// cannot be opened from then on: who calls it has made sure that nothing needs them.
func RetireSealingKeys(path string) error {
	k, raw, err := readSealingKey(path)
	if err != nil || len(k.keys) == 1 {
		return err
	}
	if err := writeSealingKey(path, raw[:sealingKeySize], os.Rename); err != nil {
		return fmt.Errorf("retire sealing keys: %w", err)
	}
	return nil
}

// createSealingKey writes a new key, unless somebody else has just done it.
func createSealingKey(path string) error {
	raw := make([]byte, sealingKeySize)
	rand.Read(raw)
	return writeSealingKey(path, raw, func(from, to string) error {
		if err := os.Link(from, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
}

// writeSealingKey writes a file such that a crash leaves it whole or as it was,
// because half a key would lock everyone out. Place puts it where it belongs.
func writeSealingKey(path string, raw []byte, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".sealing-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// sealedHead is the size of what stands before the ciphertext.
const sealedHead = 1 + 4 + chacha20poly1305.NonceSizeX

// errSealed says that a sealed text is not one of ours, or not any more.
var errSealed = errors.New("sealed text is damaged, or was sealed with another key")

// seal encrypts plain for one use; opening it needs the same context.
func (k *SealingKey) seal(u use, context string, plain []byte) []byte {
	s := &k.keys[0]
	out := make([]byte, sealedHead, sealedHead+len(plain)+s.aead[u].Overhead())
	out[0] = uses[u].version
	copy(out[1:], s.id[:])
	rand.Read(out[5:])
	return s.aead[u].Seal(out, out[5:sealedHead], plain, additional(out, context))
}

// open decrypts, and says in which version the plain text is.
func (k *SealingKey) open(u use, context string, sealed []byte) (plain []byte, version byte, err error) {
	if len(sealed) < sealedHead || sealed[0] == 0 || sealed[0] > uses[u].version {
		return nil, 0, errSealed
	}
	for i := range k.keys {
		if s := &k.keys[i]; s.id == [4]byte(sealed[1:5]) {
			plain, err := s.aead[u].Open(nil, sealed[5:sealedHead], sealed[sealedHead:], additional(sealed, context))
			if err == nil {
				return plain, sealed[0], nil
			}
		}
	}
	return nil, 0, errSealed
}

// current is whether the newest key has sealed it.
func (k *SealingKey) current(sealed []byte) bool {
	return len(sealed) >= sealedHead && [4]byte(sealed[1:5]) == k.keys[0].id
}

// additional is the additional data: everything in front of the nonce, and what
// the text is for.
func additional(sealed []byte, use string) []byte {
	return append(append([]byte(nil), sealed[:5]...), use...)
}
