package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// This file is what a person sees of the demo. The rules: a step has one line
// when it begins and one indented line for each thing learnt; progress redraws
// its own line on a terminal and prints every tenth elsewhere; standard output
// ends in one line of JSON.

type terminal struct {
	w       io.Writer
	started time.Time
	steps   int
	live    bool // w is a terminal
	drawn   bool // the current line is a progress bar
	tenth   int
}

func newTerminal(f *os.File) *terminal {
	info, err := f.Stat()
	return &terminal{w: f, started: time.Now(), live: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (t *terminal) step(format string, args ...any) {
	t.endBar()
	t.steps++
	t.tenth = 0
	fmt.Fprintf(t.w, "\n[%3.0fs] %d. %s\n", time.Since(t.started).Seconds(), t.steps, fmt.Sprintf(format, args...))
}

func (t *terminal) say(format string, args ...any) {
	t.endBar()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(t.w, "       %s\n", strings.TrimRight(line, "\n"))
	}
}

// bar shows done of total bytes, the rate and the time left.
func (t *terminal) bar(done, total int64, mbps float64, eta time.Duration) {
	const width = 32
	share := 1.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	n := int(share * width)
	line := fmt.Sprintf("[%s%s] %3.0f %%  %6.1f of %.1f MiB  %6.1f MB/s", strings.Repeat("=", n), strings.Repeat(" ", width-n),
		share*100, float64(done)/(1<<20), float64(total)/(1<<20), mbps)
	if eta > 0 {
		line += fmt.Sprintf("  %s left", eta.Round(time.Second))
	}
	if t.live {
		fmt.Fprintf(t.w, "\r\033[K       %s", line)
		t.drawn = true
	} else if tenth := int(share * 10); tenth != t.tenth {
		t.tenth = tenth
		fmt.Fprintf(t.w, "       %s\n", line)
	}
}

func (t *terminal) endBar() {
	if t.drawn {
		fmt.Fprintln(t.w)
		t.drawn = false
	}
}
