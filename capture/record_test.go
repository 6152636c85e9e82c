package capture

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"rehost/block"
	"rehost/capture/bpf"
)

// TestRecord_Document holds docs/format/pins.md and the constants together.
func TestRecord_Document(t *testing.T) {
	text, err := os.ReadFile("../docs/format/pins.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"State": {"0 8 magic", row(recVersion, 4, "version"), row(recActive, 4, "active"), row(recBoot, 16, "boot"), row(recPrograms, 32, "programs"),
			row(recReplica, 32, "replica"), row(recDisks, 32, "disks"), row(recDisks+32, recCopy-recDisks-32, "reserved"),
			row(recCopy, recCopySize, "copy 0"), row(recCopy+recCopySize, recCopySize, "copy 1")},
		"Copy": {row(copyAcked, 8, "acked"), row(copyAsked, 8, "asked"), row(copyClean, 8, "clean"), row(copyFlags, 4, "flags"),
			row(copyAccounts, 4, "accounts"), row(copyPoint, 8, "point"), row(copyTime, 8, "time"), row(copyMissed, 8, "missed"), row(copyWritten, 8, "written"),
			fmt.Sprintf("%d %d n accounts", copyFirst, accSize)},
		"Account": {row(accFlags, 4, "flags"), row(accMissed, 4, "missed"), row(accKernel, 8, "kernel"), row(accCounters, accSize-accCounters, "counters")},
	}
	got, title := map[string][]string{}, ""
	line := regexp.MustCompile(`^\| (\d+) \| ([\dn ]+) \| ([a-z0-9 ]+) \|`)
	for l := range strings.Lines(string(text)) {
		if h, ok := strings.CutPrefix(l, "## "); ok {
			title = strings.TrimSpace(h)
		} else if m := line.FindStringSubmatch(l); m != nil {
			got[title] = append(got[title], strings.Join(m[1:], " "))
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the page says\n%v\nthe constants\n%v", got, want)
	}
	if copyFirst+bpf.MaxDisks*accSize > recCopySize {
		t.Error("the accounts of all disks do not fit")
	}
	for _, want := range []string{fmt.Sprintf("%d bytes", bpf.StateSize), fmt.Sprintf("| %q |", recordMagic), fmt.Sprintf("| version | %d |", recordVersion),
		fmt.Sprintf("at most %d", bpf.MaxDisks)} {
		if !strings.Contains(strings.ReplaceAll(string(text), "`", `"`), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func row(offset, size int, name string) string { return fmt.Sprintf("%d %d %s", offset, size, name) }

// TestRecord_Write: what was written is read, and a write that is cut off before its
// last store leaves the one before.
func TestRecord_Write(t *testing.T) {
	r := record(make([]byte, bpf.StateSize))
	r.create(identity{})
	first := position{acked: 5, asked: 6, clean: 4, whole: true, started: true, point: block.Point{Seq: 5, Time: time.Unix(7, 8)}}
	second := position{acked: 7, asked: 7, clean: 7, halfway: true, synced: true, suspect: true}
	accounts := []baseline{{observation: observation{stats: diskstats{bytes: 1}, counts: bpf.Counters{Issued: 2, OutOfRange: 3}}}, {observation: observation{stats: diskstats{inFlight: 1}}}}
	r.write(first, 9, accounts, time.Unix(10, 0))
	check := func(want position) {
		t.Helper()
		p, missed, got, at, err := r.read()
		if err != nil || !reflect.DeepEqual(p, want) || missed != 9 || !reflect.DeepEqual(got, accounts) || !at.Equal(time.Unix(10, 0)) {
			t.Fatalf("got %+v, %d, %+v, %v, %v; want %+v", p, missed, got, at, err, want)
		}
	}
	check(first)
	active := *r.active()
	r.write(second, 9, accounts, time.Unix(10, 0))
	check(second)
	*r.active() = active // all but the last store
	check(first)
}
