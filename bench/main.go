// Command bench measures the road against its peers, side by side in one run,
// alternating, because machines are noisy: it prints a table and writes the
// medians to a file. Nothing here passes or fails; docs/performance.md says what
// the figures mean and what they were.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

// A bench is one run of all measurements.
type bench struct {
	dir     string
	rounds  int
	only    []string // parts; none: all
	figures map[string]float64
	notes   []string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "endpoint" {
		if err := endpoint(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var b bench
	out := flag.String("o", "build/bench.json", "where to write the medians")
	dir := flag.String("dir", "build", "directory on the disk to measure with; needs 30 GiB")
	flag.IntVar(&b.rounds, "rounds", 5, "how often each pair is measured")
	flag.Func("only", "parts to run, of copy, rescan, age, idle, memory, overhead, vpn; all by default", func(names string) error {
		b.only = strings.Split(names, ",")
		return nil
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// A part is one measurement.
type part struct {
	name string
	run  func(context.Context) error
}

func (b *bench) parts() []part {
	return []part{{"copy", b.fullCopy}, {"rescan", b.rescan}, {"age", b.pointAge}, {"idle", b.idle}, {"memory", b.memory}, {"overhead", b.overhead}, {"vpn", b.vpn}}
}

func (b *bench) run(ctx context.Context, dir, out string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("loop devices and eBPF need root")
	}
	if dir, err = filepath.Abs(dir); err != nil { // who logs in over ssh is elsewhere
		return err
	}
	if b.dir, err = os.MkdirTemp(dir, "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := os.Chmod(b.dir, 0o711); err != nil { // the agent's user has to come to its state
		return err
	}
	b.figures = map[string]float64{}
	var failed []error
	for _, part := range b.parts() {
		if len(b.only) > 0 && !slices.Contains(b.only, part.name) || ctx.Err() != nil {
			continue
		}
		if err := part.run(ctx); err != nil { // what the others found is not lost
			failed = append(failed, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	b.print()
	text, err := json.MarshalIndent(b.figures, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(append(failed, os.WriteFile(out, append(text, '\n'), 0o644))...)
}

func (b *bench) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	names := make([]string, 0, len(b.figures))
	for name := range b.figures {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintln(w, "\nfigure\tmedian")
	for _, name := range names {
		fmt.Fprintf(w, "%s\t%.3g\n", name, b.figures[name])
	}
	_ = w.Flush() // to the terminal
	for _, note := range b.notes {
		fmt.Println(note)
	}
}

func median(values []float64) float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}

// percentile is the value that p percent of the values do not exceed.
func percentile(values []float64, p float64) float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	return values[int(p/100*float64(len(values)-1))]
}
