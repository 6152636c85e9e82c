package policy

import (
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
	without string // value of an absent variable, if hasElse
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
			if len(p) == 0 || p[len(p)-1].kind != anyRun {
				p = append(p, piece{kind: anyRun})
			}
			s = s[1:]
		case s[0] == '?':
			p, s = append(p, piece{kind: anyOne}), s[1:]
		case variables && strings.HasPrefix(s, "${"):
			end := variableEnd(s)
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

// variableEnd is where the brace closes that s opens with; one in quotes does not.
func variableEnd(s string) int {
	quoted := false
	for i := range len(s) {
		switch {
		case s[i] == '\'':
			quoted = !quoted
		case s[i] == '}' && !quoted:
			return i
		}
	}
	return -1
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
		if strings.ContainsAny(v.without, "*?$'") {
			return v, fmt.Errorf("the default of ${%s} must not have any of *?$'", s)
		}
	}
	return v, nil
}

// keys appends the context keys of the pattern's variables, or only those
// without which it has no value.
func (p pattern) keys(keys []string, required bool) []string {
	for _, piece := range p {
		if piece.kind == variable && !(required && piece.hasElse) {
			keys = append(keys, piece.text)
		}
	}
	return keys
}

// resolve is the text that a literal or a variable stands for. It is not ok
// when a variable has no value: then the pattern matches nothing.
func (q *piece) resolve(c Context) (text string, ok bool) {
	if q.kind != variable {
		return q.text, true
	}
	if text, ok = c.single(q.text); ok || !q.hasElse {
		return text, ok
	}
	return q.without, true
}

// match is whether the whole of s fits, with the variables of c. It backs up
// to the last * only, so it takes len(p) x len(s) steps at most.
func (p pattern) match(s string, c Context) bool {
	if len(p) == 1 { // most fields of most names
		switch p[0].kind {
		case anyRun:
			return true
		case literal:
			return p[0].text == s
		case anyOne, variable: // take longer
		}
	}
	i, at := 0, 0
	star, mark := -1, 0 // the last *, and where what follows it was tried
	for i < len(p) || at < len(s) {
		if i < len(p) {
			switch q := &p[i]; q.kind {
			case anyRun:
				star, mark = i, at
				i++
				continue
			case anyOne:
				if at < len(s) {
					at += runeLength(s[at:])
					i++
					continue
				}
			default:
				text, ok := q.resolve(c)
				if !ok {
					return false
				}
				if strings.HasPrefix(s[at:], text) {
					at += len(text)
					i++
					continue
				}
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
	if s[0] < utf8.RuneSelf {
		return 1
	}
	_, n := utf8.DecodeRuneInString(s)
	return n
}

// An action is a pattern for the name of an action, in lower case.
type action struct {
	text string
	wild bool
}

func compileAction(lower string) action {
	return action{text: lower, wild: strings.ContainsAny(lower, "*?")}
}

// match is whether the name fits, in whatever case it is. Names are ASCII.
func (a *action) match(s string) bool {
	p := a.text
	if !a.wild && len(p) != len(s) {
		return false
	}
	i, at, star, mark := 0, 0, -1, 0
	for at < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			if i == len(p)-1 {
				return true
			}
			star, mark = i, at
			i++
		case i < len(p) && (p[i] == '?' || p[i] == lower(s[at])):
			i, at = i+1, at+1
		case star < 0:
			return false
		default:
			mark++
			i, at = star+1, mark
		}
	}
	return strings.Trim(p[i:], "*") == ""
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
