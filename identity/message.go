package identity

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"rehost/identity/policy"
)

// messageUse is what authorization messages are sealed for.
const messageUse = "authorization message"

const (
	maxMessage      = 4 << 10 // of an authorization message, in bytes of base64
	maxMessageValue = 256     // of a value in it, in bytes
	maxMessageKeys  = 64
)

// ErrMessage says that an authorization message is not one of ours.
var ErrMessage = errors.New("authorization message is not valid")

// A Refusal is what an authorization message says, in the form that
// DecodeAuthorizationMessage answers.
// https://docs.aws.amazon.com/STS/latest/APIReference/API_DecodeAuthorizationMessage.html
type Refusal struct {
	Allowed      bool           `json:"allowed"`
	ExplicitDeny bool           `json:"explicitDeny"`
	Reason       string         `json:"reason"`
	Context      RefusalContext `json:"context"`
}

// A RefusalContext is who wanted to do what, and the values of condition keys.
type RefusalContext struct {
	Principal  RefusalPrincipal `json:"principal"`
	Action     string           `json:"action"`
	Resource   string           `json:"resource"`
	Conditions RefusalItems     `json:"conditions"`
}

// A RefusalPrincipal names the caller.
type RefusalPrincipal struct {
	ID  string `json:"id,omitempty"`
	ARN string `json:"arn"`
}

// A RefusalItems is a list in a list, as AWS writes it.
type RefusalItems struct {
	Items []RefusalItem `json:"items"`
}

// A RefusalItem is a condition key with its values.
type RefusalItem struct {
	Key    string        `json:"key"`
	Values RefusalValues `json:"values"`
}

// A RefusalValues is a list of values, as AWS writes it.
type RefusalValues struct {
	Items []RefusalValue `json:"items"`
}

// A RefusalValue is one value.
type RefusalValue struct {
	Value string `json:"value"`
}

// EncodeRefusal seals why a caller was not allowed something, so that whoever
// may call DecodeAuthorizationMessage can read it. It is at most 4 KiB.
func (d *Directory) EncodeRefusal(p RefusalPrincipal, action, resource string, c policy.Context, decision policy.Decision) string {
	r := Refusal{ExplicitDeny: decision.Explicit, Reason: cut(decision.Reason(), maxMessageValue)}
	r.Context = RefusalContext{Principal: p, Action: action, Resource: cut(resource, 1024)}
	var keys []string
	for key := range c {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys[:min(len(keys), maxMessageKeys)] {
		item := RefusalItem{Key: cut(key, maxMessageValue)}
		for _, v := range c[key] {
			item.Values.Items = append(item.Values.Items, RefusalValue{cut(v, maxMessageValue)})
		}
		r.Context.Conditions.Items = append(r.Context.Conditions.Items, item)
	}
	for {
		text, err := json.Marshal(r)
		if err != nil {
			panic(err) // strings always encode
		}
		out := base64.RawURLEncoding.EncodeToString(d.key.seal(useMessage, messageUse, deflate(text)))
		items := r.Context.Conditions.Items
		if len(out) <= maxMessage || len(items) == 0 {
			return out
		}
		r.Context.Conditions.Items = items[:len(items)/2]
	}
}

// cut shortens a text to n bytes.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// DecodeRefusal opens an authorization message and returns its JSON. The error
// is [ErrMessage].
func (d *Directory) DecodeRefusal(message string) (string, error) {
	if len(message) > maxMessage {
		return "", ErrMessage
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(message)
	if err != nil {
		return "", ErrMessage
	}
	packed, _, err := d.key.open(useMessage, messageUse, sealed)
	if err != nil {
		return "", ErrMessage
	}
	text, err := inflate(packed)
	if err != nil {
		return "", ErrMessage
	}
	return string(text), nil
}
