package policy

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse holds of any text: Parse does not panic; an error is an [Error]
// whose position is in the text; what parses does so again after its white
// space is gone, and decides the same.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("../policies/*.json")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no policies to begin with: %v", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	m := maker{Rand: rand.New(rand.NewPCG(1, 2))} // the same ones for all who fuzz
	for range 20 {
		f.Add(m.document(Identity))
		f.Add(m.document(Resource))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []Kind{Identity, Trust, Resource, Key} {
			d, err := Parse(kind, "fuzz", text)
			if err != nil {
				e := (*Error)(nil)
				if !errors.As(err, &e) || e.Line < 0 || e.Line > len(text)+1 || e.Column > len(text)+1 {
					t.Fatalf("got %#v", err)
				}
				continue
			}
			d.Validate()
			var tree any
			if err := json.Unmarshal([]byte(text), &tree); err != nil {
				t.Fatalf("it is not even JSON: %v", err)
			}
			again := compacted(t, kind, text)
			for _, caller := range callers {
				for _, name := range []string{server, "*"} {
					r := Request{Principal: caller, Action: "mgn:StartTest", Resource: name, Context: Context{
						"aws:sourceidentity": {"s-1"}, "aws:tagkeys": {"a", "b"}, "aws:currenttime": {"2026-11-25T00:00:00Z"},
					}}
					if got, want := with(r, again), with(r, d); got != want {
						t.Fatalf("without white space %s, with it %s", got, want)
					}
				}
			}
		}
	})
}

// compacted parses a document again without its white space.
func compacted(t *testing.T, kind Kind, text string) *Document {
	var value json.RawMessage
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	short, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(kind, "fuzz", string(short))
	if err != nil {
		t.Fatalf("without white space: %v", err)
	}
	return d
}

func with(r Request, d *Document) string {
	if d.kind == Identity {
		r.Policies.Identity = []*Document{d}
	} else {
		r.Policies.Resource = d
	}
	got := Explain(&r)
	if again := Evaluate(&r); again.Verdict() != got.Verdict() {
		return "undecided"
	}
	return got.Verdict()
}

// FuzzPattern holds the matcher and the plain recursive definition together.
func FuzzPattern(f *testing.F) {
	f.Add("a*b?${*}", "axxbc*")
	f.Add("${x:y, 'd'}*", "dd")
	f.Add("*?*?*", "äöü")
	f.Fuzz(func(t *testing.T, text, s string) {
		p, err := compilePattern(text, true)
		if err != nil || len(text) > 24 || len(s) > 24 {
			return
		}
		c := Context{"x:y": {"v*"}}
		if got, want := p.match(s, c), plainly(p, s, c); got != want {
			t.Fatalf("%q matches %q: got %v, want %v", text, s, got, want)
		}
	})
}

// plainly is what a pattern means, without any cleverness.
func plainly(p pattern, s string, c Context) bool {
	for i := range p { // a variable without a value matches nothing at all
		if _, ok := p[i].resolve(c); !ok {
			return false
		}
	}
	if len(p) == 0 {
		return s == ""
	}
	switch p[0].kind {
	case anyRun:
		for i := 0; ; i += runeLength(s[i:]) {
			if plainly(p[1:], s[i:], c) {
				return true
			}
			if i == len(s) {
				return false
			}
		}
	case anyOne:
		return s != "" && plainly(p[1:], s[runeLength(s):], c)
	default:
		text, _ := p[0].resolve(c)
		return len(s) >= len(text) && s[:len(text)] == text && plainly(p[1:], s[len(text):], c)
	}
}
