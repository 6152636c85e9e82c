package awsapi

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// succeedQuery writes
//
//	<NameResponse><NameResult>…</NameResult><ResponseMetadata>…
//
// where the result is left out if the model has none.
func (c *call) succeedQuery(w http.ResponseWriter, out any) error {
	x := new(xmlWriter)
	x.open(c.route.Name+"Response", c.route.service.namespace())
	if v := reflect.Indirect(reflect.ValueOf(out)); v.NumField() > 0 {
		x.element(c.route.Name+"Result", v)
	}
	x.open("ResponseMetadata", "")
	x.text("RequestId", c.caller.RequestID)
	x.close("ResponseMetadata")
	x.close(c.route.Name + "Response")
	if x.err != nil {
		return fmt.Errorf("encode answer: %w", x.err)
	}
	x.send(w, http.StatusOK)
	return nil
}

// failQuery writes an error and returns its status.
func (c *call) failQuery(w http.ResponseWriter, e Exception) int {
	code, status := e.ErrorName(), e.HTTPStatus()
	if q, ok := e.(interface{ QueryCode() (string, int) }); ok {
		code, status = q.QueryCode()
	}
	blame := "Sender"
	if status >= 500 {
		blame = "Receiver"
	}
	namespace := ""
	if c.route != nil {
		namespace = c.route.service.namespace()
	}
	x := new(xmlWriter)
	x.open("ErrorResponse", namespace)
	x.open("Error", "")
	x.text("Type", blame)
	x.text("Code", code)
	x.text("Message", strings.TrimPrefix(e.Error(), e.ErrorName()+": "))
	x.close("Error")
	x.text("RequestId", c.caller.RequestID)
	x.close("ErrorResponse")
	x.send(w, status)
	return status
}

// namespace is the XML namespace of a query service's answers.
func (s *Service) namespace() string {
	return "https://" + s.SigningName + ".amazonaws.com/doc/" + s.Version + "/"
}

// An xmlWriter writes the answers of the query protocols.
type xmlWriter struct {
	bytes.Buffer
	ec2 bool  // names are those of [EC2Query]
	err error // the first
}

func (x *xmlWriter) send(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = w.Write(x.Bytes()) // whoever went away gets no answer
}

func (x *xmlWriter) open(name, namespace string) {
	x.WriteString("<" + name)
	if namespace != "" {
		x.WriteString(` xmlns="` + namespace + `"`)
	}
	x.WriteByte('>')
}

func (x *xmlWriter) close(name string) { x.WriteString("</" + name + ">") }

func (x *xmlWriter) text(name, value string) {
	x.open(name, "")
	_ = xml.EscapeText(x, []byte(value)) // a buffer takes everything
	x.close(name)
}

// element writes a value under its name.
func (x *xmlWriter) element(name string, v reflect.Value) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if text, ok := x.scalar(v); ok {
		x.text(name, text)
		return
	}
	x.open(name, "")
	switch v.Kind() {
	case reflect.Struct:
		x.members(v)
	case reflect.Slice:
		name := "member"
		if x.ec2 {
			name = "item"
		}
		for i := range v.Len() {
			x.element(name, v.Index(i))
		}
	case reflect.Map:
		x.entries(v)
	default:
		x.err = fmt.Errorf("%s: no way to write a %s", name, v.Type())
	}
	x.close(name)
}

// members writes the fields of a structure, leaving out what JSON would.
func (x *xmlWriter) members(v reflect.Value) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name, option, _ := strings.Cut(tag.Get("json"), ",")
		if x.ec2 {
			name = tag.Get("ec2")
		}
		if field := v.Field(i); option == "" || !field.IsZero() {
			x.element(name, field)
		}
	}
}

func (x *xmlWriter) entries(v reflect.Value) {
	keys := map[string]reflect.Value{}
	for _, key := range v.MapKeys() {
		keys[key.String()] = v.MapIndex(key)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		x.open("entry", "")
		x.text("key", key)
		x.element("value", keys[key])
		x.close("entry")
	}
}

// scalar is the text of a value that has no parts.
func (x *xmlWriter) scalar(v reflect.Value) (text string, ok bool) {
	switch {
	case v.Type() == reflect.TypeFor[Timestamp]():
		return v.Interface().(Timestamp).UTC().Format(time.RFC3339), true
	case v.Kind() == reflect.String:
		return v.String(), true
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool()), true
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10), true
	case v.CanFloat():
		return strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()), true
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return base64.StdEncoding.EncodeToString(v.Bytes()), true
	}
	return "", false
}
