package fleet

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// A Table is a [Progress] for people. On a terminal it is drawn again with each
// step; elsewhere each step is a line.
type Table struct {
	Out   io.Writer
	Live  bool       // Out is a terminal
	Width func() int // of it, in columns

	hosts []Host
	rows  []row
	drawn int // lines
}

type row struct {
	step, detail string
	took         time.Duration
}

// Begin implements [Progress].
func (t *Table) Begin(hosts []Host) { t.hosts, t.rows = hosts, make([]row, len(hosts)) }

// Step implements [Progress].
func (t *Table) Step(host int, name, detail string, took time.Duration) {
	t.rows[host] = row{name, printable(detail), took}
	switch {
	case t.Live:
		t.draw()
	case name != string(waiting):
		fmt.Fprintln(t.Out, strings.TrimRight(t.line(host), " "))
	}
}

// End implements [Progress].
func (t *Table) End() {
	count := map[string]int{}
	for _, r := range t.rows {
		count[r.step]++
	}
	sum := fmt.Sprintf("%d installed", count[string(installed)])
	for _, s := range []step{skipped, failed} {
		if n := count[string(s)]; n > 0 {
			sum += fmt.Sprintf(", %d %s", n, s)
		}
	}
	fmt.Fprintln(t.Out, sum)
}

func (t *Table) line(i int) string {
	r, width := t.rows[i], len("HOST")
	for _, h := range t.hosts {
		width = max(width, len(h.Name))
	}
	took := ""
	if r.took >= time.Second {
		took = r.took.Round(time.Second).String()
	}
	return fmt.Sprintf("%-*s  %-16s  %6s  %s", width, t.hosts[i].Name, r.step, took, r.detail)
}

func (t *Table) draw() {
	var b strings.Builder
	if t.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.drawn)
	}
	width := 80
	if t.Width != nil {
		width = t.Width()
	}
	for i := range t.rows {
		fmt.Fprintf(&b, "\x1b[K%s\n", cut(t.line(i), width-1))
	}
	t.drawn = len(t.rows)
	fmt.Fprint(t.Out, b.String())
}

func cut(text string, columns int) string {
	if utf8.RuneCountInString(text) <= columns || columns < 1 {
		return text
	}
	return string([]rune(text)[:columns-1]) + "…"
}
