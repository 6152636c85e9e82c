package awsapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// A FieldError is one thing wrong with one member of a request. Its message
// states the rule and never repeats the value, which may be a secret.
type FieldError struct {
	Name    string `json:"name"`    // path of the member: "filters.sourceServerIDs.0"
	Message string `json:"message"` // "Member must …"
}

// maxFieldErrors bounds what a hostile request can make of an answer.
const maxFieldErrors = 50

// NoMin and NoMax stand for a limit that a rule does not have.
var (
	NoMin = math.Inf(-1)
	NoMax = math.Inf(+1)
)

// A Checker collects field errors. The zero value is ready for use.
type Checker struct{ errors []FieldError }

// Errors returns what was found, in the order of the checks; nil is good news.
func (c *Checker) Errors() []FieldError { return c.errors }

func (c *Checker) add(name, message string, args ...any) {
	if len(c.errors) < maxFieldErrors {
		c.errors = append(c.errors, FieldError{Name: name, Message: fmt.Sprintf(message, args...)})
	}
}

// Missing reports a required member that is absent.
func (c *Checker) Missing(name string) { c.add(name, missing) }

const missing = "Member must not be null"

// One reports a union of which not exactly one member is set.
func (c *Checker) One(at string, set int) {
	if set != 1 {
		c.add(strings.TrimSuffix(at, "."), "Exactly one member must be set")
	}
}

// Count checks the length of a list or map; an absent one passes.
func (c *Checker) Count(name string, n int, absent bool, low, high float64) {
	switch {
	case absent:
	case float64(n) < low:
		c.add(name, "Member must have length greater than or equal to %.0f", low)
	case float64(n) > high:
		c.add(name, "Member must have length less than or equal to %.0f", high)
	}
}

// Range checks a number.
func (c *Checker) Range(name string, v, low, high float64) {
	switch {
	case v < low:
		c.add(name, "Member must have value greater than or equal to %v", low)
	case v > high:
		c.add(name, "Member must have value less than or equal to %v", high)
	}
}

// Text checks a string against its rule.
func (c *Checker) Text(name, value string, rule *Text) {
	n := utf8.RuneCountInString(value)
	switch {
	case n < rule.Min:
		c.add(name, "Member must have length greater than or equal to %d", rule.Min)
	case rule.Max > 0 && n > rule.Max:
		c.add(name, "Member must have length less than or equal to %d", rule.Max)
	case rule.Match != nil && !rule.Match().MatchString(value),
		rule.NotPrefix != "" && strings.HasPrefix(value, rule.NotPrefix):
		c.add(name, "Member must satisfy regular expression pattern: %s", rule.Pattern)
	}
}

// A Text is the rule for a string.
type Text struct {
	Min, Max  int    // in code points; a Max of 0 is none
	Pattern   string // as the model has it, for messages
	Match     func() *regexp.Regexp
	NotPrefix string // refused at the start
}

// Pattern compiles an expression when it is first needed: a program that
// validates three shapes need not compile sixty.
func Pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// CheckEnum checks that v is one of the values of its type.
func CheckEnum[E interface {
	~string
	Values() []E
}](c *Checker, name string, v E) {
	if !slices.Contains(v.Values(), v) {
		c.add(name, "Member must satisfy enum value set: %v", v.Values())
	}
}

// Index is the name of an element of a list.
func Index(name string, i int) string { return name + "." + strconv.Itoa(i) }

// A Presence says which required members a structure must spell out because
// their zero value is a legal value too, so that the decoded structure cannot
// show their absence.
type Presence struct {
	Required []string
	Inside   map[string]*Presence // by member; a list stands for its elements
}

// A PresenceChecker is an input with such members.
type PresenceChecker interface{ Presence() *Presence }

// check adds what is missing in body, a valid JSON text.
func (p *Presence) check(c *Checker, body []byte) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var tree any
	if decoder.Decode(&tree) == nil {
		p.walk(c, "", tree)
	}
}

func (p *Presence) walk(c *Checker, at string, tree any) {
	switch v := tree.(type) {
	case []any:
		for i, element := range v {
			p.walk(c, Index(at, i), element)
		}
	case map[string]any:
		prefix := at
		if at != "" {
			prefix += "."
		}
		for _, name := range p.Required {
			if v[name] == nil {
				c.Missing(prefix + name)
			}
		}
		for name, inside := range p.Inside {
			if v[name] != nil {
				inside.walk(c, prefix+name, v[name])
			}
		}
	}
}
