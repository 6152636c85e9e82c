package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// docs/format/audit.md
const (
	magic     = "rehost-audit"
	headMagic = "rehost-audit-head"
	version   = 1

	lineDomain = "rehost audit v1\x00"
	headDomain = "rehost audit head v1\x00"

	linePrefix = `{"seq":`
	hashMember = `,"hash":"`
	macMember  = `","mac":"`
	lineEnd    = `"}`

	// sealSize is the size of what stands behind the body of a line.
	sealSize = len(hashMember) + 2*sha256.Size + len(macMember) + 2*sha256.Size + len(lineEnd)
	// maxLine is the longest line in bytes. A torn one, in base64, fits too.
	maxLine = 256 << 10
)

// A Hash is what the chain is at after one line.
type Hash [sha256.Size]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// UnmarshalText reads what String has written.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("a hash has %d hexadecimal digits, not %d", 2*len(h), len(text))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// MarshalText is String.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

func chain(domain string, before Hash, body []byte) (h Hash) {
	d := sha256.New()
	d.Write([]byte(domain))
	d.Write(before[:])
	d.Write(body)
	d.Sum(h[:0])
	return h
}

func sign(key []byte, h Hash) (mac Hash) {
	m := hmac.New(sha256.New, key)
	m.Write(h[:])
	m.Sum(mac[:0])
	return mac
}

// seal makes a line, with its line feed, of the members of a record.
func seal(key []byte, domain string, before Hash, seq uint64, members []byte) (line []byte, h Hash) {
	line = make([]byte, 0, len(linePrefix)+21+len(members)+sealSize+1)
	line = append(line, linePrefix...)
	line = strconv.AppendUint(line, seq, 10)
	line = append(line, ',')
	line = append(line, members...)
	h = chain(domain, before, line)
	line = append(line, hashMember...)
	line = hex.AppendEncode(line, h[:])
	line = append(line, macMember...)
	mac := sign(key, h)
	line = hex.AppendEncode(line, mac[:])
	line = append(line, lineEnd...)
	return append(line, '\n'), h
}

// A sealed line is one that was taken apart and not yet checked.
type sealed struct {
	seq       uint64
	body      []byte
	hash, mac Hash
}

var errLine = errors.New("not a record of an audit log")

// unseal takes a line apart, without its line feed. There is one spelling of each.
func unseal(line []byte) (s sealed, err error) {
	n := len(line) - sealSize
	if n < 0 || len(line) >= maxLine {
		return s, fmt.Errorf("%w: it has %d bytes", errLine, len(line))
	}
	s.body = line[:n]
	rest, ok := bytes.CutPrefix(s.body, []byte(linePrefix))
	digits, _, comma := bytes.Cut(rest, []byte{','})
	if !ok || !comma {
		return s, fmt.Errorf("%w: it does not begin with a sequence number", errLine)
	}
	if s.seq, err = strconv.ParseUint(string(digits), 10, 64); err != nil || strconv.FormatUint(s.seq, 10) != string(digits) {
		return s, fmt.Errorf("%w: its sequence number is none", errLine)
	}
	hash, mac := line[n+len(hashMember):], line[len(line)-len(lineEnd)-2*sha256.Size:]
	hash, mac = hash[:2*sha256.Size], mac[:2*sha256.Size]
	if s.hash.UnmarshalText(hash) != nil || s.mac.UnmarshalText(mac) != nil ||
		!bytes.Equal(line[n:], fmt.Appendf(nil, "%s%s%s%s%s", hashMember, s.hash, macMember, s.mac, lineEnd)) {
		return s, fmt.Errorf("%w: it does not end in hash and mac", errLine)
	}
	return s, nil
}

// check is whether the line is the one after the hash; without a key the mac
// cannot be looked at.
func (s *sealed) check(key []byte, domain string, before Hash) error {
	if chain(domain, before, s.body) != s.hash {
		return errors.New("it was changed, or the line before it: its hash is not that of its text")
	}
	if want := sign(key, s.hash); len(key) > 0 && !hmac.Equal(want[:], s.mac[:]) {
		return errors.New("it was not written with this key: its mac is wrong")
	}
	return nil
}

// A header is what the first line of a file has behind its sequence number.
type header struct {
	Magic    string `json:"magic"`
	Version  int    `json:"version"`
	Key      string `json:"key"` // name of that of the macs; "" from before it was said
	Previous Hash   `json:"previousHash"`
}

// header reads that of a first line.
func (s *sealed) header() (h header, err error) {
	// The body is an object whose end was cut off.
	if err := json.Unmarshal(append(bytes.Clone(s.body), '}'), &h); err != nil || h.Magic != magic {
		return h, errors.New("it is not the first line of an audit log")
	}
	if h.Version != version {
		return h, fmt.Errorf("the log is of version %d, and this program knows only %d", h.Version, version)
	}
	return h, nil
}

// members are the members of an object, without its braces.
func members(object []byte) []byte { return object[1 : len(object)-1] }
