package control

import (
	"context"
	"database/sql"
	"fmt"

	"rehost/identity"
)

// Identities is where an [identity.Directory] keeps its records in the database.
func (db *Database) Identities() identity.Store { return identities{db} }

type identities struct{ db *Database }

// All implements [identity.Store].
func (s identities) All(ctx context.Context, each func(kind identity.Kind, name string, value []byte) error) error {
	rows, err := s.db.reader.QueryContext(ctx, `SELECT kind, name, value FROM identity_records ORDER BY kind, name`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var kind, name, value string
		if err := rows.Scan(&kind, &name, &value); err != nil {
			return err
		}
		if err := each(identity.Kind(kind), name, []byte(value)); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Put implements [identity.Store].
func (s identities) Put(ctx context.Context, kind identity.Kind, name string, value []byte) error {
	return s.Apply(ctx, []identity.Change{{Kind: kind, Name: name, Value: value}})
}

// Delete implements [identity.Store].
func (s identities) Delete(ctx context.Context, kind identity.Kind, name string) error {
	return s.Apply(ctx, []identity.Change{{Kind: kind, Name: name}})
}

// Apply implements [identity.Store].
func (s identities) Apply(ctx context.Context, changes []identity.Change) error {
	return s.db.update(ctx, func(tx *sql.Tx) error {
		for _, c := range changes {
			if err := applyIdentity(ctx, tx, c); err != nil {
				return fmt.Errorf("%s %s: %w", c.Kind, c.Name, err)
			}
		}
		return nil
	})
}

func applyIdentity(ctx context.Context, tx *sql.Tx, c identity.Change) (err error) {
	if c.Value == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM identity_records WHERE kind = ? AND name = ?`, string(c.Kind), c.Name)
	} else {
		_, err = tx.ExecContext(ctx, `INSERT INTO identity_records (kind, name, value) VALUES (?, ?, ?)
			ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value`, string(c.Kind), c.Name, string(c.Value))
	}
	return err
}
