package identity

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Credentials are an access key with its secret, and for a session its token.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey Secret
	SessionToken    Secret
	Expires         time.Time // zero: do not expire
}

// claims is what a session token holds, sealed. In version 1 there are those up
// to Tags, and they are a role's.
// docs/format/session-token.md
type claims struct {
	AccessKeyID    string            `json:"k"`
	Secret         []byte            `json:"x"` // as text; base64 in JSON
	Account        string            `json:"a"`
	Role           string            `json:"r,omitempty"`
	RoleID         string            `json:"i,omitempty"` // a role of the same name made later is another
	Session        string            `json:"s,omitempty"`
	SourceIdentity string            `json:"o,omitempty"`
	Issued         int64             `json:"b"` // milliseconds since 1970
	Expires        int64             `json:"e"` // milliseconds since 1970
	Policies       []string          `json:"p,omitempty"`
	Tags           map[string]string `json:"t,omitempty"`

	Kind       PrincipalKind `json:"y,omitempty"`
	User       string        `json:"u,omitempty"`
	UserID     string        `json:"j,omitempty"`
	Origin     string        `json:"f,omitempty"` // access key of a user
	PolicyARNs []string      `json:"m,omitempty"`
	Transitive []string      `json:"z,omitempty"`
	Web        *webClaims    `json:"w,omitempty"`
}

// webClaims is what an identity provider has said of who began the session.
type webClaims struct {
	Provider string `json:"p"` // ARN
	Subject  string `json:"s"`
	Audience string `json:"d"`
	Client   string `json:"c,omitempty"` // azp
}

const tokenUse = "session token"

const (
	maxToken    = 16 << 10 // of what is decoded of a stranger's token, in bytes of base64
	maxInflated = 64 << 10 // of the plain text of a token or message, in bytes
	maxPacked   = 4 << 10  // of policies and tags in a token, in bytes, compressed
)

// pack is what of a session is as large as its caller makes it.
func (c *claims) pack() []byte {
	text, err := json.Marshal(struct {
		P []string          `json:"p,omitempty"`
		M []string          `json:"m,omitempty"`
		T map[string]string `json:"t,omitempty"`
		Z []string          `json:"z,omitempty"`
	}{c.Policies, c.PolicyARNs, c.Tags, c.Transitive})
	if err != nil {
		panic(err) // strings always encode
	}
	return deflate(text)
}

// packedSize is how much of what there is room for the session takes, in
// percent. One without policies and tags takes 0.
func (c *claims) packedSize() int {
	if len(c.Policies)+len(c.PolicyARNs)+len(c.Tags) == 0 {
		return 0
	}
	return int(math.Ceil(float64(len(c.pack())) * 100 / maxPacked))
}

// issue fills in the claims of a new session and makes its credentials. The
// caller holds the lock.
func (d *Directory) issue(c claims, life time.Duration) (Credentials, error) {
	now := d.now()
	out := Credentials{
		AccessKeyID:     newID("ASIA"),
		SecretAccessKey: newSecret(),
		Expires:         now.Add(life).Truncate(time.Second),
	}
	c.AccessKeyID, c.Secret, c.Account = out.AccessKeyID, []byte(out.SecretAccessKey), d.account.ID
	c.Issued, c.Expires = now.UnixMilli(), out.Expires.UnixMilli()
	text, err := json.Marshal(c) //nolint:gosec // it is sealed below
	if err != nil {
		return Credentials{}, err
	}
	sealed := d.key.seal(useToken, tokenUse, deflate(text))
	out.SessionToken = Secret(base64.StdEncoding.EncodeToString(sealed))
	if len(out.SessionToken) > maxToken {
		return Credentials{}, fmt.Errorf("session token would have %d bytes", len(out.SessionToken))
	}
	return out, nil
}

// openToken reads a session token that goes with the access key.
func (d *Directory) openToken(accessKeyID, token string) (*claims, error) {
	if len(token) > maxToken {
		return nil, ErrBadToken
	}
	sealed, err := base64.StdEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, ErrBadToken
	}
	text, version, err := d.key.open(useToken, tokenUse, sealed)
	if err == nil && version > 1 {
		text, err = inflate(text)
	}
	if err != nil {
		return nil, ErrBadToken
	}
	c := &claims{Kind: RolePrincipal}
	if err := json.Unmarshal(text, c); err != nil || c.AccessKeyID != accessKeyID {
		return nil, ErrBadToken
	}
	return c, nil
}

func deflate(text []byte) []byte {
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, flate.BestCompression)
	_, err := w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err) // a buffer takes everything
	}
	return out.Bytes()
}

// inflate expands what deflate made, up to a limit.
func inflate(packed []byte) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), maxInflated+1))
	if err == nil && len(text) > maxInflated {
		err = errSealed
	}
	return text, err
}

const (
	idLetters     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	secretLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)

// newID makes an identifier of 20 characters: the prefix and 80 random bits.
func newID(prefix string) string { return prefix + random(16, idLetters) }

// newSecret makes a secret access key of 40 characters, 240 random bits.
func newSecret() Secret { return Secret(random(40, secretLetters)) }

// random draws from an alphabet whose size divides 256, so that no letter is
// likelier than another.
func random(n int, letters string) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}
