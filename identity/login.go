package identity

import (
	"context"
	"errors"
	"fmt"

	"rehost/identity/policy"
)

// Why a password is not taken.
var (
	// ErrNoLogin says that the user has no password.
	ErrNoLogin = errors.New("user has no password")
	// ErrPassword says that the name or the password is wrong, and not which.
	ErrPassword = errors.New("user name or password is wrong")
	// ErrPasswordEnded says that the password was right once, and that somebody
	// else has to set a new one.
	ErrPasswordEnded = errors.New("password has ended")
	// ErrChanged says that the user or the account has changed meanwhile. It can be tried again.
	ErrChanged = errors.New("changed meanwhile")
)

// A SignIn is whom a password has shown to be there.
type SignIn struct {
	Principal  *Principal // the user, without an access key
	MustChange bool       // nothing else may be done before the password is changed
}

// CheckPassword signs a user in who types a password. The errors are
// [ErrPassword], also for a user that is not there or has no password, which
// takes as long, [ErrPasswordEnded] and [ErrChanged]. Passwords are hashed two at a time and
// others wait, so the caller has to see to it that nobody tries many, of one
// user or from one place.
func (d *Directory) CheckPassword(ctx context.Context, user string, password Secret) (SignIn, error) {
	u, rules, _ := d.login(user)
	var login Login
	if u.Login != nil {
		login = *u.Login
	}
	ok, err := d.isPassword(ctx, login.Hash, password)
	if err != nil {
		return SignIn{}, fmt.Errorf("check password of user %s: %w", u.Name, err)
	}
	now := d.Now()
	ends := rules.Ends(login.Changed)
	ended := !ends.IsZero() && !now.Before(ends)
	switch {
	case !ok:
		return SignIn{}, ErrPassword
	case ended && rules.HardExpiry:
		return SignIn{}, ErrPasswordEnded
	}
	if h, err := parsePassword(login.Hash); err == nil && !h.isOf(d.cost) {
		if login.Hash, err = d.hashNew(ctx, password); err != nil {
			return SignIn{}, fmt.Errorf("hash password of user %s again: %w", u.Name, err)
		}
	}
	var out SignIn
	err = d.Write(ctx, func(tx *Tx) error {
		held, ok := tx.Users.Get(u.Name)
		switch {
		case tx.Account.ID == "":
			return ErrPassword // there is nobody yet
		case !ok || held.Login != u.Login:
			return fmt.Errorf("check password of user %s: %w", u.Name, ErrChanged)
		}
		if login.Hash != u.Login.Hash {
			held.Login = &login
		}
		if now.Sub(held.PasswordUsed) >= useInterval {
			held.PasswordUsed = now
		}
		if held.Login != u.Login || held.PasswordUsed.Equal(now) {
			tx.Users.Put(held.Name, held)
		}
		out = SignIn{Principal: d.userPrincipal(&held), MustChange: login.Reset || ended}
		return nil
	})
	return out, err
}

// login is a user and what the account asks of passwords.
func (d *Directory) login(user string) (User, *PasswordPolicy, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	h := d.users[user]
	if h == nil {
		return User{}, d.account.Passwords, fmt.Errorf("user %s: %w", user, ErrNotFound)
	}
	return h.User, d.account.Passwords, nil
}

// CreateLogin gives a user a password, which it has to change at once if reset
// is set. The errors are [ErrNotFound], [ErrExists], [ErrChanged] and a
// [*RequestError] with [CodePasswordPolicy].
func (d *Directory) CreateLogin(ctx context.Context, user string, password Secret, reset bool) (Login, error) {
	u, rules, err := d.login(user)
	if err == nil && u.Login != nil {
		err = fmt.Errorf("password of user %s: %w", user, ErrExists)
	}
	if err != nil {
		return Login{}, err
	}
	login := Login{Created: d.Now(), Reset: reset}
	if err := d.setPassword(ctx, &login, rules, password); err != nil {
		return Login{}, err
	}
	return login, d.saveLogin(ctx, u, rules, &login)
}

// UpdateLogin sets another password, if one is given, and whether it has to be
// changed at once. The errors are [ErrNotFound], [ErrNoLogin], [ErrChanged] and
// a [*RequestError] with [CodePasswordPolicy].
func (d *Directory) UpdateLogin(ctx context.Context, user string, password *Secret, reset *bool) error {
	u, rules, err := d.login(user)
	if err == nil && u.Login == nil {
		err = fmt.Errorf("user %s: %w", user, ErrNoLogin)
	}
	if err != nil {
		return err
	}
	login := *u.Login
	if password != nil {
		if err := d.setPassword(ctx, &login, rules, *password); err != nil {
			return err
		}
	}
	if reset != nil {
		login.Reset = *reset
	}
	return d.saveLogin(ctx, u, rules, &login)
}

// ChangePassword is a user setting a password of its own, who has to know the
// one before. One that has ended will do: whoever asks has shown an access key
// or has been let in by [Directory.CheckPassword]. The errors are those of
// UpdateLogin and [ErrPassword].
func (d *Directory) ChangePassword(ctx context.Context, user string, before, after Secret) error {
	u, rules, err := d.login(user)
	if err == nil && u.Login == nil {
		err = fmt.Errorf("user %s: %w", user, ErrNoLogin)
	}
	if err != nil {
		return err
	}
	ok, err := d.isPassword(ctx, u.Login.Hash, before)
	switch {
	case err != nil:
		return fmt.Errorf("change password of user %s: %w", user, err)
	case !ok:
		return ErrPassword
	}
	login := *u.Login
	if err := d.setPassword(ctx, &login, rules, after); err != nil {
		return err
	}
	login.Reset = false
	return d.saveLogin(ctx, u, rules, &login)
}

// setPassword puts a password in the place of the present one, if there is any.
func (d *Directory) setPassword(ctx context.Context, l *Login, rules *PasswordPolicy, password Secret) error {
	if err := rules.check(password); err != nil {
		return err
	}
	var used []Secret
	if l.Hash != "" {
		used = append([]Secret{l.Hash}, l.Previous...)
	}
	used = used[:min(len(used), rules.reuse())]
	for _, hash := range used {
		same, err := d.isPassword(ctx, hash, password)
		if err != nil && !errors.Is(err, errPasswordHash) {
			return err
		}
		if same {
			return &RequestError{CodePasswordPolicy, fmt.Sprintf("Password should not be one of the last %d passwords", rules.Reuse)}
		}
	}
	l.Previous = used[:min(len(used), max(rules.reuse()-1, 0))]
	l.Changed = d.Now()
	var err error
	l.Hash, err = d.hashNew(ctx, password)
	return err
}

// saveLogin writes a login that was made for the user as it was, under the
// rules as they were. Hashing takes long, and is not done under the lock.
func (d *Directory) saveLogin(ctx context.Context, was User, rules *PasswordPolicy, l *Login) error {
	return d.Write(ctx, func(tx *Tx) error {
		u, ok := tx.Users.Get(was.Name)
		var err error
		switch {
		case !ok:
			err = ErrNotFound
		case was.Login == nil && u.Login != nil:
			err = ErrExists
		case was.Login != nil && u.Login == nil:
			err = ErrNoLogin
		case u.ID != was.ID || u.Login != was.Login || tx.Account.Passwords != rules:
			err = ErrChanged
		}
		if err != nil {
			return fmt.Errorf("password of user %s: %w", was.Name, err)
		}
		u.Login = l
		tx.Users.Put(u.Name, u)
		return nil
	})
}

// changesOwnPassword is what users may do where the account lets them.
var changesOwnPassword = func() *policy.Document {
	doc, err := policy.Parse(policy.Identity, "the account's password policy",
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["iam:ChangePassword","iam:GetAccountPasswordPolicy"],"Resource":"*"}}`)
	if err != nil {
		panic(err) // it is part of the program
	}
	return doc
}()
