package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// shapes writes the types: requests, responses, what they hold, and enums.
func (w *writer) shapes() {
	requests, responses := w.model.kinds()
	for _, name := range w.shapeNames() {
		s := w.model.Shapes[name]
		switch {
		case len(s.Enum) > 0:
			w.enum(s)
		case s.Sensitive:
			w.sensitive(s)
		case s.Type != "structure" || s.Exception:
		case requests[name] != "":
			w.structure("requests_gen.go", s, fmt.Sprintf("is the input of [%s].", requests[name]))
		case responses[name] != "":
			w.structure("responses_gen.go", s, fmt.Sprintf("is the output of [%s].", responses[name]))
		default:
			w.structure("shapes_gen.go", s, "is a structure of the model.")
		}
	}
}

func (w *writer) enum(s *shape) {
	f := w.file("enums_gen.go")
	f.p("// %s is one of the values below; \"\" means absent.\ntype %s string\n\nconst (", s.name, s.name)
	for _, value := range s.Enum {
		f.p("\t%s %s = %q", constant(s.name, value), s.name, value)
	}
	f.p(")\n\n// Values lists what the model allows.\nfunc (%s) Values() []%s {\n\treturn []%s{", s.name, s.name, s.name)
	for _, value := range s.Enum {
		f.p("\t\t%s,", constant(s.name, value))
	}
	f.p("\t}\n}\n")
}

// sensitive writes a type that no log and no %v shows.
func (w *writer) sensitive(s *shape) {
	f := w.file("sensitive_gen.go")
	f.uses("fmt")
	f.uses("log/slog")
	f.uses("rehost/awsapi")
	f.p("// %s is sensitive: it prints as [awsapi.Redacted] with every verb of fmt and in every log.", s.name)
	f.p("type %s %s\n", s.name, w.underlying(s))
	f.p("func (%s) String() string { return awsapi.Redacted }\n", s.name)
	f.p("// Format implements [fmt.Formatter].\nfunc (%s) Format(f fmt.State, _ rune) { fmt.Fprint(f, awsapi.Redacted) }\n", s.name)
	f.p("// LogValue implements [slog.LogValuer].\nfunc (%s) LogValue() slog.Value { return slog.StringValue(awsapi.Redacted) }\n", s.name)
}

func (w *writer) structure(file string, s *shape, doc string) {
	f := w.file(file)
	f.p("// %s %s", s.name, doc)
	if s.Union {
		f.p("// Exactly one member is set.")
	}
	f.p("type %s struct {", s.name)
	w.fields(f, s)
	f.p("}\n")
	if s.sent {
		w.bindings(f, s)
	}
}

func (w *writer) fields(f *file, s *shape) {
	for _, member := range s.members() {
		typ, tag := w.fieldOf(s, member)
		if strings.Contains(typ, "awsapi.") {
			f.uses("rehost/awsapi")
		}
		note := ""
		if s.requires(member) {
			note = " // required"
		}
		more := ""
		if w.model.Metadata.ec2() {
			more = fmt.Sprintf(" ec2:%q", cmp.Or(s.Members[member].LocationName, member))
		}
		f.p("\t%s %s `json:%q%s`%s", exported(member), typ, tag, more, note)
	}
}

// bindings writes how the members outside the body travel: labels of the path
// and parameters of the query.
func (w *writer) bindings(f *file, s *shape) {
	bound := slices.DeleteFunc(s.members(), func(member string) bool { return s.Members[member].Location == "" })
	if len(bound) == 0 {
		return
	}
	f.uses("rehost/awsapi")
	f.p("// ReadParams implements [awsapi.ParamReader].\nfunc (v *%s) ReadParams(p awsapi.Params) error {", s.name)
	for _, member := range bound {
		r := s.Members[member]
		w.readParam(f, s, member, r)
	}
	f.p("\treturn nil\n}\n")
	f.p("// WriteParams implements [awsapi.ParamWriter].\nfunc (v *%s) WriteParams(p awsapi.Params) {", s.name)
	for _, member := range bound {
		r := s.Members[member]
		w.writeParam(f, s, member, r)
	}
	f.p("}\n")
}

func (w *writer) readParam(f *file, s *shape, member string, r ref) {
	target, typ := w.model.Shapes[r.Shape], w.typeOf(r.Shape)
	field := "v." + exported(member)
	switch {
	case r.Location == "uri":
		f.p("\t%s = p.Labels[%q]", field, r.LocationName)
	case target.Type == "list":
		f.p("\tif values := p.Query[%q]; values != nil {\n\t\t%s = values\n\t}", r.LocationName, field)
	case target.Type == "string":
		f.p("\tif p.Query.Has(%q) {\n\t\tvalue := p.Query.Get(%q)\n\t\t%s = &value\n\t}", r.LocationName, r.LocationName, field)
	case target.Type == "integer", target.Type == "long":
		f.p("\tif p.Query.Has(%q) {\n\t\tn, err := p.Integer(%q)\n\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n\t\tvalue := %s(n)\n\t\t%s = &value\n\t}", r.LocationName, r.LocationName, typ, field)
	default:
		panic(fmt.Sprintf("%s.%s: no way to read a %s from %s", s.name, member, target.Type, r.Location))
	}
}

func (w *writer) writeParam(f *file, s *shape, member string, r ref) {
	target := w.model.Shapes[r.Shape]
	field := "v." + exported(member)
	switch {
	case r.Location == "uri":
		f.p("\tp.Labels[%q] = %s", r.LocationName, field)
	case target.Type == "list":
		f.p("\tp.Query[%q] = %s", r.LocationName, field)
	case target.Type == "string":
		f.p("\tif %s != nil {\n\t\tp.Query.Set(%q, *%s)\n\t}", field, r.LocationName, field)
	default:
		f.p("\tif %s != nil {\n\t\tp.SetInteger(%q, int64(*%s))\n\t}", field, r.LocationName, field)
	}
}

// exceptions writes the error shapes.
func (w *writer) exceptions() {
	f := w.file("errors_gen.go")
	f.uses("net/http")
	for _, name := range slices.Sorted(maps.Keys(w.model.Shapes)) {
		s := w.model.Shapes[name]
		if !s.Exception {
			continue
		}
		f.p("// %s is an error of the service, answered with HTTP status %d.\ntype %s struct {", name, s.Error.HTTPStatusCode, name)
		w.fields(f, s)
		f.p("}\n")
		f.p("func (e *%s) Error() string { return %q + e.Message }\n", name, name+": ")
		f.p("// ErrorName implements [awsapi.Exception].\nfunc (*%s) ErrorName() string { return %q }\n", name, name)
		f.p("// HTTPStatus implements [awsapi.Exception].\nfunc (*%s) HTTPStatus() int { return %d }\n", name, s.Error.HTTPStatusCode)
		w.headers(f, s)
		f.p("var _ awsapi.Exception = (*%s)(nil)\n", name)
		f.uses("rehost/awsapi")
	}
}

// headers writes how an error's members outside the body travel.
func (w *writer) headers(f *file, s *shape) {
	f.p("// WriteHeader implements [awsapi.Exception].\nfunc (e *%s) WriteHeader(h http.Header) {", s.name)
	for _, member := range s.members() {
		r := s.Members[member]
		switch {
		case r.Location == "":
		case w.model.Shapes[r.Shape].Type == "string":
			f.p("\tif e.%s != \"\" {\n\t\th.Set(%q, e.%s)\n\t}", exported(member), r.LocationName, exported(member))
		default:
			f.uses("strconv")
			f.p("\tif e.%s != nil {\n\t\th.Set(%q, strconv.FormatInt(int64(*e.%s), 10))\n\t}", exported(member), r.LocationName, exported(member))
		}
	}
	f.p("}\n")
}

// faults writes the errors of a query service, which have nothing but a message.
func (w *writer) faults() {
	if !slices.ContainsFunc(slices.Collect(maps.Values(w.model.Shapes)), func(s *shape) bool { return s.Exception }) {
		return // the model of ec2 has none
	}
	f := w.file("errors_gen.go")
	f.uses("rehost/awsapi")
	f.p("// The errors of the service.\nvar (")
	for _, name := range w.shapeNames() {
		if s := w.model.Shapes[name]; s.Exception {
			code, status := s.fault()
			f.p("\t%s = &awsapi.Fault{Code: %q, Status: %d}", name, code, status)
		}
	}
	f.p(")")
}
