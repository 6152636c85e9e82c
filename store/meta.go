package store

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"rehost/block"
)

// Files of a replica's directory, besides segments.
const (
	metaName = "replica.json" // replaced at Begin and when a segment is sealed
	keyName  = "replica.key"  // written once, so that overwriting it shreds the replica
	lockName = "lock"

	metaFormat = 1
	maxMeta    = 1 << 20
)

// metadata is what replica.json holds, authenticated with the data key.
type metadata struct {
	Format     int         `json:"format"`
	Server     string      `json:"sourceServerId"`
	Replica    hexID       `json:"replicaId"`
	Created    time.Time   `json:"created"`
	Generation uint64      `json:"generation"` // of the last Begin
	Session    uint64      `json:"session"`    // how many times Begin was called
	Sealed     uint64      `json:"sealed"`     // segments up to this number are there, and sealed
	Disks      []diskTable `json:"disks"`
}

// A diskTable says which disks the server had in the sessions since Session.
type diskTable struct {
	Session uint64       `json:"session"`
	Disks   []block.Disk `json:"disks"`
}

// keyDocument is what replica.key holds.
type keyDocument struct {
	Format  int        `json:"format"`
	Server  string     `json:"sourceServerId"`
	Replica hexID      `json:"replicaId"`
	Key     WrappedKey `json:"key"`
}

// hexID is a random 128-bit name.
type hexID [16]byte

func newID() (id hexID) {
	rand.Read(id[:])
	return id
}

func (id hexID) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(id[:])), nil }

func (id *hexID) UnmarshalText(text []byte) error {
	if len(text) != 2*len(id) {
		return fmt.Errorf("id has %d digits", len(text))
	}
	_, err := hex.Decode(id[:], text)
	return err
}

// disksAt returns the disks that the server had in a session.
func (m metadata) disksAt(session uint64) (disks []block.Disk) {
	for _, t := range m.Disks {
		if t.Session <= session {
			disks = t.Disks
		}
	}
	return disks
}

// marshal returns v as a line of JSON, the only form that unmarshal accepts.
func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	return append(text, '\n')
}

// unmarshal refuses every text that marshal would not have written.
func unmarshal[T any](text []byte) (v T, err error) {
	if err := json.Unmarshal(text, &v); err != nil {
		return v, err
	}
	if !bytes.Equal(marshal(v), text) {
		return v, errors.New("not in canonical form")
	}
	return v, nil
}

func metaMAC(dataKey, text []byte) []byte {
	key, err := hkdf.Key(sha256.New, dataKey, nil, "rehost replica metadata 1", 32)
	if err != nil {
		panic(err) // constant lengths
	}
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return append(hex.AppendEncode(nil, h.Sum(nil)), '\n')
}

func writeMeta(fsys fileSystem, dir string, dataKey []byte, m metadata) error {
	text := marshal(m)
	return replaceFile(fsys, filepath.Join(dir, metaName), append(text, metaMAC(dataKey, text)...))
}

func readMeta(fsys fileSystem, dir, object string, dataKey []byte) (m metadata, err error) {
	buf, err := readAll(fsys, filepath.Join(dir, metaName), maxMeta)
	if isNotExist(err) {
		return m, corrupt(object, 0, "missing")
	}
	if err != nil {
		return m, err
	}
	n := bytes.IndexByte(buf, '\n') + 1
	if !hmac.Equal(metaMAC(dataKey, buf[:n]), buf[n:]) {
		return m, corrupt(object, 0, "%w", errAuth)
	}
	if m, err = unmarshal[metadata](buf[:n]); err != nil {
		return m, corrupt(object, 0, "%w", err)
	}
	if m.Format != metaFormat {
		return m, corrupt(object, 0, "%w %d", errVersion, m.Format)
	}
	return m, nil
}

// keyContext is what a replica's wrapped key is bound to.
func keyContext(server string, replica hexID) map[string]string {
	return map[string]string{"rehost:source-server": server, "rehost:replica": hex.EncodeToString(replica[:])}
}

func readKey(ctx context.Context, fsys fileSystem, dir, server string, keys Keyring) (replica hexID, dataKey []byte, err error) {
	object := filepath.Join(server, keyName)
	buf, err := readAll(fsys, filepath.Join(dir, keyName), maxMeta)
	if isNotExist(err) {
		return replica, nil, ErrNotFound
	}
	if err != nil {
		return replica, nil, err
	}
	doc, err := unmarshal[keyDocument](buf)
	if err != nil {
		return replica, nil, corrupt(object, 0, "%w", err)
	}
	if doc.Format != metaFormat || doc.Server != server {
		return replica, nil, corrupt(object, 0, "format %d of %q: %w", doc.Format, doc.Server, errLayout)
	}
	dataKey, err = keys.Unwrap(ctx, doc.Key, keyContext(server, doc.Replica))
	if err != nil {
		// A damaged file and a wrong key look alike here, and both are said.
		return replica, nil, corrupt(object, 0, "%w", err)
	}
	if len(dataKey) != dataKeySize {
		return replica, nil, corrupt(object, 0, "data key of %d bytes", len(dataKey))
	}
	return doc.Replica, dataKey, nil
}
