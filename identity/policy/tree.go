package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// A node is a JSON value that knows where it stands.
type node struct {
	value      any    // object, []node, string, json.Number, bool, nil
	path       string // "Statement[0].Effect"; "" is the document
	start, end int    // offsets in the text
}

// An object is a JSON object in its order. Unlike a map it cannot lose one of
// two members of the same name, which is where a reader and a program would
// see different policies.
type object []member

type member struct {
	name string
	node
}

func (o object) get(name string) (node, bool) {
	for _, m := range o {
		if m.name == name {
			return m.node, true
		}
	}
	return node{}, false
}

func (o object) has(name string) bool {
	_, ok := o.get(name)
	return ok
}

// list is the elements of an array, or the value alone: IAM takes both.
func (n node) list() []node {
	if list, ok := n.value.([]node); ok {
		return list
	}
	return []node{n}
}

// Limits of the text as such, whatever it says.
const (
	// maxText bounds the text with its white space, as the IAM API does.
	maxText = 131072
	// maxNesting is one more than any policy needs.
	maxNesting = 7
)

// parseTree reads one JSON value and refuses repeated names.
func parseTree(text string) (node, error) {
	if !utf8.ValidString(text) {
		return node{}, errors.New("not UTF-8")
	}
	r := &reader{text: text, decoder: json.NewDecoder(strings.NewReader(text))}
	r.decoder.UseNumber()
	n, err := r.read("", 0)
	if err != nil {
		return node{start: r.next()}, err
	}
	if _, err := r.decoder.Token(); !errors.Is(err, io.EOF) {
		return node{start: r.next()}, errors.New("something follows the document")
	}
	return n, nil
}

type reader struct {
	text    string
	decoder *json.Decoder
}

// next is where the next token begins.
func (r *reader) next() int {
	at := int(r.decoder.InputOffset())
	return at + len(r.text[at:]) - len(strings.TrimLeft(r.text[at:], " \t\r\n,:"))
}

func (r *reader) token() (json.Token, error) {
	token, err := r.decoder.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	return token, nil
}

func (r *reader) read(path string, depth int) (n node, err error) {
	n.path, n.start = path, r.next()
	token, err := r.token()
	if err != nil {
		return n, err
	}
	switch delim, _ := token.(json.Delim); {
	case delim != 0 && depth == maxNesting:
		return n, errors.New("nested too deeply")
	case delim == '[':
		n.value, err = r.array(path, depth)
	case delim == '{':
		n.value, err = r.object(path, depth)
	default:
		n.value = token
	}
	n.end = int(r.decoder.InputOffset())
	return n, err
}

func (r *reader) array(path string, depth int) (list []node, err error) {
	list = []node{}
	for r.decoder.More() {
		n, err := r.read(fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	_, err = r.token()
	return list, err
}

func (r *reader) object(path string, depth int) (o object, err error) {
	seen := map[string]bool{}
	for r.decoder.More() {
		name, err := r.token()
		if err != nil {
			return nil, err
		}
		text, _ := name.(string)
		if seen[text] {
			return nil, fmt.Errorf("element %q stands twice", text)
		}
		seen[text] = true
		n, err := r.read(strings.TrimPrefix(path+"."+text, "."), depth+1)
		if err != nil {
			return nil, err
		}
		o = append(o, member{text, n})
	}
	_, err = r.token()
	return o, err
}

// A Position is a place in a document's text. Both count from 1, columns in
// characters.
type Position struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

func positionOf(text string, offset int) Position {
	before := text[:min(offset, len(text))]
	last := strings.LastIndexByte(before, '\n') + 1
	return Position{Line: strings.Count(before, "\n") + 1, Column: utf8.RuneCountInString(before[last:]) + 1}
}

// Size counts the characters of a document as the limits of AWS do: white
// space does not count.
func Size(text string) int {
	var compact bytes.Buffer
	if json.Compact(&compact, []byte(text)) == nil {
		return utf8.RuneCount(compact.Bytes())
	}
	return utf8.RuneCountInString(text)
}

// CheckSize is the [*Error] of documents that are together longer than a limit,
// such as [MaxUserInline].
func CheckSize(limit int, texts ...string) error {
	total := 0
	for _, text := range texts {
		total += Size(text)
	}
	if total > limit {
		return &Error{Reason: fmt.Sprintf("%d characters long without white space, at most %d are allowed", total, limit)}
	}
	return nil
}
