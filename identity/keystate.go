package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A KeyState is what is to be known of an access key by who looks after keys.
type KeyState struct {
	ID, User string
	Active   bool
	Created  time.Time
	Used     KeyUse
	Ends     time.Time // when the user's boundary stops to allow anything; zero: it does not
}

// KeyStates lists the keys in a store, by user and age. It opens nothing that is
// sealed, and may be called beside a [Directory] that writes the store: the last
// use of a key is known to the minute.
func KeyStates(ctx context.Context, store Store) ([]KeyState, error) {
	users, policies := map[string]User{}, map[string]Policy{}
	var keys []AccessKey
	err := store.All(ctx, func(kind Kind, name string, value []byte) (err error) {
		switch kind {
		case KindUser:
			var u User
			err = json.Unmarshal(value, &u)
			users[name] = u
		case KindPolicy:
			var p Policy
			err = json.Unmarshal(value, &p)
			policies[name] = p
		case KindKey:
			err = appendJSON(&keys, value)
		default: // says nothing about keys
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	var out []KeyState
	for _, k := range keys {
		out = append(out, KeyState{ID: k.ID, User: k.User, Active: k.Active, Created: k.Created, Used: k.Used,
			Ends: ends(policies[users[k.User].Boundary].Document)})
	}
	slices.SortFunc(out, func(a, b KeyState) int {
		if c := strings.Compare(a.User, b.User); c != 0 {
			return c
		}
		return a.Created.Compare(b.Created)
	})
	return out, nil
}

// Unreadable lists the access keys in a store whose secret the sealing key does not open,
// by id. Nobody can sign with such a key.
func Unreadable(ctx context.Context, store Store, key *SealingKey) (ids []string, err error) {
	err = store.All(ctx, func(kind Kind, id string, value []byte) error {
		if kind != KindKey {
			return nil
		}
		var k AccessKey
		if err := json.Unmarshal(value, &k); err != nil {
			return fmt.Errorf("%s %s: %w", kind, id, err)
		}
		if _, _, err := key.open(useSecret, id, k.Sealed); err != nil {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open secrets of access keys: %w", err)
	}
	return ids, nil
}

// ends is when a document stops to allow anything: where every statement that
// allows does so before a time. Other ways to say that are not recognized.
func ends(document string) (last time.Time) {
	var d struct {
		Statement []struct {
			Effect    string
			Condition map[string]map[string]any
		}
	}
	if json.Unmarshal([]byte(document), &d) != nil {
		return time.Time{}
	}
	for _, s := range d.Statement {
		if s.Effect != "Allow" {
			continue
		}
		text, _ := s.Condition["DateLessThan"]["aws:CurrentTime"].(string)
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return time.Time{}
		}
		if t.After(last) {
			last = t
		}
	}
	return last
}
