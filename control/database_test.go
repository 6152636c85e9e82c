package control

import (
	"context"
	"database/sql"
	"testing"
	"time"
)

// TestDatabase_Durable: what the driver was told is what the connections do.
func TestDatabase_Durable(t *testing.T) {
	db, err := OpenDatabase(t.Context(), t.TempDir()+"/db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1"} {
		var got string
		if err := db.writer.QueryRow(`PRAGMA ` + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s (%v)", pragma, got, want, err)
		}
	}
	if _, err := db.reader.Exec(`DELETE FROM settings`); err == nil {
		t.Error("a reader can write")
	}
}

// TestDeleteCondemned: a replica that an instance reads is not deleted, even if
// it was condemned.
func TestDeleteCondemned(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.replicate(id)
	w.launch(t, w.StartTest, id)
	if err := w.db.update(t.Context(), func(tx *sql.Tx) error {
		return condemn(context.WithoutCancel(t.Context()), tx, id, stamp(w.clock.Now()))
	}); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(time.Hour)
	if err := w.watch(t.Context()); err != nil || len(w.replicas.deleted) != 0 {
		t.Fatalf("deleted %v, %v", w.replicas.deleted, err)
	}
	w.become(t, id, "READY_FOR_TEST")
}
