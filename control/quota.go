package control

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"

	"rehost/identity"
)

// ServerLimitTag is the tag of a user that says how many source servers its
// keys may install agents of. A server that was deleted counts on.
const ServerLimitTag = "rehost:server-limit"

// A Quota is how many source servers a principal may register.
type Quota struct {
	Principal string // unique id; "" is not counted
	Limited   bool
	Servers   int // if it is limited
}

// quotaOf reads the limit from the principal's tags. One that is not a number
// lets nothing through: it was meant to limit something.
func quotaOf(p *identity.Principal) Quota {
	text, limited := p.Tags[ServerLimitTag]
	n, err := strconv.Atoi(text)
	if err != nil {
		n = 0
	}
	return Quota{Principal: p.UserID, Limited: limited, Servers: n}
}

// count notes that the caller registers the source server, and refuses it when
// that would be more than it may.
func (q Quota) count(ctx context.Context, tx *sql.Tx, id string) error {
	if q.Principal == "" {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO registrations (principal, server_id) VALUES (?, ?) ON CONFLICT DO NOTHING`, q.Principal, id); err != nil {
		return err
	}
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM registrations WHERE principal = ?`, q.Principal).Scan(&n); err != nil {
		return fmt.Errorf("count registrations: %w", err)
	}
	if q.Limited && n > q.Servers {
		return denied("this installation key is for %d source servers and has been used for as many: make another one (rehost keys create-installer)", q.Servers)
	}
	return nil
}
