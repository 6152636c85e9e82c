package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A Keyring wraps the data keys of replicas: a key service, or a [KeyFile].
// Methods may be called concurrently. Both are given the same encryption
// context, which must be authenticated along with the key.
type Keyring interface {
	// Wrap encrypts a data key under the key named keyID, or under the keyring's
	// default one if keyID is empty.
	Wrap(ctx context.Context, keyID string, dataKey []byte, encryptionContext map[string]string) (WrappedKey, error)

	// Unwrap is the inverse of Wrap. An error wraps [ErrKey] if the keyring does
	// not hold the key, or the wrapped key or its context are not the genuine ones.
	Unwrap(ctx context.Context, wrapped WrappedKey, encryptionContext map[string]string) ([]byte, error)
}

// A WrappedKey is an encrypted data key and the name of the key it takes to
// decrypt it.
type WrappedKey struct {
	KeyID string `json:"keyId"`
	Blob  []byte `json:"blob"`
}

// A KeyFile is a [Keyring] of one key, kept in a file. Whoever has the file has
// the replicas; without it they are lost.
type KeyFile struct {
	id   string
	aead cipher.AEAD
}

const (
	keyFilePrefix = "rehost-key-1 " // then the key's 32 bytes in base64 and a newline
	keyIDPrefix   = "file:"
	dataKeySize   = 32
)

// OpenKeyFile reads the key file name. A file that others than its owner may
// read or write is refused.
func OpenKeyFile(name string) (*KeyFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open key file %s: mode is %v, must be a file only its owner can read (chmod 600)", name, info.Mode())
	}
	buf := make([]byte, 256)
	n, _ := f.Read(buf)
	text, ok := strings.CutPrefix(string(buf[:n]), keyFilePrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(text, "\n"))
	if !ok || err != nil || len(key) != dataKeySize {
		return nil, fmt.Errorf("open key file %s: not a rehost key file", name)
	}
	sum := sha256.Sum256(append([]byte("rehost key id\x00"), key...))
	return &KeyFile{id: keyIDPrefix + hex.EncodeToString(sum[:8]), aead: newAEAD(key)}, nil
}

// CreateKeyFile is [OpenKeyFile], but makes a new random key where there is no
// file. When two processes do so at once, both get the same key.
func CreateKeyFile(name string) (*KeyFile, error) {
	if _, err := os.Lstat(name); !isNotExist(err) {
		return OpenKeyFile(name)
	}
	key := make([]byte, dataKeySize)
	rand.Read(key)
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // with mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintf(tmp, "%s%s\n", keyFilePrefix, base64.StdEncoding.EncodeToString(key))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	// A link, unlike a rename, never replaces a key that has come meanwhile.
	if err := os.Link(tmp.Name(), name); err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, err
	}
	if err := (osFS{}).SyncDir(filepath.Dir(name)); err != nil {
		return nil, err
	}
	return OpenKeyFile(name)
}

// ID names the key without telling it.
func (k *KeyFile) ID() string { return k.id }

// Wrap implements [Keyring].
func (k *KeyFile) Wrap(_ context.Context, keyID string, dataKey []byte, encryptionContext map[string]string) (WrappedKey, error) {
	if keyID != "" && keyID != k.id {
		return WrappedKey{}, fmt.Errorf("wrap with key %s: %w: the key file holds %s", keyID, ErrKey, k.id)
	}
	nonce := make([]byte, k.aead.NonceSize())
	rand.Read(nonce)
	return WrappedKey{KeyID: k.id, Blob: k.aead.Seal(nonce, nonce, dataKey, contextBytes(encryptionContext))}, nil
}

// Unwrap implements [Keyring].
func (k *KeyFile) Unwrap(_ context.Context, w WrappedKey, encryptionContext map[string]string) ([]byte, error) {
	n := k.aead.NonceSize()
	if w.KeyID != k.id || len(w.Blob) < n {
		return nil, fmt.Errorf("unwrap with key %s: %w: the key file holds %s", w.KeyID, ErrKey, k.id)
	}
	key, err := k.aead.Open(nil, w.Blob[:n], w.Blob[n:], contextBytes(encryptionContext))
	if err != nil {
		return nil, fmt.Errorf("unwrap with key %s: %w: %w", w.KeyID, ErrKey, err)
	}
	return key, nil
}

// contextBytes is the canonical form of an encryption context: JSON sorts keys.
func contextBytes(m map[string]string) []byte {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings
	}
	return text
}

func newAEAD(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length is ours
	}
	aead, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return aead
}
