package identity

import (
	"context"
	"fmt"
	"time"
)

// Sessions end before their time in two ways. Someone revokes those that began
// until now; or what a session came from is gone, see [claims].

// ended is whether the session was revoked or has lost what it came from. The
// caller holds the lock.
func (d *Directory) ended(c *claims) bool {
	issued := time.UnixMilli(c.Issued)
	user := c.User
	if c.Origin != "" {
		k, ok := d.keys[c.Origin]
		if !ok || !k.Active || d.revoked("key", c.Origin, issued) {
			return true
		}
		user = k.User
	}
	if c.Web != nil && d.providers[c.Web.Provider] == nil {
		return true
	}
	return d.revoked("key", c.AccessKeyID, issued) ||
		c.Role != "" && d.revoked("role", c.Role, issued) ||
		user != "" && d.userRevoked(user, issued) ||
		c.SourceIdentity != "" && d.revoked("source", c.SourceIdentity, issued)
}

// userRevoked looks by the user's unique id, which stays when the name does not;
// and by the name, by which it was once kept.
func (d *Directory) userRevoked(name string, issued time.Time) bool {
	u := d.users[name]
	return d.revoked("user", name, issued) || u != nil && d.revoked("user", u.ID, issued)
}

func (d *Directory) revoked(what, name string, issued time.Time) bool {
	r, ok := d.revocations[what+"/"+name]
	return ok && !issued.After(r.NotAfter)
}

// RevokeSource ends all sessions with the source identity, such as the id of a
// source server, that began until now.
func (d *Directory) RevokeSource(ctx context.Context, sourceIdentity string) error {
	return d.revoke(ctx, "source/"+sourceIdentity)
}

// RevokeRole ends all sessions of the role that began until now.
func (d *Directory) RevokeRole(ctx context.Context, role string) error {
	return d.revoke(ctx, "role/"+role)
}

// RevokeUser ends all sessions that began until now with one of the user's
// access keys, also those of roles, and under whichever name. The keys
// themselves go on. The error can be [ErrNotFound].
func (d *Directory) RevokeUser(ctx context.Context, user string) error {
	u, err := d.User(user)
	if err != nil {
		return fmt.Errorf("revoke sessions: %w", err)
	}
	return d.revoke(ctx, "user/"+u.ID)
}

// RevokeSession ends the session with the temporary access key, and none that
// it has begun itself; given a user's access key, all that began with that.
func (d *Directory) RevokeSession(ctx context.Context, accessKeyID string) error {
	return d.revoke(ctx, "key/"+accessKeyID)
}

func (d *Directory) revoke(ctx context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.prune(ctx); err != nil {
		return fmt.Errorf("revoke %s: %w", name, err)
	}
	r := revocation{NotAfter: d.now()}
	if err := d.put(ctx, KindRevocation, name, r); err != nil {
		return fmt.Errorf("revoke %s: %w", name, err)
	}
	d.revocations[name] = r
	return nil
}

// prune forgets the revocations that no session is left of: none lives longer
// than MaxUserSession.
func (d *Directory) prune(ctx context.Context) error {
	before := d.now().Add(-MaxUserSession)
	for name, r := range d.revocations {
		if !r.NotAfter.Before(before) {
			continue
		}
		if err := d.store.Delete(ctx, KindRevocation, name); err != nil {
			return fmt.Errorf("forget the revocation of %s: %w", name, err)
		}
		delete(d.revocations, name)
	}
	return nil
}
