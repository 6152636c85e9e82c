package control

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"rehost/awsapi/formgn"
)

// telemetry is what reports say of a source server without changing its state.
type telemetry struct {
	SeenAt    string                `json:"seenAt,omitempty"`    // the agent, on the service's clock
	From      string                `json:"from,omitempty"`      // the address that the agent called from last
	CurrentAt string                `json:"currentAt,omitempty"` // the replica held everything up to then
	PointSeq  string                `json:"pointSeq,omitempty"`
	PointAt   string                `json:"pointAt,omitempty"` // on the source's clock
	Trusts    string                `json:"trusts,omitempty"`  // digest of the bundle that the agent believes
	GoneAt    string                `json:"goneAt,omitempty"`  // when the agent's session ended, if none has begun since
	GoneWhy   string                `json:"goneWhy,omitempty"`
	Received  int64                 `json:"received,omitempty"`
	Stored    int64                 `json:"stored,omitempty"`
	ETA       string                `json:"eta,omitempty"`
	Disks     []formgn.DiskProgress `json:"disks,omitempty"`
	Tracking  formgn.TrackingMethod `json:"tracking,omitempty"`
	Reason    string                `json:"reason,omitempty"`
	Metrics   map[string]float64    `json:"metrics,omitempty"`
}

// lag is how far the replica is behind: the time since it was known to hold
// everything.
func (t telemetry) lag(now time.Time) time.Duration {
	at := parseStamp(t.CurrentAt)
	if at.IsZero() {
		at = parseStamp(t.PointAt)
	}
	return max(0, now.Sub(at))
}

// A gauge holds the telemetry of all source servers and writes it down when
// flush is called, which costs one transaction for all of them.
type gauge struct {
	mu      sync.Mutex
	values  map[string]telemetry // guarded by mu
	changed map[string]bool      // guarded by mu
}

func loadGauge(ctx context.Context, q querier) (*gauge, error) {
	g := &gauge{values: map[string]telemetry{}, changed: map[string]bool{}}
	rows, err := q.QueryContext(ctx, `SELECT server_id, document FROM telemetry`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, text string
		var t telemetry
		if err := rows.Scan(&id, &text); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(text), &t); err != nil {
			return nil, fmt.Errorf("decode telemetry of %s: %w", id, err)
		}
		g.values[id] = t
	}
	return g, rows.Err()
}

func (g *gauge) get(id string) telemetry {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.values[id]
}

// all is a copy of what there is.
func (g *gauge) all() map[string]telemetry {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.values)
}

// set changes the telemetry of one server. do must not keep what it is given.
func (g *gauge) set(id string, do func(t *telemetry)) telemetry {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.values[id]
	do(&t)
	g.values[id], g.changed[id] = t, true
	return t
}

func (g *gauge) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.values, id)
	delete(g.changed, id)
}

// flush writes what has changed since the last time. What could not be written
// is written the next time.
func (g *gauge) flush(ctx context.Context, db *Database) error {
	g.mu.Lock()
	changed := map[string]string{}
	for id := range g.changed {
		changed[id] = encode(g.values[id])
	}
	clear(g.changed)
	g.mu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	err := db.update(ctx, func(tx *sql.Tx) error {
		for id, text := range changed {
			// A server that was deleted meanwhile has no row to refer to.
			if _, err := tx.ExecContext(ctx, `INSERT INTO telemetry (server_id, document)
				SELECT id, ? FROM source_servers WHERE id = ?
				ON CONFLICT (server_id) DO UPDATE SET document = excluded.document`, text, id); err != nil {
				return fmt.Errorf("write telemetry of %s: %w", id, err)
			}
		}
		return nil
	})
	if err != nil { // the next time, then
		g.mu.Lock()
		defer g.mu.Unlock()
		for id := range changed {
			if _, ok := g.values[id]; ok {
				g.changed[id] = true
			}
		}
	}
	return err
}
