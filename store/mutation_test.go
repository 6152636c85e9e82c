package store

import (
	"strings"
	"testing"

	"rehost/internal/fault"
)

// mutations are mistakes that the tests named must not let pass.
var mutations = []struct{ name, file, from, to, tests string }{
	{"commit without sync", "chunk.go", "err = s.file.Sync()", "err = nil", "Replica_Crash$"},
	{"segment not synced into its directory", "writer.go", "func() error { return fsys.SyncDir(w.r.dir) },", "", "Replica_Crash$"},
	{"header not synced before the name", "writer.go", "		f.Sync,\n", "", "Replica_Crash$"},
	{"metadata not synced", "fs.go", "		err = f.Sync()\n", "", "Replica_Crash$"},
	{"torn payload taken", "scan.go", "if r.offset+r.size() > durable {", "if false {", "Replica_Crash$"},
	{"interrupted sealing taken for damage", "scan.go", "if err == nil || mustSeal {", "if true {", "Replica_Crash$"},
	{"damage taken for a torn tail", "scan.go", "if !evidence {", "if evidence || true {", "FlippedByteUnsealed"},
	{"runs of another session taken", "history.go", "if session != h.session || h.staged == nil {", "if h.staged == nil {", "Replica_Model|Replica_Crash$"},
	{"lower generation taken", "replica.go", "generation < r.Generation()", "false", "Fencing"},
	{"fenced writer goes on", "replica.go", "r.writer.stop(ErrFenced)", "error(nil)", "Fencing"},
	{"ordinal ignored", "history.go", "return cmp.Compare(a.ordinal, b.ordinal)", "return 0", "Ordinals|Replica_Model"},
	{"older epoch wins", "history.go", "h[i] > h[(i-1)/2]; i", "h[i] < h[(i-1)/2]; i", "Replica_Model"},
	{"thinned by the order of arrival", "history.go", "out[i] = staged{list[from[i]].ordinal, p}", "out[i] = staged{uint64(from[i]) * 0, p}", "NotConverging"},
	{"number given twice overlooked", "history.go", "there || ordinal < o.next {", "there && false {", "NotConverging"},
	{"runs not counted", "history.go", "if o.runs != runs {", "if false {", "Refuses"},
	{"a copy under way hides the point before it", "replica.go", "p.Consistent() {", "true {", "Restarted"},
	{"runs of zeros left out", "view.go", "		pieces = append(pieces, c.pieces...)", "		for _, p := range c.pieces { if !p.zero { pieces = append(pieces, p) } }", "Restarted"},
	{"retraction not written", "writer.go", "if err := w.log(ctx, indexMark{kind: kindRetract, epoch: after}); err != nil {", "if err := error(nil); err != nil {", "Retract"},
	{"missing segment overlooked", "replica.go", "max(uint64(len(numbers)), meta.Sealed)", "uint64(len(numbers))", "Truncated"},
	{"writer mends itself", "writer.go", "if w.err == nil {", "if false {", "Broken"},
	{"hash of a chunk that was written since", "sums.go", "p.start > chunk.Start || p.end() < chunk.End()", "false", "View_Hashes|Replica_Model"},
	{"hash of the chunk beside", "sums.go", "last.list[first-of]", "last.list[max(first-of, 1)-1]", "View_Hashes|Replica_Model"},
	{"content not compared with its hashes", "verify.go", "err := run.CheckSums(content); err != nil", "err := run.CheckSums(content); err != nil && false", "Verify_Sums"},
	{"key not shredded", "store.go", "_, err = f.WriteAt(noise, 0)", "", "CreateDelete"},
}

// TestMutations makes each mistake in a copy of the source and expects the tests to
// fail.
func TestMutations(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package many times")
	}
	for _, m := range mutations {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			fault.Caught(t, fault.Mutant{File: m.file, From: m.from, To: m.to, Tests: m.tests})
		})
	}
}
