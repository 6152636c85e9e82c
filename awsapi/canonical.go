package awsapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	amzTime    = "20060102T150405Z"
	amzDate    = "20060102"
)

// A scope is what a signature is good for: one day, region and service.
type scope struct{ date, region, service string }

func (s scope) String() string {
	return s.date + "/" + s.region + "/" + s.service + "/" + terminator
}

// signature is the hexadecimal signature of a canonical request.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
func signature(secret string, s scope, time, canonical string) string {
	digest := sha256.Sum256([]byte(canonical))
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, terminator} {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, algorithm+"\n"+time+"\n"+s.String()+"\n"+hex.EncodeToString(digest[:])))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// canonicalRequest writes a request in the form that is signed. The path is
// the escaped one as it came; escaping it once more is the rule of all
// services but S3. The query is a canonical one without the signature.
func canonicalRequest(r *http.Request, path, query string, signed []string, bodyHash string) string {
	var b strings.Builder
	b.Grow(512)
	b.WriteString(r.Method)
	b.WriteByte('\n')
	writeEscaped(&b, path, true)
	b.WriteByte('\n')
	b.WriteString(query)
	b.WriteByte('\n')
	for _, name := range signed {
		b.WriteString(name)
		b.WriteByte(':')
		writeHeader(&b, headerValues(r, name))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	b.WriteString(strings.Join(signed, ";"))
	b.WriteByte('\n')
	b.WriteString(bodyHash)
	return b.String()
}

// headerValues finds a header by its lower-case name, also those that net/http
// keeps elsewhere.
func headerValues(r *http.Request, name string) []string {
	switch name {
	case "host":
		return []string{r.Host}
	case "content-length":
		if r.Header["Content-Length"] == nil && r.ContentLength >= 0 {
			return []string{strconv.FormatInt(r.ContentLength, 10)}
		}
	}
	return r.Header[http.CanonicalHeaderKey(name)]
}

// writeHeader joins the values of a header, each without outer and with single
// inner spaces.
func writeHeader(b *strings.Builder, values []string) {
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strings.Join(strings.FieldsFunc(v, func(r rune) bool { return r == ' ' }), " "))
	}
}

// canonicalQuery writes parameters sorted by name and then by value, as they
// are escaped.
func canonicalQuery(query url.Values) string {
	return joinQuery(query, func(name, value string) string { return escape(name) + "\x00" + escape(value) })
}

// plainOrderQuery is the same parameters sorted as they are before escaping.
// The rule says otherwise, but the official SDK for Go signs so, and it makes
// a difference for tag keys such as "a1" and "a:b". Either order covers all of
// the query.
func plainOrderQuery(query url.Values) string {
	return joinQuery(query, func(name, value string) string { return name + "\x00" + value })
}

func joinQuery(query url.Values, rank func(name, value string) string) string {
	type pair struct{ rank, text string }
	pairs := make([]pair, 0, len(query))
	for name, values := range query {
		for _, v := range values {
			pairs = append(pairs, pair{rank(name, v), escape(name) + "=" + escape(v)})
		}
	}
	slices.SortFunc(pairs, func(x, y pair) int { return strings.Compare(x.rank, y.rank) })
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.text)
	}
	return b.String()
}

// escape escapes all but the unreserved characters of RFC 3986.
func escape(s string) string {
	var b strings.Builder
	writeEscaped(&b, s, false)
	return b.String()
}

// writeEscaped escapes all but the unreserved characters of RFC 3986, and the
// slash if it is kept.
func writeEscaped(b *strings.Builder, s string, keepSlash bool) {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == '~', c == '/' && keepSlash:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
}
