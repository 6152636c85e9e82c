package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGenerate_UpToDate holds the checked-in packages and their models together.
func TestGenerate_UpToDate(t *testing.T) {
	for _, pkg := range []string{"mgn", "formgn", "iam", "sts", "ec2"} {
		dir := filepath.Join("..", pkg)
		files, err := generate(filepath.Join(dir, "model.json"), pkg)
		if err != nil {
			t.Fatal(err)
		}
		there, err := filepath.Glob(filepath.Join(dir, "*_gen.go"))
		if err != nil || len(there) == 0 {
			t.Fatalf("%s: no generated files (%v)", dir, err)
		}
		for i := range there {
			there[i] = filepath.Base(there[i])
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(files)), there); diff != "" {
			t.Errorf("%s: files (-generated +checked in):\n%s", pkg, diff)
		}
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
			} else if string(got) != string(want) {
				t.Errorf("%s/%s differs from what the model gives: run go generate ./awsapi/...", pkg, name)
			}
		}
	}
}

// TestTranslate shows that patterns written for Java mean the same here.
func TestTranslate(t *testing.T) {
	for _, test := range []struct {
		pattern, value string
		want           bool
	}{
		{`s-[0-9a-zA-Z]{17}`, "s-0123456789abcdef0", true},
		{`s-[0-9a-zA-Z]{17}`, "s-0123456789abcdef0\n", false},
		{`s-[0-9a-zA-Z]{17}`, "xs-0123456789abcdef0", false},
		{`[^\x00]{1,1020}\.csv`, strings.Repeat("a", 1020) + ".csv", true},
		{`[^\x00]{1,1020}\.csv`, strings.Repeat("a", 1021) + ".csv", false},
		{`[^\x00]{1,1020}\.csv`, ".csv", false},
		{`(?!aws:)[a-zA-Z0-9\s+\-=._:/@]*`, "team", true},
		{`(?!aws:)[a-zA-Z0-9\s+\-=._:/@]*`, "aws:team", false},
		{`.*(^i-[0-9a-zA-Z]{17}$)|(^mi-[0-9a-zA-Z]{17}$).*`, "mi-0123456789abcdef0", true},
		{`.*(^i-[0-9a-zA-Z]{17}$)|(^mi-[0-9a-zA-Z]{17}$).*`, "mi-0123456789abcdef", false},
	} {
		re, notPrefix := translate(test.pattern)
		got := regexp.MustCompile(re).MatchString(test.value) && (notPrefix == "" || !strings.HasPrefix(test.value, notPrefix))
		if got != test.want {
			t.Errorf("%s matches %.30q: got %v, want %v", test.pattern, test.value, got, test.want)
		}
	}
}
