package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// A passwordHash is what is kept of a password, docs/format/password.md.
type passwordHash struct {
	passwordCost
	salt, sum []byte
}

// A passwordCost is what it takes to try a password.
type passwordCost struct {
	memory, passes uint32 // memory in KiB
	lanes          uint8
}

// writtenCost is that of the passwords that are set.
var writtenCost = passwordCost{memory: 64 << 10, passes: 3, lanes: 4}

const (
	passwordSalt = 16 // bytes
	passwordSum  = 32 // bytes
)

const passwordForm = "$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s" //nolint:gosec // no password

func (h passwordHash) text() Secret {
	b64 := base64.RawStdEncoding
	return Secret(fmt.Sprintf(passwordForm, argon2.Version, h.memory, h.passes, h.lanes, b64.EncodeToString(h.salt), b64.EncodeToString(h.sum)))
}

var errPasswordHash = errors.New("the hash of the password is not of a form that is known: set the password again")

func parsePassword(text Secret) (h passwordHash, err error) {
	var version int
	parts := strings.Split(string(text), "$")
	if len(parts) != 6 {
		return h, errPasswordHash
	}
	_, err = fmt.Sscanf(strings.Join(parts[:4], "$"), "$argon2id$v=%d$m=%d,t=%d,p=%d", &version, &h.memory, &h.passes, &h.lanes)
	salt, saltErr := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	sum, sumErr := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	h.salt, h.sum = salt, sum
	within := func(n, least, most int) bool { return least <= n && n <= most }
	if err != nil || saltErr != nil || sumErr != nil || version != argon2.Version || h.text() != text ||
		!within(int(h.memory), 8<<10, 1<<20) || !within(int(h.passes), 1, 16) || !within(int(h.lanes), 1, 16) ||
		!within(len(salt), 8, 64) || !within(len(sum), 16, 64) {
		return h, errPasswordHash
	}
	return h, nil
}

// newPassword is the hash of no password yet, with a salt of its own.
func newPassword(cost passwordCost) passwordHash {
	h := passwordHash{passwordCost: cost, salt: make([]byte, passwordSalt), sum: make([]byte, passwordSum)}
	rand.Read(h.salt)
	return h
}

// isOf is whether the hash is one that would be written at the cost.
func (h passwordHash) isOf(cost passwordCost) bool {
	return h.passwordCost == cost && len(h.salt) == passwordSalt && len(h.sum) == passwordSum
}

func (h passwordHash) of(password Secret) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.passes, h.memory, h.lanes, uint32(len(h.sum)))
}

// maxHashing is how many passwords are hashed at a time: each takes 64 MiB, and
// whoever may try passwords must not take the memory of the machine.
const maxHashing = 2

// hash waits for its turn.
func (d *Directory) hash(ctx context.Context, h passwordHash, password Secret) ([]byte, error) {
	select {
	case d.hashing <- struct{}{}:
		defer func() { <-d.hashing }()
		return h.of(password), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *Directory) hashNew(ctx context.Context, password Secret) (Secret, error) {
	h := newPassword(d.cost)
	var err error
	h.sum, err = d.hash(ctx, h, password)
	return h.text(), err
}

// isPassword is whether the hash is of the password. It takes as long for "",
// which is of none.
func (d *Directory) isPassword(ctx context.Context, hash, password Secret) (bool, error) {
	h, none := newPassword(d.cost), hash == ""
	if !none {
		var err error
		if h, err = parsePassword(hash); err != nil {
			return false, err
		}
	}
	sum, err := d.hash(ctx, h, password)
	return err == nil && subtle.ConstantTimeCompare(sum, h.sum) == 1 && !none, err
}

// A PasswordPolicy is what passwords of users have to be like.
type PasswordPolicy struct {
	MinLength   int  `json:"minLength"` // in characters, 6 to 128
	Lower       bool `json:"lower,omitempty"`
	Upper       bool `json:"upper,omitempty"`
	Number      bool `json:"number,omitempty"`
	Symbol      bool `json:"symbol,omitempty"`
	MaxAge      int  `json:"maxAge,omitempty"`      // in days; 0: passwords do not end
	HardExpiry  bool `json:"hardExpiry,omitempty"`  // nobody signs in with one that has ended
	Reuse       int  `json:"reuse,omitempty"`       // how many passwords, the present one among them, cannot be set again; up to 24
	UsersChange bool `json:"usersChange,omitempty"` // users may change their own, whatever their policies are silent about
}

// symbols are the characters that count as such.
const symbols = "!@#$%^&*()_+-=[]{}|'"

// maxPassword is how long a password may be, in characters.
const maxPassword = 128

// check says what is wrong with a password, in the words of IAM. Without a
// policy of the account it needs eight characters of three of the four kinds.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_passwords_account-policy.html
func (p *PasswordPolicy) check(password Secret) error {
	least, needed := 8, 3
	asked := PasswordPolicy{Lower: true, Upper: true, Number: true, Symbol: true}
	if p != nil {
		least, needed, asked = p.MinLength, 4, *p
	}
	violation := func(format string, args ...any) error {
		return &RequestError{CodePasswordPolicy, fmt.Sprintf(format, args...)}
	}
	switch n := utf8.RuneCountInString(string(password)); {
	case n < least:
		return violation("Password should have a minimum length of %d", least)
	case n > maxPassword:
		return violation("Password should have a maximum length of %d", maxPassword)
	}
	var missing []string
	for _, kind := range []struct {
		asked   bool
		of      string
		message string
	}{
		{asked.Upper, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "Password should have at least one uppercase letter"},
		{asked.Lower, "abcdefghijklmnopqrstuvwxyz", "Password should have at least one lowercase letter"},
		{asked.Number, "0123456789", "Password should have at least one number"},
		{asked.Symbol, symbols, "Password should have at least one symbol"},
	} {
		if kind.asked && !strings.ContainsAny(string(password), kind.of) {
			missing = append(missing, kind.message)
		}
	}
	more := len(missing) - (4 - needed)
	switch {
	case more <= 0:
		return nil
	case p != nil:
		return violation("%s", strings.Join(missing, ", "))
	}
	return violation("Password should meet %d more of the following requirements: %s", more, strings.Join(missing, ", "))
}

// Ends is when a password that was set then has to be changed; zero: never.
func (p *PasswordPolicy) Ends(set time.Time) time.Time {
	if p == nil || p.MaxAge == 0 {
		return time.Time{}
	}
	return set.AddDate(0, 0, p.MaxAge)
}

// reuse is how many passwords cannot be set again.
func (p *PasswordPolicy) reuse() int {
	if p == nil {
		return 0
	}
	return p.Reuse
}
