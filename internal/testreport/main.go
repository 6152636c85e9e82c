// Command testreport reads `go test -json` from its standard input and prints
// what a person wants to know: a line a package, the whole output of what
// failed, what was skipped and why, what failed once more in a line each, and
// the counts. It exits with 1 if anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`, as cmd/test2json documents it.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type key struct{ pkg, test string }

type report struct {
	w                       io.Writer
	output                  map[key][]string
	skips                   map[string][]string // by package, test and reason; the parts of a test
	failures                []string
	passed, failed, skipped int
}

func main() {
	r := report{w: os.Stdout, output: map[key][]string{}, skips: map[string][]string{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !r.close() {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(r.w, lines.Text()) // not of test2json: a build error
			continue
		}
		r.event(e)
	}
	return lines.Err()
}

func (r *report) event(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.output[k] = append(r.output[k], e.Output)
		return
	case "build-output":
		fmt.Fprint(r.w, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	out := r.output[k]
	delete(r.output, k)
	if e.Test == "" {
		r.pkg(e, out)
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "skip":
		r.skipped++
		test, part, _ := strings.Cut(e.Test, "/")
		line := fmt.Sprintf("%s %s: %s", e.Package, test, reason(out))
		r.skips[line] = append(r.skips[line], part)
	case "fail":
		r.failed++
		fmt.Fprintf(r.w, "--- FAIL %s %s (%.1fs)\n%s", e.Package, e.Test, e.Elapsed, strings.Join(out, ""))
		r.failures = append(r.failures, fmt.Sprintf("%s %s (%.1fs)", e.Package, e.Test, e.Elapsed))
		r.failures = append(r.failures, said(out)...)
	}
}

func (r *report) pkg(e event, out []string) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(r.w, "ok   %-28s %6.1fs\n", e.Package, e.Elapsed)
	case "fail":
		if r.failed == 0 {
			r.failed++ // it did not build, timed out, or failed outside any test
			r.failures = append(r.failures, e.Package)
		}
		fmt.Fprintf(r.w, "FAIL %-28s %6.1fs\n%s", e.Package, e.Elapsed, strings.Join(out, ""))
	}
}

// reason is what the test said when it skipped, without the runner's own lines.
func reason(out []string) string {
	var words []string
	for _, line := range out {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}

// A statement is what a test says with its place: "    x_test.go:12: words".
var statement = regexp.MustCompile(`^\s*\w+\.go:\d+: `)

// said is the beginning and the end of what the test itself said, a line each.
func said(out []string) []string {
	const most, width = 4, 300
	var lines []string
	for _, line := range out {
		if statement.MatchString(line) {
			line = strings.TrimSpace(line)
			lines = append(lines, "    "+line[:min(len(line), width)])
		}
	}
	if len(lines) > 2*most {
		lines = slices.Concat(lines[:most], lines[len(lines)-most:])
	}
	return lines
}

func (r *report) close() bool {
	if len(r.skips) > 0 {
		fmt.Fprint(r.w, "\nSKIPPED on this machine:\n")
		for _, line := range slices.Sorted(maps.Keys(r.skips)) {
			parts := ""
			if n := len(r.skips[line]); n > 1 {
				parts = fmt.Sprintf(" (%d parts)", n)
			}
			fmt.Fprintf(r.w, "  %s%s\n", line, parts)
		}
	}
	if len(r.failures) > 0 {
		fmt.Fprintf(r.w, "\nFAILED:\n  %s\n", strings.Join(r.failures, "\n  "))
	}
	fmt.Fprintf(r.w, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return r.failed == 0 && r.passed > 0
}
