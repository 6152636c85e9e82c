package awsapi

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"rehost/identity"
)

// byPointer is sensitive in a way that only its pointer has.
type byPointer struct{ Value string }

func (*byPointer) LogValue() slog.Value { return slog.StringValue(Redacted) }

type custom struct{ text string }

func (c custom) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"masterPassword": c.text, "open": "seen"})
}

// TestRedact: a secret is in a record neither by its type nor by its name, however
// deep it is; what is none stays.
func TestRedact(t *testing.T) {
	const secret = "hunter2"
	text := secret
	in := struct {
		ByType    identity.Secret   `json:"plain"`
		Pointer   *identity.Secret  `json:"pointer"`
		Many      []identity.Secret `json:"many"`
		Map       map[string]identity.Secret
		Method    byPointer
		Methods   []*byPointer
		Password  string  `json:"password"`
		Maybe     *string `json:"SecretAccessKey,omitempty"`
		Query     string  `json:"-"`
		WebToken  string  `json:"WebIdentityToken"`
		Nested    map[string]any
		Custom    custom
		Bytes     []byte
		Under     struct{ Credentials struct{ Key string } }
		Nothing   *string `json:"nothing,omitempty"`
		Count     int     `json:"count"`
		When      Timestamp
		Certified string `json:"certificateSigningRequest"`
		Mistaken  string
	}{secret, (*identity.Secret)(&text), []identity.Secret{secret}, map[string]identity.Secret{"a": secret}, byPointer{secret}, []*byPointer{{secret}},
		secret, &text, "label", secret, map[string]any{"client_secret": []any{secret}, "x": map[string]any{"sessionToken": secret}}, custom{secret}, []byte(secret),
		struct{ Credentials struct{ Key string } }{struct{ Key string }{secret}}, nil, 7, Timestamp{time.Unix(5, 0)}, "a request", "-----BEGIN EC PRIVATE KEY-----\n" + secret}
	out, err := json.Marshal(redact(&in))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), secret) {
		t.Errorf("it shows: %s", out)
	}
	for _, want := range []string{`"count":7`, `"When":5`, `"Query":"label"`, `"open":"seen"`, `"certificateSigningRequest":"a request"`, `"SecretAccessKey":"` + Redacted + `"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
	plain, err := json.Marshal(in) // the mutation: what a record would be without redact
	if err != nil || strings.Count(string(plain), secret) < 9 {
		t.Errorf("the test hides the secrets itself: %s, %v", plain, err)
	}
}
