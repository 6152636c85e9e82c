package release

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"aead.dev/minisign"
)

// The files of a release beside its programs.
const (
	SumsFile      = "SHA256SUMS"
	SignatureFile = "SHA256SUMS.minisig"
)

// The most that is read of the two, in bytes.
const (
	MaxSums      = 64 << 10
	MaxSignature = 4 << 10
)

// MaxProgram is the most that a program may be long, in bytes.
const MaxProgram = 256 << 20

// comment begins the trusted comment of the signature, which the version follows.
const comment = "rehost "

var (
	// ErrSignature says that nobody who is believed has signed a list.
	ErrSignature = errors.New("the release is not signed by a key that is believed")

	// ErrSum says that a file is not the one of the release.
	ErrSum = errors.New("the file is not the one of the release")

	// ErrNotListed says that a release has no such file.
	ErrNotListed = errors.New("the release has no such file")
)

// Agent is the name of the agent's program for an architecture, as Go names it.
func Agent(arch string) string { return "rehost-agent-linux-" + arch }

// A Sum is the SHA-256 of a file.
type Sum [sha256.Size]byte

// String is the sum in lower-case hexadecimal.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// SumOf reads r to its end.
func SumOf(r io.Reader) (s Sum, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return s, err
	}
	return Sum(h.Sum(nil)), nil
}

// A Manifest is the list of a release's files. It does not change.
type Manifest struct {
	Version Version // zero for a list that is not signed
	sums    map[string]Sum
}

// Open checks the signature on a list of sums and reads it. The error wraps
// [ErrSignature] where none of the keys has made the signature; without keys
// there is none that could have.
func Open(sums, signature []byte, keys []minisign.PublicKey) (*Manifest, error) {
	i := slices.IndexFunc(keys, func(k minisign.PublicKey) bool { return minisign.Verify(k, sums, signature) })
	if i < 0 {
		return nil, fmt.Errorf("verify %s: %w", SumsFile, ErrSignature)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return nil, fmt.Errorf("read %s: %w", SignatureFile, err)
	}
	text, ok := strings.CutPrefix(s.TrustedComment, comment)
	if !ok {
		return nil, fmt.Errorf("read %s: its trusted comment names no version of rehost", SignatureFile)
	}
	version, err := ParseVersion(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", SignatureFile, err)
	}
	m, err := Parse(sums)
	if err != nil {
		return nil, err
	}
	m.Version = version
	return m, nil
}

// line is what sha256sum prints for a file of a plain name.
var line = regexp.MustCompile(`^([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._~+-]*)$`)

// Parse reads a list of sums and believes it.
func Parse(sums []byte) (*Manifest, error) {
	m := &Manifest{sums: map[string]Sum{}}
	for lines := bufio.NewScanner(bytes.NewReader(sums)); lines.Scan(); {
		words := line.FindStringSubmatch(lines.Text())
		if words == nil {
			return nil, fmt.Errorf("read %s: %q is not a sum and a name", SumsFile, lines.Text())
		}
		if _, twice := m.sums[words[2]]; twice {
			return nil, fmt.Errorf("read %s: %s is there twice", SumsFile, words[2])
		}
		var s Sum
		if _, err := hex.Decode(s[:], []byte(words[1])); err != nil {
			return nil, fmt.Errorf("read %s: %w", SumsFile, err)
		}
		m.sums[words[2]] = s
	}
	if len(m.sums) == 0 || len(sums) > MaxSums || sums[len(sums)-1] != '\n' {
		return nil, fmt.Errorf("read %s: it is not whole", SumsFile)
	}
	return m, nil
}

// Names lists the files, in order.
func (m *Manifest) Names() (names []string) {
	for name := range m.sums {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Sum is that of a file; the error wraps [ErrNotListed].
func (m *Manifest) Sum(name string) (Sum, error) {
	s, ok := m.sums[name]
	if !ok {
		return s, fmt.Errorf("%s: %w", name, ErrNotListed)
	}
	return s, nil
}

// Check is whether a file of that sum is the one of that name; otherwise the
// error wraps [ErrSum] or [ErrNotListed].
func (m *Manifest) Check(name string, got Sum) error {
	want, err := m.Sum(name)
	if err == nil && got != want {
		err = fmt.Errorf("%s has the SHA-256 %s, the list says %s: %w", name, got, want, ErrSum)
	}
	return err
}
