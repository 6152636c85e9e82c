package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"rehost/release"
)

// architectures are those that there is an agent for, as Go names them.
var architectures = []string{"amd64", "arm64"}

// agentName is what source servers download, most of them.
var agentName = release.Agent("amd64")

// agentFiles serves the agent's programs that are in a directory with their sums
// and the signature of the release, and nothing else of it. Everyone may read
// them. Of a release only those are served that its list has. Safe for
// concurrent use.
type agentFiles struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex // guards what follows, and is held while a sum is made
	sums map[string]summed
	told string // what was logged last
}

// A summed is a file as it was when its sum was made.
type summed struct {
	of  fs.FileInfo
	sum release.Sum
}

// findAgentDir is where the programs are if nobody says it: beside this program,
// as `make build` has it, or where the package puts them.
func findAgentDir() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	dir := filepath.Dir(self)
	if packaged := filepath.Join(dir, "../lib/rehost"); dir == "/usr/bin" {
		return packaged
	}
	return dir
}

// open finds the program of an architecture under its name, or, where it is this
// machine's, under the one that `make build` gives it.
func (a *agentFiles) open(name string) (*os.File, fs.FileInfo, error) {
	names := []string{name}
	if name == release.Agent(runtime.GOARCH) {
		names = append(names, "rehost-agent")
	}
	var missing error
	for _, name := range names {
		f, err := os.Open(filepath.Join(a.dir, name))
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		info, err := f.Stat()
		if err == nil && info.Mode().IsRegular() {
			return f, info, nil
		}
		missing = errors.Join(missing, err, f.Close())
	}
	return nil, nil, errors.Join(missing, fs.ErrNotExist)
}

// digest is the SHA-256 of an open program. It is kept for as long as the file
// stays the same.
func (a *agentFiles) digest(name string, f *os.File, info fs.FileInfo) (release.Sum, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sums[name]; s.of != nil && os.SameFile(s.of, info) && s.of.Size() == info.Size() && s.of.ModTime().Equal(info.ModTime()) {
		return s.sum, nil
	}
	sum, err := release.SumOf(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return sum, err
	}
	if a.sums == nil {
		a.sums = map[string]summed{}
	}
	a.sums[name] = summed{info, sum}
	return sum, nil
}

// A signedList is the list of a release's sums as it is in its files; empty
// where the programs are not of a release.
type signedList struct{ sums, signature []byte }

// list reads the list and its signature, which this program has to believe if
// it believes anybody.
func (a *agentFiles) list() (signedList, *release.Manifest, error) {
	var l signedList
	var err error
	if l.sums, err = a.read(release.SumsFile, release.MaxSums); err != nil || l.sums == nil {
		return signedList{}, nil, err
	}
	if l.signature, err = a.read(release.SignatureFile, release.MaxSignature); err != nil {
		return signedList{}, nil, err
	}
	var m *release.Manifest
	if keys := release.Keys(); len(keys) > 0 {
		m, err = release.Open(l.sums, l.signature, keys)
	} else {
		m, err = release.Parse(l.sums)
	}
	return l, m, err
}

// version is that of the release, which has to be signed by somebody who is believed.
func (a *agentFiles) version() (release.Version, error) {
	_, m, err := a.list()
	if err == nil && (m == nil || m.Version == release.Version{}) {
		err = errors.New("what the service offers is not a signed release (make release; rehost serve --agent-dir)")
	}
	if err != nil {
		return release.Version{}, err
	}
	return m.Version, nil
}

// read reads a small file; nil if it is not there.
func (a *agentFiles) read(name string, most int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(a.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s is longer than %d bytes", f.Name(), most)
	}
	return text, err
}

// program opens an architecture's program and makes its sum. One that is not as
// the release's list has it is not served, whatever it is.
func (a *agentFiles) program(name string) (*os.File, fs.FileInfo, release.Sum, error) {
	f, info, err := a.open(name)
	if err != nil {
		return nil, nil, release.Sum{}, err
	}
	sum, err := a.digest(name, f, info)
	if err == nil {
		var m *release.Manifest
		if _, m, err = a.list(); err == nil && m != nil {
			err = m.Check(name, sum)
		}
	}
	if err != nil {
		f.Close()
		return nil, nil, release.Sum{}, err
	}
	return f, info, sum, nil
}

// sum is that of an architecture's program.
func (a *agentFiles) sum(name string) (release.Sum, error) {
	f, _, sum, err := a.program(name)
	if err != nil {
		return sum, err
	}
	return sum, f.Close()
}

// ServeHTTP implements [http.Handler].
func (a *agentFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, _ := strings.CutPrefix(r.URL.Path, "/agent/")
	err := fs.ErrNotExist
	if name == release.SumsFile || name == release.SignatureFile {
		err = a.serveList(w, name)
	}
	for _, arch := range architectures {
		switch name {
		case release.Agent(arch):
			err = a.serveProgram(w, r, name)
		case release.Agent(arch) + ".sha256":
			err = a.serveSum(w, release.Agent(arch))
		}
	}
	if err == nil {
		return
	}
	a.tell(err)
	http.NotFound(w, r)
}

// tell logs why something is not served, once: strangers ask as often as they like.
func (a *agentFiles) tell(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told != err.Error() {
		a.told = err.Error()
		a.log.Error("the agent is not served", "dir", a.dir, "err", err)
	}
}

func (a *agentFiles) serveProgram(w http.ResponseWriter, r *http.Request, name string) error {
	f, info, _, err := a.program(name)
	if err != nil {
		return err
	}
	defer f.Close()
	// Longer than an answer of the API may take: a slow line is no fault.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(15 * time.Minute))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), f)
	return nil
}

func (a *agentFiles) serveSum(w http.ResponseWriter, name string) error {
	sum, err := a.sum(name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s  %s\n", sum, name)
	return nil
}

func (a *agentFiles) serveList(w http.ResponseWriter, name string) error {
	l, _, err := a.list()
	text := l.sums
	if name == release.SignatureFile {
		text = l.signature
	}
	if err == nil && text == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(text)
	return nil
}
