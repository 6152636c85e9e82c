package identity

import "time"

// An Account is what everything belongs to; there is one.
type Account struct {
	ID      string    `json:"id"` // twelve digits
	Created time.Time `json:"created"`
	Alias   string    `json:"alias,omitempty"` // of the account, for people

	// Passwords is what they have to be like; nil: as the service has it. What it
	// points to is not changed.
	Passwords *PasswordPolicy `json:"passwords,omitempty"`
}

// A User is a person or program with long-lived access keys.
type User struct {
	Name     string            `json:"name"`
	ID       string            `json:"id"` // AIDA…, never given again to another
	Path     string            `json:"path"`
	Created  time.Time         `json:"created"`
	Tags     map[string]string `json:"tags,omitempty"`
	Attached []string          `json:"attached,omitempty"` // ARNs of managed policies
	Inline   map[string]string `json:"inline,omitempty"`   // documents by name
	Boundary string            `json:"boundary,omitempty"` // ARN of a managed policy
	Groups   []string          `json:"groups,omitempty"`   // names
	Login    *Login            `json:"login,omitempty"`    // nil: no password; what it points to is not changed

	PasswordUsed time.Time `json:"passwordUsed,omitzero"` // to the minute; stays when the password is taken away
}

// A Login is a user's password for the console. It is kept as a hash only, and
// the hash is printed nowhere either: docs/format/password.md.
type Login struct {
	Created  time.Time `json:"created"` // when the user got a password
	Changed  time.Time `json:"changed"` // when the present one was set
	Hash     Secret    `json:"hash"`
	Previous []Secret  `json:"previous,omitempty"` // hashes of those before, newest first
	Reset    bool      `json:"reset,omitempty"`    // it is to be changed before anything else
}

// A Group gives its policies to the users in it.
type Group struct {
	Name     string            `json:"name"`
	ID       string            `json:"id"` // AGPA…
	Path     string            `json:"path"`
	Created  time.Time         `json:"created"`
	Attached []string          `json:"attached,omitempty"`
	Inline   map[string]string `json:"inline,omitempty"`
}

// An InstanceProfile gives a role to an instance.
type InstanceProfile struct {
	Name    string            `json:"name"`
	ID      string            `json:"id"` // AIPA…
	Path    string            `json:"path"`
	Created time.Time         `json:"created"`
	Role    string            `json:"role,omitempty"`
	Tags    map[string]string `json:"tags,omitempty"`
}

// A Role is assumed by those whom its trust policy names.
type Role struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"` // AROA…
	Path        string            `json:"path"`
	Created     time.Time         `json:"created"`
	Tags        map[string]string `json:"tags,omitempty"`
	Description string            `json:"description,omitempty"`
	Trust       string            `json:"trust"` // names users and roles by their ids: see [Tx.Trust]
	MaxDuration time.Duration     `json:"maxDuration"`
	Attached    []string          `json:"attached,omitempty"`
	Inline      map[string]string `json:"inline,omitempty"`
	Boundary    string            `json:"boundary,omitempty"`
}

// An AccessKey signs requests of a user. Its secret is shown once, when it is
// made; at rest it is sealed.
type AccessKey struct {
	ID      string    `json:"id"` // AKIA…
	User    string    `json:"user"`
	Active  bool      `json:"active"`
	Created time.Time `json:"created"`
	Sealed  []byte    `json:"sealed"`
	Used    KeyUse    `json:"used,omitzero"`
}

// A KeyUse is the last time that a key was used, as exactly as it is kept.
type KeyUse struct {
	Time            time.Time `json:"time"`
	Service, Region string
}

// A Policy is a document with a name of its own that users and roles attach.
type Policy struct {
	Name        string            `json:"name"`
	Path        string            `json:"path"`
	Document    string            `json:"document"` // of the default version
	ID          string            `json:"id,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
	Updated     time.Time         `json:"updated,omitzero"`
	Description string            `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Default     int               `json:"default,omitempty"` // number of the default version; 0 is 1
	Last        int               `json:"last,omitempty"`    // number of the newest version that ever was; 0 is 1
	Versions    []PolicyVersion   `json:"versions,omitempty"`
}

// A PolicyVersion is a document that a policy has or had, by its number.
type PolicyVersion struct {
	Number   int       `json:"number"`
	Document string    `json:"document"`
	Created  time.Time `json:"created"`
}

// A revocation ends the sessions of its subject that began at its time or before.
type revocation struct {
	NotAfter time.Time `json:"notAfter"`
}
