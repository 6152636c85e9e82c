package identity

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// ErrNotFound says that there is no record, user, role, key or policy of the name.
var ErrNotFound = errors.New("not found")

// ErrExists says that the name is taken.
var ErrExists = errors.New("exists already")

// A Kind is a table of the store.
type Kind string

// What a directory keeps. Values are JSON; see the types of the same names.
const (
	KindAccount    Kind = "account"
	KindUser       Kind = "user"
	KindRole       Kind = "role"
	KindKey        Kind = "key"
	KindPolicy     Kind = "policy"
	KindGroup      Kind = "group"
	KindProfile    Kind = "instance profile"
	KindRevocation Kind = "revocation"
)

// A Store keeps the records of a directory durably. A directory reads all of it
// when it opens and is the only one to write it afterwards. Calls may be
// concurrent; what Put and Delete did is durable when they return.
type Store interface {
	// All calls each with every record, in any order, and stops at its first error.
	All(ctx context.Context, each func(kind Kind, name string, value []byte) error) error
	// Put makes or replaces a record.
	Put(ctx context.Context, kind Kind, name string, value []byte) error
	// Delete removes a record; none of the name is not an error.
	Delete(ctx context.Context, kind Kind, name string) error
	// Apply does all changes or, if it fails, none.
	Apply(ctx context.Context, changes []Change) error
}

// A Change is a record to be made or replaced, or to be removed where Value is nil.
type Change struct {
	Kind  Kind
	Name  string
	Value []byte
}

// NewMemoryStore returns a store that forgets everything with the process.
func NewMemoryStore() Store { return &memoryStore{records: map[recordName][]byte{}} }

type recordName struct {
	kind Kind
	name string
}

type memoryStore struct {
	mu      sync.Mutex
	records map[recordName][]byte
}

func (m *memoryStore) All(_ context.Context, each func(Kind, string, []byte) error) error {
	m.mu.Lock()
	records := maps.Clone(m.records)
	m.mu.Unlock()
	for r, value := range records {
		if err := each(r.kind, r.name, slices.Clone(value)); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryStore) Put(_ context.Context, kind Kind, name string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[recordName{kind, name}] = slices.Clone(value)
	return nil
}

func (m *memoryStore) Delete(_ context.Context, kind Kind, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, recordName{kind, name})
	return nil
}

func (m *memoryStore) Apply(_ context.Context, changes []Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range changes {
		if c.Value == nil {
			delete(m.records, recordName{c.Kind, c.Name})
		} else {
			m.records[recordName{c.Kind, c.Name}] = slices.Clone(c.Value)
		}
	}
	return nil
}
