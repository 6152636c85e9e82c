package control

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
)

// A pager makes the tokens by which clients go through long lists. A token says
// behind which key the next page begins. It is sealed together with the
// operation and its filters, so that nobody makes one up or takes it elsewhere,
// and nothing is remembered of it: it outlives the process.
type pager struct{ aead cipher.AEAD }

// pageKeySize is the size of a pager's key in bytes.
const pageKeySize = 32

func newPager(key []byte) (pager, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return pager{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return pager{aead}, err
}

// use is what a token is bound to.
func use(operation string, filters any) []byte {
	text, _ := json.Marshal([]any{operation, filters})
	sum := sha256.Sum256(text)
	return sum[:]
}

const defaultPage = 50

// start reads what a request says of its page.
func (p pager) start(operation string, filters any, token *string, max *int32) (after string, limit int, err error) {
	limit = defaultPage
	if max != nil {
		limit = int(*max)
	}
	if token == nil || *token == "" {
		return "", limit, nil
	}
	sealed, err := base64.RawURLEncoding.DecodeString(*token)
	if err == nil {
		sealed, err = p.aead.Open(nil, nil, sealed, use(operation, filters))
	}
	if err != nil {
		return "", 0, invalid("nextToken", "nextToken is not one that %s gave out for these filters: begin again without it", operation)
	}
	return string(sealed), limit, nil
}

// next cuts a list read with limit+1 down to the page and makes its token.
func next[T any](p pager, operation string, filters any, items []T, limit int, key func(T) string) ([]T, string) {
	if len(items) <= limit {
		return items, ""
	}
	sealed := p.aead.Seal(nil, nil, []byte(key(items[limit-1])), use(operation, filters)) //nolint:gosec // it makes its nonces itself
	return items[:limit], base64.RawURLEncoding.EncodeToString(sealed)
}

// newPageKey makes the text of a key as the settings keep it.
func newPageKey() string {
	var key [pageKeySize]byte
	rand.Read(key[:])
	return base64.StdEncoding.EncodeToString(key[:])
}
