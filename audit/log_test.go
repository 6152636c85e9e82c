package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir, os.Getenv(childLate) != ""))
	}
	goleak.VerifyTestMain(m)
}

var (
	testKey  = bytes.Repeat([]byte{7}, 32)
	testKeys = Keys{testKey}
)

// open opens a log that syncs only when it is told to.
func open(t testing.TB, dir string, change ...func(*Options)) *Log {
	t.Helper()
	o := Options{Keys: testKeys, Region: "us-east-1", Account: "123456789012", SyncEvery: time.Hour}
	for _, c := range change {
		c(&o)
	}
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func small(o *Options) { o.FileSize, o.Files = minFileSize, 100 }

// appendN appends records numbered from first.
func appendN(t testing.TB, l *Log, first, n int) {
	t.Helper()
	for i := range n {
		must(t, l.Append(numbered(first+i)))
	}
}

func numbered(i int) Record {
	return Record{EventName: "StartTest", EventSource: "mgn.amazonaws.com", UserIdentity: UserIdentity{Type: "IAMUser"}, RequestID: fmt.Sprint(i)}
}

// names lists the records of a log: the request ids of calls, the names of events.
func names(t testing.TB, dir string) (out []string) {
	t.Helper()
	files, err := Files(dir)
	must(t, err)
	bad, err := Read(files, func(e *Entry, _ []byte) error {
		if e.EventType == ServiceEvent {
			out = append(out, e.EventName)
		} else {
			out = append(out, e.RequestID)
		}
		return nil
	})
	if err != nil || bad > 0 {
		t.Fatalf("%d lines are no records, %v", bad, err)
	}
	return out
}

// TestLog: a log goes on where it was, in files that only the owner reads.
func TestLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	mirror := new(bytes.Buffer)
	l := open(t, dir, func(o *Options) { o.Mirror = mirror })
	appendN(t, l, 1, 2)
	must(t, l.Close())
	must(t, l.Close())
	if err := l.Append(numbered(9)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	l = open(t, dir)
	appendN(t, l, 3, 1)
	must(t, l.Close())
	if got, want := fmt.Sprint(names(t, dir)), "[AuditFileBegun 1 2 3]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r, err := Verify(dir, testKeys)
	if err != nil || r.Records != 4 || r.First != 1 || r.Last.Seq != 4 || r.Files != 1 || len(r.Remarks) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if n := strings.Count(mirror.String(), "\n"); n != 3 {
		t.Errorf("the mirror has %d lines, want 3", n)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestLog_Shape: a line is JSON with what every record has.
func TestLog_Shape(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 3, 4, 5, 6, 7, 8, time.FixedZone("", 3600))
	l := open(t, dir, func(o *Options) { o.Now = func() time.Time { return at } })
	appendN(t, l, 1, 1)
	must(t, l.Append(Record{EventName: "Large", RequestParameters: strings.Repeat("x", maxRecord)}))
	must(t, l.Close())
	files, err := Files(dir)
	must(t, err)
	text, err := os.ReadFile(files[0])
	must(t, err)
	lines := strings.Split(string(text), "\n")
	var got map[string]any
	must(t, json.Unmarshal([]byte(lines[1]), &got))
	for name, want := range map[string]any{"seq": 2.0, "eventVersion": EventVersion, "eventTime": "2026-03-04T04:06:07Z", "awsRegion": "us-east-1", "eventType": APICall,
		"managementEvent": true, "eventCategory": "Management", "recipientAccountId": "123456789012", "readOnly": false} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if id, _ := got["eventID"].(string); len(id) != 36 {
		t.Errorf("eventID is %q", id)
	}
	if !strings.Contains(lines[2], `"requestParameters":{"omittedBytes":65`) {
		t.Errorf("a record that is too large: %s", lines[2])
	}
}

// TestLog_Rotation: files follow on each other; the oldest are removed and the
// verdict stays good.
func TestLog_Rotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, func(o *Options) { o.FileSize, o.Files = minFileSize, 3 })
	appendN(t, l, 1, 100)
	must(t, l.Close())
	files, err := Files(dir)
	must(t, err)
	if len(files) != 3 {
		t.Fatalf("%d files are kept", len(files))
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > minFileSize {
			t.Errorf("%s has %d bytes, %v", f, info.Size(), err)
		}
	}
	r, err := Verify(dir, testKeys)
	if err != nil || r.First == 1 || r.Last.Seq != l.last.Seq {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := VerifyFiles(files[1:], nil); err != nil {
		t.Errorf("copied files: %v", err)
	}
	if got := names(t, dir); got[len(got)-1] != "100" {
		t.Errorf("the last record is %s", got[len(got)-1])
	}
}

// TestLog_Concurrent: what many write at once, while others verify, is all there,
// once.
func TestLog_Concurrent(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, func(o *Options) { o.FileSize, o.Files, o.SyncEvery = 16<<10, 1000, time.Millisecond })
	const writers, each = 8, 100
	var all, watching sync.WaitGroup
	stop := make(chan struct{})
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := Verify(dir, testKeys); err != nil {
				t.Errorf("verified while it is written: %v", err)
				return
			}
		}
	})
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := l.Append(numbered(w*each + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	watching.Wait()
	must(t, l.Close())
	seen := map[string]int{}
	for _, n := range names(t, dir) {
		seen[n]++
	}
	for i := range writers * each {
		if seen[fmt.Sprint(i)] != 1 {
			t.Errorf("record %d is there %d times", i, seen[fmt.Sprint(i)])
		}
	}
	if r, err := Verify(dir, testKeys); err != nil || r.Files < 10 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestLog_Full: on a full disk records wait, then are counted; Ready says so, and
// once there is room all that waited is there and what was lost has a number. The
// limit is the kernel's on a file's size, as the disk's would be.
func TestLog_Full(t *testing.T) {
	dir := t.TempDir()
	said := new(bytes.Buffer)
	l := open(t, dir, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(said, nil)) })
	appendN(t, l, 1, 2)
	room := limitFiles(t, l.size+100)
	for i := range maxWaiting + 7 {
		if err := l.Append(numbered(3 + i)); err == nil {
			t.Fatal("a record was written to a full disk")
		}
	}
	if err := l.Ready(); err == nil {
		t.Error("a log that cannot be written is ready")
	}
	room()
	if r, err := Verify(dir, testKeys); err != nil || r.Records != 3 || r.Torn != 0 {
		t.Errorf("while the disk is full: %+v, %v", r, err)
	}
	must(t, l.Ready())
	must(t, l.Close())
	r, err := Verify(dir, testKeys)
	if err != nil || r.Records != 3+maxWaiting+1 {
		t.Errorf("%d records, %v", r.Records, err)
	}
	if len(r.Remarks) != 1 || r.Remarks[0].Event != "AuditRecordsLost" || !strings.Contains(r.Remarks[0].Details, `"records":7`) {
		t.Errorf("remarks %+v", r.Remarks)
	}
	if n := strings.Count(said.String(), "\n"); n != 2 {
		t.Errorf("the log has said %d things, want 2: %s", n, said.String())
	}
}

// limitFiles bounds the size of files that this process writes, until it is undone.
func limitFiles(t *testing.T, size int64) (undo func()) {
	t.Helper()
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(size), Max: old.Max}))
	undo = sync.OnceFunc(func() { must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) })
	t.Cleanup(undo)
	return undo
}

// TestLog_Torn: what a crash has torn is set aside, not lost.
func TestLog_Torn(t *testing.T) {
	for _, size := range []int{1, 100, 5000, maxTorn + 10, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir)
			appendN(t, l, 1, 2)
			must(t, l.Close())
			files, err := Files(dir)
			must(t, err)
			f, err := os.OpenFile(files[0], os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString(strings.Repeat("t", size))
			must(t, errors.Join(err, f.Close()))
			if r, err := Verify(dir, testKeys); size < maxLine && (err != nil || r.Torn != int64(size)) {
				t.Errorf("before it is repaired: %+v, %v", r, err)
			}
			must(t, os.WriteFile(filepath.Join(dir, name(9)+unfinished), []byte("x"), 0o600))
			l = open(t, dir)
			appendN(t, l, 3, 1)
			must(t, l.Close())
			want := "[AuditFileBegun 1 2 AuditLineTorn 3]"
			if size > maxLine { // no line of ours
				return
			}
			if got := fmt.Sprint(names(t, dir)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			r, err := Verify(dir, testKeys)
			if err != nil || len(r.Remarks) != 1 || !strings.Contains(r.Remarks[0].Details, fmt.Sprintf(`"bytes":%d,"text":"dHR0`[:9+len(fmt.Sprint(size))], size)) {
				t.Errorf("%+v, %v", r, err)
			}
			if _, err := os.Stat(filepath.Join(dir, name(9)+unfinished)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an unfinished file is left: %v", err)
			}
		})
	}
}

// TestOpen_Damaged: a log that was tampered with is gone on with, says so, and
// stays bad.
func TestOpen_Damaged(t *testing.T) {
	damages := map[string]func(t *testing.T, dir string, files []string){
		"a byte":           func(t *testing.T, _ string, files []string) { change(t, files[len(files)-1], 300) },
		"the first line":   func(t *testing.T, _ string, files []string) { change(t, files[len(files)-1], 20) },
		"the end":          func(t *testing.T, _ string, files []string) { cutLines(t, files[len(files)-1], 1) },
		"all lines":        func(t *testing.T, _ string, files []string) { must(t, os.Truncate(files[len(files)-1], 0)) },
		"the head changed": func(t *testing.T, dir string, _ []string) { change(t, filepath.Join(dir, headName), 50) },
		"the newest file":  func(t *testing.T, _ string, files []string) { must(t, os.Remove(files[len(files)-1])) },
		"a file between":   func(t *testing.T, _ string, files []string) { must(t, os.Remove(files[1])) },
		"the oldest file":  func(t *testing.T, _ string, files []string) { must(t, os.Remove(files[0])) },
		"all files": func(t *testing.T, _ string, files []string) {
			for _, f := range files {
				must(t, os.Remove(f))
			}
		},
		"the head": func(t *testing.T, dir string, _ []string) { must(t, os.Remove(filepath.Join(dir, headName))) },
	}
	for what, damage := range damages {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, small)
			appendN(t, l, 1, 20)
			last := l.last.Seq
			must(t, l.Close())
			files, err := Files(dir)
			must(t, err)
			damage(t, dir, files)
			_, before := Verify(dir, testKeys)
			if before == nil {
				t.Fatal("it is not noticed")
			}
			l = open(t, dir, small)
			appendN(t, l, 21, 3)
			if l.last.Seq <= last {
				t.Errorf("records are numbered again from %d, there were %d", l.last.Seq, last)
			}
			must(t, l.Close())
			r, after := Verify(dir, testKeys)
			switch what {
			case "the head", "the head changed", "all files": // nothing is left of these to be found, but the record
				if len(r.Remarks) != 1 || r.Remarks[0].Event != "AuditLogDamaged" {
					t.Errorf("remarks %+v", r.Remarks)
				}
			default:
				if after == nil {
					t.Error("it is not noticed any more")
				}
			}
			if what != "a file between" && !strings.Contains(fmt.Sprint(names2(dir)), "AuditLogDamaged 21 22 23]") {
				t.Errorf("the log does not say so: %v", names2(dir))
			}
		})
	}
}

// names2 is names for a log with lines that are no records.
func names2(dir string) (out []string) {
	files, _ := Files(dir)
	_, _ = Read(files, func(e *Entry, _ []byte) error {
		if out = append(out, e.RequestID); e.EventType == ServiceEvent {
			out[len(out)-1] = e.EventName
		}
		return nil
	})
	return out
}

func change(t *testing.T, file string, at int) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	text[at] ^= 1
	must(t, os.WriteFile(file, text, 0o600))
}

func cutLines(t *testing.T, file string, n int) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	lines := strings.SplitAfter(string(text), "\n")
	must(t, os.WriteFile(file, []byte(strings.Join(lines[:len(lines)-1-n], "")), 0o600))
}

// TestLog_SyncsByItself: the head follows without being asked.
func TestLog_SyncsByItself(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, func(o *Options) { o.SyncEvery = time.Millisecond })
	appendN(t, l, 1, 1)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if h, err := readHead(dir, testKeys); err == nil && h.seq == 2 && h.Last == l.last.Hash {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the head does not follow")
		}
	}
}
