package awsapi

import (
	"bytes"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of a form.
const (
	maxParams   = 10_000   // parameters
	maxNesting  = 12       // parts of a parameter's name
	maxUnsigned = 64 << 10 // bytes of a body that nobody has signed
)

// A param is a parameter of a form together with those whose names go on from
// its own: Tags.member.1.Key is three levels below Tags.
type param struct {
	value  string
	given  bool
	inside map[string]*param
}

// parseForm reads the parameters of a call, which are those of the query and
// of the body; none may be given twice.
func parseForm(query url.Values, body []byte) (*param, error) {
	if bytes.Count(body, []byte{'&'}) >= maxParams {
		return nil, unparsable("The request has more than %d parameters", maxParams)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, unparsable("The body is not a form")
	}
	root := new(param)
	for _, values := range []url.Values{query, form} {
		for name, given := range values {
			if strings.HasPrefix(strings.ToLower(name), "x-amz-") {
				continue // of a presigned URL
			}
			if p := root.at(name); p == nil || p.given || len(given) != 1 {
				return nil, unparsable("The parameter %.200s is given twice, or its name has too many parts", name)
			} else {
				p.value, p.given = given[0], true
			}
		}
	}
	return root, nil
}

// at makes the parameter of a name, nil if the name has too many parts.
func (p *param) at(name string) *param {
	if strings.Count(name, ".") >= maxNesting {
		return nil
	}
	for part := range strings.SplitSeq(name, ".") {
		if p.inside == nil {
			p.inside = map[string]*param{}
		}
		if p.inside[part] == nil {
			p.inside[part] = new(param)
		}
		p = p.inside[part]
	}
	return p
}

// text is the value of a parameter, "" for one that is not there.
func (p *param) text(name string) string {
	if inside := p.inside[name]; inside != nil {
		return inside.value
	}
	return ""
}

// findQuery reads the form of a call and finds its operation among those of
// the routes.
func (c *call) findQuery(routes []*route) (*route, error) {
	form, err := parseForm(c.params.Query, c.body)
	if err != nil {
		return nil, err
	}
	c.form = form
	path, _, _ := strings.Cut(c.request.RequestURI, "?")
	action, version := form.text("Action"), form.text("Version")
	if path == "/" && (c.request.Method == http.MethodPost || c.request.Method == http.MethodGet) {
		for _, r := range routes {
			if r.Name == action && r.service.Version == version && r.service.Protocol.form() {
				return r, nil
			}
		}
	}
	if version == "" {
		version = "NO_VERSION_SPECIFIED"
	}
	return nil, Errorf(UnknownOperation, "Could not find operation %.128s for version %.64s", action, version)
}

// withoutSignature finds the operation of a call that is not signed. Only for
// those few that prove who calls in another way is there one; to all others
// the answer is missing.
func (c *call) withoutSignature(missing error) error {
	limit := min(c.server.MaxBody, maxUnsigned)
	body, err := c.readBodyUpTo(limit)
	if err != nil {
		return err
	}
	c.body = body
	_, rawQuery, _ := strings.Cut(c.request.RequestURI, "?")
	if c.params.Query, err = url.ParseQuery(rawQuery); err != nil {
		return missing
	}
	for _, routes := range c.server.routes {
		if r, err := c.findQuery(routes); err == nil && r.Unsigned {
			c.found(r, nil)
			return nil
		}
	}
	return missing
}

// decodeForm fills in from the form, by the names that the fields have in JSON.
// It returns what is no value of its type, and leaves to check what is missing.
func (c *call) decodeForm(in any, check *Checker) []FieldError {
	r := formReader{new(Checker), c.protocol == EC2Query}
	tree := r.read(reflect.ValueOf(in).Elem(), c.form, "")
	if p, ok := in.(PresenceChecker); ok {
		p.Presence().walk(check, "", tree)
	}
	return r.Errors()
}

// A formReader fills in values from parameters. What it returns of each is the
// tree that [Presence] looks at.
type formReader struct {
	*Checker
	ec2 bool // names and lists are those of [EC2Query]
}

func (f formReader) read(v reflect.Value, p *param, at string) (tree any) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return f.read(v.Elem(), p, at)
	case reflect.Struct:
		if t, ok := v.Addr().Interface().(*Timestamp); ok {
			f.time(t, p.value, at)
			return p.value
		}
		return f.structure(v, p, at)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			f.blob(v, p.value, at)
			return p.value
		}
		return f.list(v, p, at)
	case reflect.Map:
		return f.mapping(v, p, at)
	}
	f.scalar(v, p.value, at)
	return p.value
}

func (f formReader) structure(v reflect.Value, p *param, at string) any {
	tree := map[string]any{}
	if at != "" {
		at += "."
	}
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name, _, _ := strings.Cut(tag.Get("json"), ",")
		parameter := name
		if f.ec2 {
			parameter = capital(tag.Get("ec2"))
		}
		if inside := p.inside[parameter]; inside != nil {
			tree[name] = f.read(v.Field(i), inside, at+name)
		}
	}
	return tree
}

// capital is a name with a capital first letter, which EC2's parameters have
// and the members of its answers have not.
func capital(name string) string { return strings.ToUpper(name[:1]) + name[1:] }

// list reads X.member.1, X.member.2 and so on, in the order of the numbers. A
// list without elements is an empty X. EC2's are X.1, X.2, never empty.
func (f formReader) list(v reflect.Value, p *param, at string) any {
	numbers := p.inside["member"]
	if f.ec2 {
		numbers = p
		f.must(!p.given, at, "numbered from 1, each element once")
	}
	elements := f.numbered(numbers, at)
	v.Set(reflect.MakeSlice(v.Type(), len(elements), len(elements)))
	tree := make([]any, len(elements))
	for i, element := range elements {
		tree[i] = f.read(v.Index(i), element, Index(at, i))
	}
	return tree
}

// mapping reads X.entry.1.key, X.entry.1.value and so on.
func (f formReader) mapping(v reflect.Value, p *param, at string) any {
	v.Set(reflect.MakeMap(v.Type()))
	tree := map[string]any{}
	for _, entry := range f.numbered(p.inside["entry"], at) {
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if entry.inside["key"] == nil || entry.inside["value"] == nil {
			f.add(at, "Member must have a key and a value in every entry")
			continue
		}
		f.read(key, entry.inside["key"], at+".key")
		tree[key.String()] = f.read(value, entry.inside["value"], at+".value")
		v.SetMapIndex(key, value)
	}
	return tree
}

// numbered sorts the elements of a list by their numbers.
func (f formReader) numbered(p *param, at string) []*param {
	if p == nil {
		return nil
	}
	byNumber := map[int]*param{}
	for text, element := range p.inside {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || byNumber[n] != nil {
			f.add(at, "Member must be numbered from 1, each element once")
			return nil
		}
		byNumber[n] = element
	}
	out := make([]*param, 0, len(byNumber))
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		out = append(out, byNumber[n])
	}
	return out
}

func (f formReader) scalar(v reflect.Value, text, at string) {
	switch {
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		f.must(text == "true" || text == "false", at, "true or false")
		v.SetBool(text == "true")
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		f.must(err == nil, at, "an integer")
		v.SetInt(n)
	case v.CanFloat():
		n, err := strconv.ParseFloat(text, v.Type().Bits())
		f.must(err == nil, at, "a number")
		v.SetFloat(n)
	default:
		panic("awsapi: no parameter can be a " + v.Type().String())
	}
}

func (f formReader) blob(v reflect.Value, text, at string) {
	b, err := base64.StdEncoding.DecodeString(text)
	f.must(err == nil, at, "base64")
	v.SetBytes(b)
}

func (f formReader) time(t *Timestamp, text, at string) {
	parsed, err := time.Parse(time.RFC3339, text)
	f.must(err == nil, at, "a date and time in the form "+time.RFC3339)
	t.Time = parsed.UTC()
}

func (f formReader) must(ok bool, at, what string) {
	if !ok {
		f.add(at, "Member must be %s", what)
	}
}
