package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rehost/block"
	"rehost/store"
)

// run runs a command line and compares all that it says; $D stands for dir.
func run(t *testing.T, dir, args string, status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	got := Run(context.Background(), strings.Fields(strings.ReplaceAll(args, "$D", dir)), &out, &errs)
	if got != status {
		t.Errorf("%s: exit status %d, want %d", args, got, status)
	}
	trim := func(s string) string {
		var b strings.Builder
		for line := range strings.Lines(strings.ReplaceAll(s, dir, "$D")) {
			b.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
		return strings.TrimSpace(b.String())
	}
	if diff := cmp.Diff(strings.TrimSpace(stdout), trim(out.String())); diff != "" {
		t.Errorf("%s: output (-want +got):\n%s", args, diff)
	}
	if diff := cmp.Diff(strings.TrimSpace(stderr), trim(errs.String())); diff != "" {
		t.Errorf("%s: errors (-want +got):\n%s", args, diff)
	}
}

func makeStore(t *testing.T, dir string) {
	t.Helper()
	ctx := t.Context()
	keys, err := store.CreateKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(filepath.Join(dir, "store"), keys, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	disks := []block.Disk{{ID: 0, Name: "/dev/sda", Size: 1 << 20, Boot: true}, {ID: 1, Name: "/dev/sdb", Size: 5000}}
	if _, err := s.Create(ctx, "s-empty", disks[:1], ""); err != nil {
		t.Fatal(err)
	}
	r, err := s.Create(ctx, "s-1", disks, "")
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.Begin(ctx, 7, nil)
	if err != nil {
		t.Fatal(err)
	}
	for seq := range block.Seq(3) { // the second is consistent, the third is of a copy under way
		data := bytes.Repeat([]byte{'a' + byte(seq)}, block.Size)
		if err := w.Append(ctx, seq+1, 0, block.Run{Extent: block.Extent{Disk: 1, Start: 1, Count: 1}, Codec: block.Raw, Payload: data}); err != nil {
			t.Fatal(err)
		}
		at := block.Point{Seq: seq + 1, Time: time.Date(2026, 1, 2, 3, 4, 5+int(seq), 678e6, time.UTC)}
		if err := w.Commit(ctx, at, 1, block.Flags(seq)&block.Consistent); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestReplicas_Launchable: the control plane is offered consistent points, and
// gets no others even where it asks for them.
func TestReplicas_Launchable(t *testing.T) {
	dir := t.TempDir()
	makeStore(t, dir)
	keys, err := store.OpenKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(filepath.Join(dir, "store"), keys, store.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := replicas{s}
	points, err := r.Points(t.Context(), "s-1")
	if err != nil || len(points) != 1 || points[0].Seq != 2 {
		t.Errorf("got %v, %v, want the second point only", points, err)
	}
	for seq := block.Seq(1); seq <= 3; seq++ {
		switch _, err := r.Open(t.Context(), "s-1", seq); {
		case seq == 2 && err != nil:
			t.Error(err)
		case seq != 2 && !errors.Is(err, store.ErrNoPoint):
			t.Errorf("point %v: got %v, want %v", seq, err, store.ErrNoPoint)
		}
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	makeStore(t, dir)
	const flags = " --dir $D/store --key $D/key "

	run(t, dir, "store ls"+flags, 0, `
REPLICA  DISKS  SIZE     POINTS  CONSISTENT        TIME
s-1      2      1053576  3       0000000000000002  2026-01-02T03:04:06.678Z
s-empty  1      1048576  0       -                 -`, "")

	run(t, dir, "store inspect s-1"+flags, 0, `
replica s-1, generation 7

DISK  NAME      BYTES    BOOT
d0    /dev/sda  1048576  true
d1    /dev/sdb  5000     false

POINT             TIME                      CONSISTENT
0000000000000001  2026-01-02T03:04:05.678Z  false
0000000000000002  2026-01-02T03:04:06.678Z  true
0000000000000003  2026-01-02T03:04:07.678Z  false

SEGMENT       SESSION  GENERATION  BYTES  RUNS  COMMITS  SEALED
00000001.seg  1        7           28672  3     3        true`, "")

	run(t, dir, "store verify"+flags, 0, `
s-1: ok, 3 points, 1 segments, 3 runs of 12288 bytes
s-empty: ok, 0 points, 0 segments, 0 runs of 0 bytes`, "")

	run(t, dir, "store restore s-1 --point 0000000000000001 --to $D"+flags, 0, `
point 0000000000000001 of s-1, 2026-01-02T03:04:05.678Z, NOT crash-consistent
$D/d0.raw  /dev/sda  1048576 bytes
$D/d1.raw  /dev/sdb  5000 bytes`, "")
	if b, err := os.ReadFile(filepath.Join(dir, "d1.raw")); err != nil || len(b) != 5000 || b[4095] != 0 || b[4096] != 'a' || b[4999] != 'a' {
		t.Errorf("d1.raw has %d bytes, %v", len(b), err)
	}

	if err := os.Mkdir(filepath.Join(dir, "newest"), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "store restore s-1 --to $D/newest"+flags, 0, `
point 0000000000000002 of s-1, 2026-01-02T03:04:06.678Z
$D/newest/d0.raw  /dev/sda  1048576 bytes
$D/newest/d1.raw  /dev/sdb  5000 bytes`, "")

	run(t, dir, "store restore s-2 --to $D"+flags, 3, "", `
error: open replica s-2: no such replica
hint: rehost store ls lists the replicas that are there`)
	run(t, dir, "store restore s-1 --point 0000000000000009 --to $D"+flags, 3, "", `
error: open point 0000000000000009 of replica s-1: no such recovery point
hint: rehost store inspect lists the points that can be opened`)
	run(t, dir, "store restore s-1 --point 9 --to $D"+flags, 2, "", `
error: wrong usage: parse "9": epoch number is not 16 lower-case hexadecimal digits
hint: rehost --help lists commands and flags`)
	run(t, dir, "store restore s-1 --to $D"+flags, 1, "", `
error: open $D/d0.raw: file exists`)
	run(t, dir, "store inspect ../s-1"+flags, 2, "", `
error: open replica: "../s-1": source server id is not a plain name
hint: a replica has the name of its source server, like s-0123456789abcdef0`)
	run(t, dir, "store", 2, "", `
error: wrong usage: expected one of "ls", "inspect", "verify", "restore"
hint: rehost --help lists commands and flags`)
	if _, err := store.CreateKeyFile(filepath.Join(dir, "key2")); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if got := Run(t.Context(), []string{"store", "verify", "--dir", dir + "/store", "--key", dir + "/key2"}, &out, &errs); got != 1 ||
		!strings.Contains(errs.String(), "hint: this replica was written with another key") {
		t.Errorf("exit status %d:\n%s", got, errs.String())
	}

	name := filepath.Join(dir, "store", "s-1", "00000001.seg")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[4096+64+100] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "store verify"+flags, 4, `
s-1: NOT INTACT
s-empty: ok, 0 points, 0 segments, 0 runs of 0 bytes`, `
error: verify replica s-1: s-1/00000001.seg is corrupt at 4096: payload: authentication failed
hint: what is stored has been damaged; no data was returned from there. Restore the file from a copy, or replicate anew`)
}

func TestHelp(t *testing.T) {
	var out, errs bytes.Buffer
	if got := Run(t.Context(), []string{"store", "--help"}, &out, &errs); got != 0 || !strings.Contains(out.String(), "store restore") {
		t.Errorf("exit status %d: %s", got, out.String())
	}
}
