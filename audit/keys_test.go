package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newKey takes the place of testKey.
var newKey = bytes.Repeat([]byte{8}, keySize)

func keyed(keys ...[]byte) func(*Options) {
	return func(o *Options) { o.Keys, o.Files = keys, 100 }
}

// replaced is a log that was begun with the old key, went on with both, and then with the
// new one only: its files, and how long its head was old.
func replaced(t *testing.T) (dir string, files []string) {
	t.Helper()
	dir = t.TempDir()
	for i, keys := range []Keys{{testKey}, {newKey, testKey}, {newKey}} {
		l := open(t, dir, keyed(keys...))
		appendN(t, l, 3*i+1, 3)
		must(t, l.Close())
	}
	files, err := Files(dir)
	must(t, err)
	return dir, files
}

// TestKeys_Replaced: a log goes on under another key in a new file, and what the old one has
// written is vouched for when that is gone.
func TestKeys_Replaced(t *testing.T) {
	dir, files := replaced(t)
	if got, want := fmt.Sprint(names(t, dir), len(files)), "[AuditFileBegun 1 2 3 AuditFileBegun 4 5 6 7 8 9] 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for what, c := range map[string]struct {
		keys Keys
		want string
	}{
		"both": {Keys{newKey, testKey}, ""}, "in another order": {Keys{testKey, newKey}, ""}, "the new one": {Keys{newKey}, ""}, "none": {nil, ""},
		"the old one": {Keys{testKey}, "with the key " + keyName(newKey)}, "another": {Keys{bytes.Repeat([]byte{9}, keySize)}, "with the key " + keyName(newKey)},
	} {
		_, err := Verify(dir, c.keys)
		if bad := new(BadError); (err == nil) != (c.want == "") || err != nil && (!errors.As(err, &bad) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := VerifyFiles(files[:1], Keys{newKey}); err == nil {
		t.Error("the old file alone is believed by a key that says nothing of it")
	}
	if _, err := VerifyFiles(files[:1], Keys{newKey, testKey}); err != nil {
		t.Error(err)
	}
}

// TestKeys_OldOneStolen: who has the old key, and has written another history with it, is
// found out by the new one's file, whether or not the old key is still believed. The
// mutation is a log that is not vouched for: without that hash it is believed.
func TestKeys_OldOneStolen(t *testing.T) {
	dir, files := replaced(t)
	text, err := os.ReadFile(files[0])
	must(t, err)
	recount(t, files[0], text, testKey, Hash{})
	for _, keys := range []Keys{{newKey}, {newKey, testKey}, nil} {
		if _, err := Verify(dir, keys); err == nil {
			t.Errorf("another history is believed, with %d keys", len(keys))
		}
	}
	if _, err := VerifyFiles(files[:1], Keys{testKey}); err != nil {
		t.Errorf("nothing vouches for the file alone: %v", err)
	}
}

// TestKeys_OfNobody: what is written behind the log, or in its place, with a key that nobody
// has is not taken for that of a key that was retired.
func TestKeys_OfNobody(t *testing.T) {
	nobody := bytes.Repeat([]byte{9}, keySize)
	dir, files := replaced(t)
	last := files[len(files)-1]
	text, err := os.ReadFile(last)
	must(t, err)
	s, err := unseal(bytes.SplitN(text, []byte("\n"), 2)[0])
	must(t, err)
	h, err := s.header()
	must(t, err)
	recount(t, last, bytes.Replace(text, []byte(h.Key), []byte(keyName(nobody)), 1), nobody, h.Previous)
	if _, err := Verify(dir, Keys{newKey}); err == nil {
		t.Error("the newest file is believed")
	}
	must(t, os.WriteFile(last, text, 0o600))

	r, err := Verify(dir, Keys{newKey})
	must(t, err)
	first := fmt.Appendf(nil, `"magic":%q,"version":%d,"key":%q,"previousHash":%q,"eventName":"Forged"`, magic, version, keyName(nobody), r.Last.Hash)
	line, _ := seal(nobody, lineDomain, r.Last.Hash, r.Last.Seq+1, first)
	must(t, os.WriteFile(filepath.Join(dir, name(r.Last.Seq+1)), line, 0o600))
	if _, err := Verify(dir, Keys{newKey}); err == nil {
		t.Error("a file behind the log is believed")
	}
}

// TestKeys_Crash: what a crash has torn under the old key is set aside under it, and one
// between the new file and its head costs nothing.
func TestKeys_Crash(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 1, 2)
	must(t, l.Close())
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(`{"seq":4,"half`)
	must(t, errors.Join(err, f.Close()))
	head, err := os.ReadFile(filepath.Join(dir, headName))
	must(t, err)
	for range 2 {
		must(t, open(t, dir, keyed(newKey, testKey)).Close())
		if _, err := Verify(dir, Keys{newKey, testKey}); err != nil {
			t.Fatal(err)
		}
		must(t, os.WriteFile(filepath.Join(dir, headName), head, 0o600)) // as it was before the new file
	}
	must(t, open(t, dir, keyed(newKey, testKey)).Close())
	if got, want := fmt.Sprint(names(t, dir)), "[AuditFileBegun 1 2 AuditLineTorn AuditFileBegun]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestKeys_TooEarly: a log whose key was taken away before the log has left it says so, and
// goes on.
func TestKeys_TooEarly(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	appendN(t, l, 1, 2)
	must(t, l.Close())
	l = open(t, dir, keyed(newKey))
	appendN(t, l, 3, 1)
	must(t, l.Close())
	r, err := Verify(dir, Keys{newKey})
	if err != nil || len(r.Remarks) != 1 || !strings.Contains(r.Remarks[0].Details, "with the key "+keyName(testKey)) {
		t.Errorf("%+v, %v", r.Remarks, err)
	}
}

// TestKeys_Unnamed: a log from before files named their key goes on in one that does.
func TestKeys_Unnamed(t *testing.T) {
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(vectorDir)))
	must(t, open(t, dir, keyed(testKey)).Close())
	files, err := Files(dir)
	must(t, err)
	text, err := os.ReadFile(files[len(files)-1])
	must(t, err)
	if len(files) != 4 || !bytes.Contains(text, fmt.Appendf(nil, `"key":%q`, keyName(testKey))) {
		t.Errorf("%d files, the last is %s", len(files), text)
	}
	if _, err := Verify(dir, testKeys); err != nil {
		t.Error(err)
	}
}
