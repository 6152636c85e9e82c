package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A pattern is text with wildcards and policy variables:
//
//   - any characters, also none      ${*} ${?} ${$}        the characters themselves
//     ?  any one character              ${key} ${key, 'x'}    the value of a context key, or x
//
// A variable's value is always literal: a session called "*" is not a wildcard.
type pattern []piece

type piece struct {
	kind    pieceKind
	text    string // the literal, or the variable's context key
	without string // value of an absent variable, if hasDefault
	hasElse bool
}

type pieceKind byte

const (
	literal pieceKind = iota
	anyRun
	anyOne
	variable
)

// compilePattern reads a pattern; without variables a dollar sign is literal.
func compilePattern(s string, variables bool) (pattern, error) {
	var p pattern
	for s != "" {
		switch {
		case s[0] == '*':
			p, s = append(p, piece{kind: anyRun}), s[1:]
		case s[0] == '?':
			p, s = append(p, piece{kind: anyOne}), s[1:]
		case variables && strings.HasPrefix(s, "${"):
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return nil, fmt.Errorf("variable %q does not end", s)
			}
			v, err := compileVariable(s[2:end])
			if err != nil {
				return nil, err
			}
			p, s = append(p, v), s[end+1:]
		default:
			end := 1 + strings.IndexAny(s[1:]+"*", "*?$")
			p, s = append(p, piece{kind: literal, text: s[:end]}), s[end:]
		}
	}
	return p, nil
}

func compileVariable(s string) (piece, error) {
	switch s {
	case "*", "?", "$":
		return piece{kind: literal, text: s}, nil
	}
	key, rest, found := strings.Cut(s, ",")
	v := piece{kind: variable, text: strings.ToLower(key)}
	if !keyForm.MatchString(key) {
		return v, fmt.Errorf("${%s} is not a variable", s)
	}
	if found {
		rest = strings.TrimSpace(rest)
		if len(rest) < 2 || rest[0] != '\'' || rest[len(rest)-1] != '\'' {
			return v, fmt.Errorf("the default of ${%s} does not stand in single quotes", s)
		}
		v.without, v.hasElse = rest[1:len(rest)-1], true
	}
	return v, nil
}

// expand replaces the variables by what they stand for. It is not ok when one
// has no value: then the pattern matches nothing.
func (p pattern) expand(c Context) (_ pattern, ok bool) {
	out := p
	copied := false
	for i, piece := range p {
		if piece.kind != variable {
			continue
		}
		value, ok := c.single(piece.text)
		if !ok {
			if !piece.hasElse {
				return nil, false
			}
			value = piece.without
		}
		if !copied {
			out, copied = append(pattern(nil), p...), true
		}
		out[i].kind, out[i].text = literal, value
	}
	return out, true
}

// variables appends the context keys without which the pattern cannot expand.
func (p pattern) variables(keys []string) []string {
	for _, piece := range p {
		if piece.kind == variable && !piece.hasElse {
			keys = append(keys, piece.text)
		}
	}
	return keys
}

// match is whether the whole of s fits; there are no variables left in p. It
// backs up to the last * only, so it takes len(p) x len(s) steps at most.
func (p pattern) match(s string) bool {
	i, at := 0, 0
	star, mark := -1, 0 // the last *, and where what follows it was tried
	for i < len(p) || at < len(s) {
		if i < len(p) {
			switch q := p[i]; {
			case q.kind == anyRun:
				star, mark = i, at
				i++
				continue
			case q.kind == anyOne && at < len(s):
				at += runeLength(s[at:])
				i++
				continue
			case q.kind == literal && strings.HasPrefix(s[at:], q.text):
				at += len(q.text)
				i++
				continue
			}
		}
		if star < 0 || mark == len(s) {
			return false
		}
		mark += runeLength(s[mark:])
		i, at = star+1, mark
	}
	return true
}

func runeLength(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}

// An arnPattern is a pattern for each of the six fields of an ARN, or "*"
// alone for everything. A wildcard does not reach beyond its field.
type arnPattern struct {
	all    bool
	fields [arnFields]pattern
}

const arnFields = 6 // arn:partition:service:region:account:resource

func compileARN(s string, variables bool) (a arnPattern, err error) {
	if s == "*" {
		return arnPattern{all: true}, nil
	}
	fields := splitARN(s, variables)
	if len(fields) != arnFields || fields[0] != "arn" {
		return a, errors.New("neither * nor an ARN of six fields")
	}
	for i, field := range fields {
		if a.fields[i], err = compilePattern(field, variables); err != nil {
			return a, err
		}
	}
	return a, nil
}

// splitARN splits at the first five colons that are not inside a variable.
func splitARN(s string, variables bool) (fields []string) {
	start, inside := 0, false
	for i := range len(s) {
		switch {
		case variables && strings.HasPrefix(s[i:], "${"):
			inside = true
		case s[i] == '}':
			inside = false
		case s[i] == ':' && !inside && len(fields) < arnFields-1:
			fields = append(fields, s[start:i])
			start = i + 1
		}
	}
	return append(fields, s[start:])
}

// match is whether the ARN fits, with the variables of c. A request about no
// resource in particular has the ARN "*", which only the pattern "*" fits.
func (a arnPattern) match(arn string, c Context) bool {
	if a.all {
		return true
	}
	fields := splitARN(arn, false)
	if len(fields) != arnFields {
		return false
	}
	for i, p := range a.fields {
		p, ok := p.expand(c)
		if !ok || !p.match(fields[i]) {
			return false
		}
	}
	return true
}
