package policy

import (
	"errors"
	"strings"
)

const (
	arnFields     = 6 // arn:partition:service:region:account:resource
	accountDigits = 12
)

// An arn is a name cut into its fields once, so that many patterns can be
// tried on it.
type arn struct {
	text   string
	fields [arnFields]string
	valid  bool // it has all its fields
}

func parseARN(s string) (a arn) {
	a.text = s
	rest := s
	for i := range arnFields - 1 {
		at := strings.IndexByte(rest, ':')
		if at < 0 {
			return a
		}
		a.fields[i], rest = rest[:at], rest[at+1:]
	}
	a.fields[arnFields-1] = rest
	a.valid = a.fields[0] == "arn"
	return a
}

// account is the account that the ARN names, "" for none.
func (a *arn) account() string { return a.fields[4] }

// An arnPattern is a pattern for each of the fields of an ARN, or "*" alone
// for everything. A wildcard does not reach beyond its field, except for a *
// that ends a pattern of fewer fields.
type arnPattern struct {
	all    bool
	fields []pattern
}

// compileARN reads the pattern of a condition: all six fields.
func compileARN(s string, variables bool) (a arnPattern, err error) {
	if s == "*" {
		return arnPattern{all: true}, nil
	}
	fields := splitARN(s, variables)
	if len(fields) != arnFields || fields[0] != "arn" {
		return a, errors.New("neither * nor an ARN of six fields")
	}
	return compileFields(fields, variables)
}

func compileFields(fields []string, variables bool) (a arnPattern, err error) {
	for _, field := range fields {
		p, err := compilePattern(field, variables)
		if err != nil {
			return a, err
		}
		a.fields = append(a.fields, p)
	}
	return a, nil
}

// splitARN splits at the first five colons that are not inside a variable.
func splitARN(s string, variables bool) (fields []string) {
	start := 0
	for i := 0; i < len(s); i++ {
		switch {
		case variables && strings.HasPrefix(s[i:], "${"):
			if end := variableEnd(s[i:]); end > 0 {
				i += end
			}
		case s[i] == ':' && len(fields) < arnFields-1:
			fields = append(fields, s[start:i])
			start = i + 1
		}
	}
	return append(fields, s[start:])
}

func (a *arnPattern) keys(keys []string, required bool) []string {
	for _, f := range a.fields {
		keys = f.keys(keys, required)
	}
	return keys
}

// match is whether the ARN fits, with the variables of c.
func (a *arnPattern) match(name *arn, c Context) bool {
	if a.all {
		return true
	}
	if !name.valid {
		return false
	}
	for i := len(a.fields) - 1; i >= 0; i-- { // what differs most is at the end
		if !a.fields[i].match(name.fields[i], c) {
			return false
		}
	}
	return true
}

// A resourcePattern is an element of Resource or NotResource. AWS lets a * at
// the end of a field reach beyond it, and does not say how far. We never allow
// what AWS may not: what gives rights matches by fields, what takes them away
// (Resource of a Deny, NotResource of an Allow) is broad, and its wildcards
// match across all of the name.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html
type resourcePattern struct {
	arnPattern
	broad pattern // of the whole text; nil: match by fields
}

func compileResource(s string, variables, broad bool) (r resourcePattern, err error) {
	if s == "*" {
		return resourcePattern{arnPattern: arnPattern{all: true}}, nil
	}
	fields := splitARN(s, variables)
	switch {
	case fields[0] != "arn" || len(fields) == 1:
		return r, errors.New("neither * nor an ARN")
	case len(fields) < arnFields && !strings.HasSuffix(s, "*"):
		return r, errors.New("an ARN has six fields: arn:partition:service:region:account:resource")
	}
	if r.arnPattern, err = compileFields(fields, variables); err != nil {
		return r, err
	}
	for i, f := range r.fields {
		if i < arnFields-1 && len(f.keys(nil, false)) > 0 {
			return r, errors.New("a variable may only stand behind the fifth colon")
		}
	}
	if broad {
		r.broad, err = compilePattern(s, variables)
	}
	return r, err
}

// match is whether the resource fits. A request about no resource in
// particular has the name "*", which only the pattern "*" fits.
func (r *resourcePattern) match(name *arn, c Context) bool {
	if r.broad != nil {
		return r.broad.match(name.text, c)
	}
	return r.arnPattern.match(name, c)
}
