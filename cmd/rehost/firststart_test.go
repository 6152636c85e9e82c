package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rehost/control"
	"rehost/identity"
)

// A setup is what serve does with accounts when it starts.
type setup struct {
	*testing.T
	cmd ServeCmd
}

// start is one start of a process, as far as the accounts go.
func (s setup) start(then func(d *identity.Directory, first bool)) {
	s.Helper()
	db, err := control.OpenDatabase(s.Context(), filepath.Join(s.cmd.Data, "control.db"))
	if err != nil {
		s.Fatal(err)
	}
	defer db.Close()
	var state served
	key, err := loadSealingKey(s.cmd.Data, "")
	if err != nil {
		s.Fatal(err)
	}
	d, err := s.cmd.identities(s.Context(), db, &state, key)
	if err != nil {
		s.Fatal(err)
	}
	then(d, state.first)
}

func (s setup) path(name string) string { return filepath.Join(s.cmd.Data, name) }

// key is the access key in a credentials file, "" if there is none.
func (s setup) key(name string) string {
	text, err := os.ReadFile(s.path(name))
	if err != nil {
		return ""
	}
	return string(keyLine.FindSubmatch(text)[1])
}

// works is whether a key is believed, by its id.
func works(d *identity.Directory, id string) bool {
	_, _, err := d.Authenticate(context.Background(), id, "")
	return err == nil
}

// TestFirstStart_Crash cuts the first start off between any two steps: the next
// one leaves an administrator's key that is written down and works, and none that
// nobody has.
func TestFirstStart_Crash(t *testing.T) {
	for name, lost := range map[string][]string{
		"before any file":            {installerFile, adminFile, doneFile},
		"before the administrator's": {adminFile, doneFile},
		"before the mark":            {doneFile},
	} {
		t.Run(name, func(t *testing.T) {
			s := setup{t, ServeCmd{Data: t.TempDir(), Region: "us-east-1"}}
			var lostKeys []string
			s.start(func(d *identity.Directory, first bool) {
				if !first || !works(d, s.key(adminFile)) || !works(d, s.key(installerFile)) {
					t.Fatal("the first start has made no keys")
				}
			})
			for _, f := range lost {
				if f != doneFile {
					lostKeys = append(lostKeys, s.key(f))
				}
				if err := os.Remove(s.path(f)); err != nil {
					t.Fatal(err)
				}
			}
			s.start(func(d *identity.Directory, first bool) {
				if first != (len(lostKeys) > 0) || !works(d, s.key(adminFile)) || !works(d, s.key(installerFile)) {
					t.Errorf("first %v, written keys do not all work", first)
				}
				for _, k := range lostKeys {
					if works(d, k) {
						t.Errorf("%s, which nobody has, still works", k)
					}
				}
				if n := len(d.AccessKeys(identity.AdminUser)); n != 1 {
					t.Errorf("the administrator has %d keys", n)
				}
			})
			for _, f := range []string{adminFile, installerFile} {
				if info, err := os.Stat(s.path(f)); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", f, info.Mode(), err)
				}
			}
		})
	}
}

// TestFirstStart_FileMoved: who takes the key away from the service keeps it.
func TestFirstStart_FileMoved(t *testing.T) {
	s := setup{t, ServeCmd{Data: t.TempDir(), Region: "us-east-1"}}
	s.start(func(*identity.Directory, bool) {})
	key := s.key(adminFile)
	if err := os.Remove(s.path(adminFile)); err != nil {
		t.Fatal(err)
	}
	s.start(func(d *identity.Directory, first bool) {
		if first || !works(d, key) || s.key(adminFile) != "" {
			t.Error("a key that was taken away is ended or replaced")
		}
	})
}

// TestAgentFiles: the agent's program and its sum, and nothing beside them.
func TestAgentFiles(t *testing.T) {
	dir := t.TempDir()
	files := &agentFiles{dir: filepath.Join(dir, "bin"), log: slog.New(slog.DiscardHandler)}
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		files.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(files.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if code, _ := get("/agent/" + agentName); code != http.StatusNotFound {
		t.Errorf("without a program: %d", code)
	}
	write("credentials", "secret")
	write("bin/rehost", "secret")
	write("bin/rehost-agent", "program")
	if code, text := get("/agent/" + agentName); code != 200 || text != "program" {
		t.Errorf("program: %d %q", code, text)
	}
	_, before := get("/agent/" + agentName + ".sha256")
	if want := fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte("program")), agentName); before != want {
		t.Errorf("sum: %q", before)
	}
	write("bin/"+agentName, "a newer program")
	if _, after := get("/agent/" + agentName + ".sha256"); after == before {
		t.Error("another program has the same sum")
	}
	for _, path := range []string{"/agent/", "/agent/rehost", "/agent/../credentials", "/agent/..%2fcredentials", "/agent/%2e%2e/credentials",
		"/agent//" + agentName, "/agent/" + agentName + "/..", "/agent/rehost-agent", "/agent/\x00"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path, r.RequestURI = path, path
		w := httptest.NewRecorder()
		files.ServeHTTP(w, r)
		if w.Code != http.StatusNotFound || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%q: %d %q", path, w.Code, w.Body)
		}
	}
}

// TestServe_PublicDirectory: keys are not made where others could replace them.
func TestServe_PublicDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if status := Run(t.Context(), []string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--no-replicator"}, io.Discard, &said); status != statusError || !strings.Contains(said.String(), "chmod 700") {
		t.Errorf("status %d: %s", status, said.String())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("something was made there: %v, %v", entries, err)
	}
}
