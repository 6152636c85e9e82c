package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// validation writes Validate of the requests and of what they hold.
func (w *writer) validation() {
	f := w.file("validate_gen.go")
	f.uses("rehost/awsapi")
	requests := map[string]bool{}
	for _, op := range w.model.Operations {
		requests[op.Input.Shape] = true
	}
	for _, name := range w.shapeNames() {
		s := w.model.Shapes[name]
		switch {
		case !s.sent:
		case s.Type == "string" && w.hasRule(s):
			rules := w.file("rules_gen.go")
			rules.uses("rehost/awsapi")
			rules.p("var %s = %s", ruleName(s), textRule(s))
		case s.Type == "structure":
			if requests[name] {
				f.p("// Validate lists what the model does not allow, empty if all is well.")
				f.p("func (v *%s) Validate() []awsapi.FieldError {\n\tvar c awsapi.Checker\n\tv.check(&c, \"\")\n\treturn c.Errors()\n}\n", name)
			}
			w.check(f, s)
			w.presence(s, requests[name])
		}
	}
}

func (w *writer) hasRule(s *shape) bool {
	return s.Type == "string" && len(s.Enum) == 0 && (s.Min != nil && *s.Min > 0 || s.Max != nil || s.Pattern != "")
}

func ruleName(s *shape) string { return "rule" + s.name }

// textRule is the awsapi.Text literal of a string shape.
func textRule(s *shape) string {
	var b strings.Builder
	b.WriteString("awsapi.Text{")
	if s.Min != nil && *s.Min > 0 {
		fmt.Fprintf(&b, "Min: %d, ", int(*s.Min))
	}
	if s.Max != nil {
		fmt.Fprintf(&b, "Max: %d, ", int(*s.Max))
	}
	if s.Pattern != "" {
		re, not := translate(s.Pattern)
		fmt.Fprintf(&b, "Pattern: %s, Match: awsapi.Pattern(%s), ", quote(s.Pattern), quote(re))
		if not != "" {
			fmt.Fprintf(&b, "NotPrefix: %s, ", quote(not))
		}
	}
	return strings.TrimSuffix(b.String(), ", ") + "}"
}

func quote(s string) string {
	if strconv.CanBackquote(s) {
		return "`" + s + "`"
	}
	return strconv.Quote(s)
}

var (
	lookahead = regexp.MustCompile(`^\(\?!([^()\\.*+?\[\]|]*)\)(.*)$`)
	codePoint = regexp.MustCompile(`\\u([0-9A-F]{4,5}|10[0-9A-F]{4})`)
	repeat    = regexp.MustCompile(`^(.*)(\[[^\]]*\])\{(\d+),(\d+)\}(.*)$`)
)

// rewritten has those patterns that say the same without looking ahead; the
// length is bounded by the shape.
var rewritten = map[string]string{
	`^[a-z0-9]([a-z0-9]|-(?!-)){1,61}[a-z0-9]$`: `[a-z0-9]+(-[a-z0-9]+)*`,
}

// translate turns a pattern of the model, which must match the whole value and
// is written for Java, into one for package regexp: no look-ahead (a leading
// one becomes a prefix to refuse), no repetition above 1000.
func translate(pattern string) (re, notPrefix string) {
	if same, ok := rewritten[pattern]; ok {
		pattern = same
	}
	pattern = codePoint.ReplaceAllString(pattern, `\x{$1}`)
	if m := lookahead.FindStringSubmatch(pattern); m != nil {
		notPrefix, pattern = m[1], m[2]
	}
	if m := repeat.FindStringSubmatch(pattern); m != nil {
		low, _ := strconv.Atoi(m[3])
		high, _ := strconv.Atoi(m[4])
		if high > 1000 {
			pattern = fmt.Sprintf("%s%s{%d,1000}%s{0,%d}%s", m[1], m[2], low, m[2], high-1000, m[5])
		}
	}
	re = "^(?:" + pattern + ")$"
	regexp.MustCompile(re)
	return re, notPrefix
}

// refusesEmpty is whether "" can never be a value of the string shape, so that
// an empty required member is the same as an absent one.
func refusesEmpty(s *shape) bool {
	if len(s.Enum) > 0 || s.Min != nil && *s.Min > 0 {
		return true
	}
	if s.Pattern == "" {
		return false
	}
	re, _ := translate(s.Pattern)
	return !regexp.MustCompile(re).MatchString("")
}

// check writes the check method of one structure.
func (w *writer) check(f *file, s *shape) {
	f.p("func (v *%s) check(c *awsapi.Checker, at string) {", s.name)
	for _, member := range s.members() {
		w.checkMember(f, s, member)
	}
	if s.Union {
		f.p("\tset := 0\n")
		for _, member := range s.members() {
			f.p("\tif v.%s != nil {\n\t\tset++\n\t}", exported(member))
		}
		f.p("\tc.One(at, set)")
	}
	f.p("}\n")
}

func (w *writer) checkMember(f *file, in *shape, member string) {
	r := in.Members[member]
	s := w.model.Shapes[r.Shape]
	field, at, required := "v."+exported(member), fmt.Sprintf("at+%q", member), in.requires(member)
	typ, _ := w.fieldOf(in, member)
	switch {
	case typ[0] == '*' || s.Type == "list" || s.Type == "map" || s.Type == "blob":
		if required {
			f.p("\tif %s == nil {\n\t\tc.Missing(%s)\n\t}", field, at)
		}
		var inner file
		w.checkValue(&inner, s, field, at, typ[0] == '*' && s.scalar(), 1)
		switch {
		case inner.body.Len() == 0:
		case s.Type == "structure" || typ[0] == '*':
			f.p("\tif %s != nil {\n%s\t}", field, inner.body.String())
		default:
			f.body.Write(inner.body.Bytes())
		}
	case s.Type == "string" && (len(s.Enum) > 0 || required && refusesEmpty(s)):
		if required {
			f.p("\tif %s == \"\" {\n\t\tc.Missing(%s)\n\t} else {", field, at)
		} else {
			f.p("\tif %s != \"\" {", field)
		}
		w.checkValue(f, s, field, at, false, 1)
		f.p("\t}")
	default:
		w.checkValue(f, s, field, at, false, 1)
	}
}

// checkValue writes the checks of a present value: expr is its expression, at
// the expression of its name.
func (w *writer) checkValue(f *file, s *shape, expr, at string, pointer bool, depth int) {
	value := expr
	if pointer {
		value = "*" + expr
	}
	switch s.Type {
	case "string":
		switch {
		case len(s.Enum) > 0:
			f.p("awsapi.CheckEnum(c, %s, %s)", at, value)
		case w.hasRule(s):
			if s.Sensitive {
				value = "string(" + value + ")"
			}
			f.p("c.Text(%s, %s, &%s)", at, value, ruleName(s))
		}
	case "integer", "long", "float", "double":
		if s.Min != nil || s.Max != nil {
			f.p("c.Range(%s, float64(%s), %s, %s)", at, value, bound(s.Min, "-"), bound(s.Max, ""))
		}
	case "structure":
		f.p("%s.check(c, %s+\".\")", expr, at)
	case "list":
		w.checkCount(f, s, expr, at)
		element := w.model.Shapes[s.Member.Shape]
		i := "i" + strings.Repeat("i", depth-1)
		w.checkEach(f, element, fmt.Sprintf("for %s := range %s {", i, expr), fmt.Sprintf("%s[%s]", expr, i), fmt.Sprintf("awsapi.Index(%s, %s)", at, i), depth)
	case "map":
		w.checkCount(f, s, expr, at)
		var keys, values file
		w.checkValue(&keys, w.model.Shapes[s.Key.Shape], "key", at+`+".key"`, false, depth+1)
		w.checkValue(&values, w.model.Shapes[s.Value.Shape], "value", at+`+".value"`, false, depth+1)
		switch {
		case keys.body.Len() > 0 && values.body.Len() > 0:
			f.p("for key, value := range %s {\n%s%s}", expr, keys.body.String(), values.body.String())
		case keys.body.Len() > 0:
			f.p("for key := range %s {\n%s}", expr, keys.body.String())
		case values.body.Len() > 0:
			f.p("for _, value := range %s {\n%s}", expr, values.body.String())
		}
	}
}

func (w *writer) checkCount(f *file, s *shape, expr, at string) {
	if s.Min != nil && *s.Min > 0 || s.Max != nil {
		f.p("c.Count(%s, len(%s), %s == nil, %s, %s)", at, expr, expr, bound(s.Min, "0"), bound(s.Max, ""))
	}
}

func (w *writer) checkEach(f *file, element *shape, loop, expr, at string, depth int) {
	var inner file
	w.checkValue(&inner, element, expr, at, false, depth+1)
	if inner.body.Len() > 0 {
		f.p("%s\n%s}", loop, inner.body.String())
	}
}

// bound is the expression of a limit; none is an infinity of the given sign,
// or 0 where it cannot be below.
func bound(limit *float64, none string) string {
	switch {
	case limit != nil:
		return strconv.FormatFloat(*limit, 'f', -1, 64)
	case none == "0":
		return "0"
	}
	return "awsapi." + map[string]string{"": "NoMax", "-": "NoMin"}[none]
}

// presence writes the table of required members whose absence the decoded
// structure cannot show: numbers, booleans and strings that may be empty.
func (w *writer) presence(s *shape, request bool) {
	if !w.needsPresence(s) {
		return
	}
	f := w.file("presence_gen.go")
	f.uses("rehost/awsapi")
	f.p("var presence%s = awsapi.Presence{", s.name)
	var required []string
	for _, member := range s.members() {
		if s.requires(member) && w.blind(s.Members[member]) {
			required = append(required, member)
		}
	}
	if required != nil {
		f.p("\tRequired: %#v,", required)
	}
	var inside file
	for _, member := range s.members() {
		if held := w.held(s.Members[member].Shape); held != nil && w.needsPresence(held) {
			inside.p("\t\t%q: &presence%s,", member, held.name)
		}
	}
	if inside.body.Len() > 0 {
		f.p("\tInside: map[string]*awsapi.Presence{\n%s},", inside.body.String())
	}
	f.p("}\n")
	if request {
		f.p("// Presence implements [awsapi.PresenceChecker].\nfunc (*%s) Presence() *awsapi.Presence { return &presence%s }\n", s.name, s.name)
	}
}

// blind is whether a required member's zero value is also a legal value.
func (w *writer) blind(r ref) bool {
	s := w.model.Shapes[r.Shape]
	switch {
	case r.Location != "":
		return false
	case s.Type == "string":
		return !refusesEmpty(s)
	}
	return s.scalar()
}

// held is the structure that a shape is, or that the elements of a list are.
func (w *writer) held(name string) *shape {
	switch s := w.model.Shapes[name]; s.Type {
	case "structure":
		return s
	case "list":
		return w.held(s.Member.Shape)
	case "map":
		if held := w.held(s.Value.Shape); held != nil && w.needsPresence(held) {
			panic(name + ": awsapi.Presence does not look into maps yet")
		}
	}
	return nil
}

func (w *writer) needsPresence(s *shape) bool {
	for member, r := range s.Members {
		if s.requires(member) && w.blind(r) {
			return true
		}
		if held := w.held(r.Shape); held != nil && w.needsPresence(held) {
			return true
		}
	}
	return false
}
