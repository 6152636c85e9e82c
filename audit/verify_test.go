package audit

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// written is a closed log of three files, and what is in them.
func written(t testing.TB) (dir string, files []string, texts [][]byte) {
	t.Helper()
	dir = t.TempDir()
	l := open(t, dir, small)
	appendN(t, l, 1, 12)
	must(t, l.Close())
	files, err := Files(dir)
	must(t, err)
	if len(files) < 3 {
		t.Fatalf("the log has %d files", len(files))
	}
	files = append(files, filepath.Join(dir, headName))
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		texts = append(texts, text)
	}
	return dir, files, texts
}

// TestVerify_EveryByte: no byte of any file can be another.
func TestVerify_EveryByte(t *testing.T) {
	dir, files, texts := written(t)
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i, file := range files {
		for at := range texts[i] {
			changed := bytes.Clone(texts[i])
			changed[at] ^= 1 << random.IntN(8)
			err := inMemory(files, texts, i, changed)
			if random.IntN(50) == 0 { // and the whole way
				must(t, os.WriteFile(file, changed, 0o600))
				_, err = Verify(dir, testKeys)
			}
			if bad := new(BadError); !errors.As(err, &bad) {
				t.Errorf("byte %d of %s: %v", at, filepath.Base(file), err)
			}
		}
		must(t, os.WriteFile(file, texts[i], 0o600))
	}
	if _, err := Verify(dir, testKeys); err != nil {
		t.Errorf("put back: %v", err)
	}
}

// inMemory is what Verify does, of texts of which one was changed.
func inMemory(files []string, texts [][]byte, which int, changed []byte) error {
	texts = slices.Clone(texts)
	texts[which] = changed
	last := len(files) - 1
	h, err := decodeHead(testKeys, texts[last])
	if err != nil {
		return &BadError{Err: err}
	}
	w := walk{keys: testKeys, expected: []Mark{{h.seq, h.Last}}}
	for i, file := range files[:last] {
		if err := w.read(file, bytes.NewReader(texts[i])); err != nil {
			return err
		}
	}
	return w.ended()
}

// TestVerify_Lines: it is said which record is wrong first, and how.
func TestVerify_Lines(t *testing.T) {
	dir, files, texts := written(t)
	middle := strings.SplitAfter(string(texts[1]), "\n")
	n := len(middle) - 1 // lines
	last := strings.SplitAfter(string(texts[2]), "\n")
	at := func(i int) []string { return slices.Clone(middle[i:]) }
	first, _ := beginning(files[1])
	for _, c := range []struct {
		what   string
		lines  []string
		line   int
		seq    uint64
		reason Reason
	}{
		{"left out", append(slices.Clone(middle[:2]), at(3)...), 3, first + 3, Missing},
		{"twice", append(slices.Clone(middle[:3]), at(2)...), 4, first + 2, Reordered},
		{"swapped", slices.Concat(middle[:1], middle[2:3], middle[1:2], at(3)), 2, first + 2, Missing},
		{"without its first", at(1), 1, first + 1, Changed},
		{"ends early", middle[:n-1], 1, first + uint64(n), Missing},
		{"an empty line", slices.Concat(middle[:2], []string{"\n"}, at(2)), 3, first + 2, Changed},
		{"of another file", slices.Concat(middle[:2], last[1:2], at(3)), 3, 0, Missing},
	} {
		must(t, os.WriteFile(files[1], []byte(strings.Join(c.lines, "")), 0o600))
		_, err := Verify(dir, testKeys)
		bad := new(BadError)
		if !errors.As(err, &bad) || bad.Reason != c.reason || bad.Line != c.line || c.seq != 0 && bad.Seq != c.seq {
			t.Errorf("%s: got %v, want line %d, record %d, %s", c.what, err, c.line, c.seq, c.reason)
		}
		must(t, os.WriteFile(files[1], texts[1], 0o600))
	}
}

// TestVerify_Truncated: no cut at the end is missed of what the head knows, and
// none that it does not know is called one.
func TestVerify_Truncated(t *testing.T) {
	dir, files, texts := written(t)
	end := texts[2]
	for at := range end {
		err := inMemory(files, texts, 2, end[:at])
		if at%50 == 0 {
			must(t, os.WriteFile(files[2], end[:at], 0o600))
			_, err = Verify(dir, testKeys)
		}
		if err == nil {
			t.Errorf("cut to %d of %d bytes: not noticed", at, len(end))
		}
	}
	must(t, os.Remove(files[2]))
	if _, err := Verify(dir, testKeys); err == nil {
		t.Error("the newest file is gone: not noticed")
	}

	dir = t.TempDir() // and one that was not closed
	l := open(t, dir)
	appendN(t, l, 1, 3)
	must(t, l.Sync())
	appendN(t, l, 4, 2)
	for n, want := range map[int]bool{1: true, 2: true, 3: false} {
		text, err := os.ReadFile(l.path)
		must(t, err)
		cutLines(t, l.path, n)
		r, err := Verify(dir, testKeys)
		if (err == nil) != want {
			t.Errorf("%d lines cut off: %+v, %v", n, r, err)
		}
		must(t, os.WriteFile(l.path, text, 0o600))
	}
}

// recount writes a file anew behind a hash, with another history and a key, and gives
// the hash of its end.
func recount(t *testing.T, file string, text []byte, key []byte, before Hash) Hash {
	t.Helper()
	var out []byte
	for j, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		s, err := unseal([]byte(line))
		must(t, err)
		body := strings.TrimPrefix(string(s.body), fmt.Sprintf(`{"seq":%d,`, s.seq))
		body = strings.ReplaceAll(body, "StartTest", "TestStart")
		if j == 0 && s.seq > 1 {
			h, err := s.header()
			must(t, err)
			body = strings.Replace(body, h.Previous.String(), before.String(), 1)
		}
		var sealed []byte
		sealed, before = seal(key, lineDomain, before, s.seq, []byte(body))
		out = append(out, sealed...)
	}
	must(t, os.WriteFile(file, out, 0o600))
	return before
}

// TestVerify_Recounted: who has written a new history without the key passes only
// where the key is not asked for. That is the mutation too: without the macs this
// test fails.
func TestVerify_Recounted(t *testing.T) {
	dir, files, texts := written(t)
	var before Hash
	forged := []byte("another key of 32 bytes.........")
	for i, file := range files[:len(files)-1] {
		before = recount(t, file, texts[i], forged, before)
	}
	r, err := VerifyFiles(files[:len(files)-1], nil)
	must(t, err)
	text, err := head{r.Last.Seq, 1, r.Last.Hash}.encode(forged)
	must(t, err)
	must(t, os.WriteFile(files[len(files)-1], text, 0o600))
	if _, err := Verify(dir, nil); err != nil {
		t.Errorf("without the key: %v", err)
	}
	if _, err := Verify(dir, testKeys); err == nil {
		t.Error("with the key it is believed")
	}
}

// TestVerify_Expected: a note kept elsewhere shows that all was put back.
func TestVerify_Expected(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, small)
	appendN(t, l, 1, 3)
	must(t, l.Close())
	old := os.DirFS(dir)
	kept := t.TempDir()
	must(t, os.CopyFS(filepath.Join(kept, "audit"), old))
	l = open(t, dir, small)
	appendN(t, l, 4, 3)
	must(t, l.Close())
	r, err := Verify(dir, testKeys)
	must(t, err)
	back := filepath.Join(kept, "audit")
	if _, err := Verify(back, testKeys); err != nil {
		t.Errorf("an older copy, by itself: %v", err)
	}
	bad := new(BadError)
	if _, err := Verify(back, testKeys, r.Last); !errors.As(err, &bad) || bad.Reason != Truncated {
		t.Errorf("an older copy, and a note: %v", err)
	}
	if _, err := Verify(dir, testKeys, Mark{2, Hash{1}}); !errors.As(err, &bad) || bad.Seq != 2 || bad.Reason != Changed {
		t.Errorf("a note of another history: %v", err)
	}
	if _, err := Verify(dir, testKeys, r.Last); err != nil {
		t.Error(err)
	}
}

// TestFormat_Audit holds the page and the constants together.
func TestFormat_Audit(t *testing.T) {
	page, err := os.ReadFile("../docs/format/audit.md")
	must(t, err)
	for _, want := range []string{
		fmt.Sprintf("at most %d MiB, and there are at most %d ", DefaultFileSize>>20, DefaultFiles), fmt.Sprintf("at most %d KiB:", maxLine>>10),
		fmt.Sprintf("the last %d bytes", sealSize), fmt.Sprintf("(the first %d KiB)", maxTorn>>10), fmt.Sprintf("larger than %d KiB", maxRecord>>10),
		fmt.Sprintf(`"magic":"%s"`, magic), fmt.Sprintf(`"version":%d`, version), fmt.Sprintf(`"magic":"%s","version":%d`, headMagic, version),
		`"` + strings.TrimSuffix(lineDomain, "\x00") + `" 0x00`, "`" + strings.TrimSuffix(headDomain, "\x00") + "` 0x00", "Up to 1,024 records", "eventVersion " + EventVersion,
		linePrefix, hashMember, macMember, "`" + headName + "`", "`*" + unfinished + "`", "`AuditLineTorn`", "`AuditLogDamaged`", "`AuditRecordsLost`", EventSource, "65,536 calls are being counted", "ten minutes after", `"repeated":{"calls":199,"first":"`, "- version " + fmt.Sprint(version), "rehost audit key name v1",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if maxWaiting != 1024 || maxRepeats != 65536 || repeatWindow != 10*time.Minute || name(7) != "audit-00000000000000000007.jsonl" {
		t.Error("the page says otherwise")
	}
}

// update writes the vector anew: go test ./audit -run Vector -update.
var update = flag.Bool("update", false, "write testdata anew")

const vectorDir = "testdata/log"

// vector is a log that was written once, for whoever else reads the format: its key
// is 32 bytes of 7.
func vector(t testing.TB) (texts [][]byte) {
	t.Helper()
	files, err := Files(vectorDir)
	must(t, err)
	if len(files) != 3 {
		t.Fatalf("%d files in %s", len(files), vectorDir)
	}
	for _, f := range append(files, filepath.Join(vectorDir, headName)) {
		text, err := os.ReadFile(f)
		must(t, err)
		texts = append(texts, text)
	}
	return texts
}

// TestFormat_Vector: what earlier programs have written can be verified.
func TestFormat_Vector(t *testing.T) {
	if *update {
		_, files, texts := written(t)
		must(t, os.RemoveAll(vectorDir))
		must(t, os.MkdirAll(vectorDir, 0o755))
		for i, f := range files {
			must(t, os.WriteFile(filepath.Join(vectorDir, filepath.Base(f)), texts[i], 0o644))
		}
	}
	vector(t)
	if r, err := Verify(vectorDir, testKeys); err != nil || r.Records != 15 || r.Last.Seq != 15 {
		t.Errorf("%+v, %v", r, err)
	}
}

// FuzzVerify: a file of anything is either what was written, or it is said where
// it is not; nothing panics.
func FuzzVerify(f *testing.F) {
	texts := vector(f)
	for _, text := range texts {
		f.Add(text)
	}
	f.Add(texts[0][:len(texts[0])/2])
	good := texts[0]
	f.Fuzz(func(t *testing.T, text []byte) {
		w := walk{keys: testKeys}
		err := w.read("fuzzed", bytes.NewReader(text))
		if bad := new(BadError); err != nil && !errors.As(err, &bad) {
			t.Fatalf("%v", err)
		}
		if whole := text[:len(text)-int(w.Torn)]; err == nil && !bytes.HasPrefix(good, whole) && !bytes.Equal(texts[1], whole) && !bytes.HasPrefix(texts[1], whole) && !bytes.HasPrefix(texts[2], whole) {
			t.Fatalf("%d bytes that nobody wrote are believed", len(text))
		}
		if h, err := decodeHead(testKeys, text); err == nil && !bytes.Equal(text, texts[3]) {
			t.Fatalf("a head that nobody wrote is believed: %+v", h)
		}
	})
}

// BenchmarkAppend is what a record costs its call.
func BenchmarkAppend(b *testing.B) {
	l := open(b, b.TempDir(), func(o *Options) { o.SyncEvery = 0; o.Files = 2 })
	r := numbered(1)
	r.UserIdentity = UserIdentity{Type: "AssumedRole", ARN: strings.Repeat("a", 100), SessionContext: &SessionContext{SourceIdentity: "s-0123456789abcdef0"}}
	r.RequestParameters = map[string]any{"sourceServerIDs": []string{"s-0123456789abcdef0"}, "text": strings.Repeat("x", 400)}
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			must(b, l.Append(r))
		}
	})
	b.Run("many", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if err := l.Append(r); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
