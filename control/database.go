package control

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the driver named "sqlite"
)

// migrations are applied in order of their number, each once.
//
//go:embed migrations/*.sql
var migrations embed.FS

// ErrNewerDatabase is returned when a database was written by a later version
// of this program, which may have changed what its columns mean.
var ErrNewerDatabase = errors.New("database is of a newer version of rehost: install that version again")

// A Database is one SQLite file. There is one connection that writes, so that
// writers queue here instead of failing with "busy", and several that read
// committed states beside it.
type Database struct {
	writer *sql.DB
	reader *sql.DB
}

// A querier is what reads need: a transaction or the pool of readers.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// OpenDatabase opens or creates the file at path and brings it to the current
// version. A commit is on the disk when it returns (synchronous=FULL).
func OpenDatabase(ctx context.Context, path string) (*Database, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would create it for all to read
	if err != nil {
		return nil, err
	}
	f.Close()
	dsn := func(extra string) string {
		return "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)" +
			"&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)" + extra
	}
	writer, err := sql.Open("sqlite", dsn("&_txlock=immediate"))
	if err != nil {
		return nil, err
	}
	writer.SetMaxOpenConns(1)
	reader, err := sql.Open("sqlite", dsn("&_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	reader.SetMaxOpenConns(4)
	db := &Database{writer: writer, reader: reader}
	if err := db.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), db.Close())
	}
	return db, nil
}

// Close waits for running statements. It may be called twice.
func (db *Database) Close() error { return errors.Join(db.reader.Close(), db.writer.Close()) }

// update runs do in a transaction that is durable when update returns nil.
func (db *Database) update(ctx context.Context, do func(tx *sql.Tx) error) error {
	tx, err := db.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := do(tx); err != nil {
		return errors.Join(err, rollback(tx))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// rollback is quiet about a transaction that its context has ended already.
func rollback(tx *sql.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

func (db *Database) migrate(ctx context.Context) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		return errors.Join(err, errors.New("no migrations"))
	}
	slices.Sort(names)
	return db.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)`); err != nil {
			return err
		}
		var at int
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_version`).Scan(&at); err != nil {
			return err
		}
		if at > len(names) {
			return fmt.Errorf("version %d: %w", at, ErrNewerDatabase)
		}
		for i, name := range names[at:] {
			text, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return fmt.Errorf("apply %s: %w", name, err)
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO schema_version (version) VALUES (?)`, at+i+1); err != nil {
				return err
			}
		}
		return nil
	})
}

// setting reads a named value; "" if there is none.
func setting(ctx context.Context, q querier, name string) (value string, err error) {
	err = q.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = ?`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, err
}

func setSetting(ctx context.Context, tx *sql.Tx, name, value string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return err
}

// documents reads rows of one JSON document each.
func documents[T any](ctx context.Context, q querier, query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		var doc T
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			return nil, fmt.Errorf("decode %T: %w", doc, err)
		}
		out = append(out, doc)
	}
	return out, rows.Err()
}

// encode is the text of a document; documents are structures of ours, which
// always encode.
func encode(doc any) string {
	text, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("control: encode %T: %v", doc, err))
	}
	return string(text)
}

// in writes the condition that column is one of values, and appends them to args.
func in[T ~string](column string, values []T, args []any) (string, []any) {
	for _, v := range values {
		args = append(args, string(v))
	}
	return column + " IN (" + strings.TrimSuffix(strings.Repeat("?,", len(values)), ",") + ")", args
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// decode is the inverse of encode.
func decode(text string, doc any) error {
	if err := json.Unmarshal([]byte(text), doc); err != nil {
		return fmt.Errorf("decode %T: %w", doc, err)
	}
	return nil
}

// A TableSize is how many rows a table has.
type TableSize struct {
	Table string
	Rows  int64
}

// TableSizes lists the tables of the database at path by name. It changes nothing and brings
// nothing to another version, so that it can be asked beside a service of any.
func TableSizes(ctx context.Context, path string) (sizes []TableSize, err error) {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(10000)&_pragma=query_only(1)")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, `SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list tables of %s: %w", path, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s TableSize
		if err := rows.Scan(&s.Table); err != nil {
			return nil, err
		}
		if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM "`+s.Table+`"`).Scan(&s.Rows); err != nil {
			return nil, fmt.Errorf("count rows of %s: %w", s.Table, err)
		}
		sizes = append(sizes, s)
	}
	return sizes, rows.Err()
}
