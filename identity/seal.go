package identity

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

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
type SealingKey struct {
	secrets, tokens, authority cipher.AEAD

	id [4]byte // tells keys apart after one was replaced; not secret
}

// sealingKeySize is the size of the key file in bytes.
const sealingKeySize = 32

// NewSealingKey makes a key of 32 random bytes.
func NewSealingKey(raw []byte) (*SealingKey, error) {
	if len(raw) != sealingKeySize {
		return nil, fmt.Errorf("sealing key has %d bytes, want %d", len(raw), sealingKeySize)
	}
	k := new(SealingKey)
	for _, use := range []struct {
		info string
		aead *cipher.AEAD
	}{{"rehost access key secrets v1", &k.secrets}, {"rehost session tokens v1", &k.tokens}, {"rehost authority keys v1", &k.authority}} {
		sub, err := hkdf.Key(sha256.New, raw, nil, use.info, chacha20poly1305.KeySize)
		if err != nil {
			return nil, err
		}
		// Random nonces of 24 bytes never repeat, however many tokens are made.
		if *use.aead, err = chacha20poly1305.NewX(sub); err != nil {
			return nil, err
		}
	}
	id, err := hkdf.Key(sha256.New, raw, nil, "rehost sealing key id", len(k.id))
	copy(k.id[:], id)
	return k, err
}

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
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	k, err := NewSealingKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// createSealingKey writes a new key such that a crash leaves the whole file or
// none, because half a key would lock everyone out.
func createSealingKey(path string) (err error) {
	raw := make([]byte, sealingKeySize)
	rand.Read(raw)
	f, err := os.CreateTemp(filepath.Dir(path), ".sealing-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// sealedVersion leads everything sealed; see docs/format/session-token.md.
const sealedVersion = 1

// sealedHead is the size of what stands before the ciphertext.
const sealedHead = 1 + 4 + chacha20poly1305.NonceSizeX

// errSealed says that a sealed text is not one of ours, or not any more.
var errSealed = errors.New("sealed text is damaged, or was sealed with another key")

// seal encrypts plain for one use; opening it needs the same context.
func (k *SealingKey) seal(aead cipher.AEAD, context string, plain []byte) []byte {
	out := make([]byte, sealedHead, sealedHead+len(plain)+aead.Overhead())
	out[0] = sealedVersion
	copy(out[1:], k.id[:])
	rand.Read(out[5:])
	return aead.Seal(out, out[5:sealedHead], plain, k.context(context))
}

func (k *SealingKey) open(aead cipher.AEAD, context string, sealed []byte) ([]byte, error) {
	if len(sealed) < sealedHead || sealed[0] != sealedVersion || [4]byte(sealed[1:5]) != k.id {
		return nil, errSealed
	}
	plain, err := aead.Open(nil, sealed[5:sealedHead], sealed[sealedHead:], k.context(context))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// context is the additional data: everything in front of the nonce, and what
// the text is for.
func (k *SealingKey) context(use string) []byte {
	return append(append([]byte{sealedVersion}, k.id[:]...), use...)
}
