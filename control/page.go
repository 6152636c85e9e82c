package control

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
)

// A pager makes the tokens by which clients go through long lists. A token says
// behind which key the next page begins; it carries a keyed sum over that, the
// operation and its filters, so that nobody makes one up or takes it elsewhere.
// Its key is of this process only: after a restart, lists are begun anew.
type pager struct{ key []byte }

type pageToken struct {
	After string `json:"a"`
	Sum   []byte `json:"s"`
}

const defaultPage = 50

func (p pager) sum(after, operation string, filters any) []byte {
	text, _ := json.Marshal([]any{after, operation, filters})
	mac := hmac.New(sha256.New, p.key)
	mac.Write(text)
	return mac.Sum(nil)[:16]
}

// start reads what a request says of its page.
func (p pager) start(operation string, filters any, token *string, max *int32) (after string, limit int, err error) {
	limit = defaultPage
	if max != nil {
		limit = int(*max)
	}
	if token == nil || *token == "" {
		return "", limit, nil
	}
	var t pageToken
	text, err := base64.RawURLEncoding.DecodeString(*token)
	if err != nil || json.Unmarshal(text, &t) != nil || !hmac.Equal(t.Sum, p.sum(t.After, operation, filters)) {
		return "", 0, invalid("nextToken", "nextToken is not one that %s gave out for these filters: begin again without it", operation)
	}
	return t.After, limit, nil
}

// next cuts a list read with limit+1 down to the page and makes its token.
func next[T any](p pager, operation string, filters any, items []T, limit int, key func(T) string) ([]T, string) {
	if len(items) <= limit {
		return items, ""
	}
	after := key(items[limit-1])
	text, _ := json.Marshal(pageToken{After: after, Sum: p.sum(after, operation, filters)})
	return items[:limit], base64.RawURLEncoding.EncodeToString(text)
}
