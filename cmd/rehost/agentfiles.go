package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// agentName is what source servers download.
const agentName = "rehost-agent-linux-amd64"

// agentFiles serves the agent's program that stands beside this one, and its
// SHA-256, and nothing else of the directory. Everyone may read them.
type agentFiles struct {
	dir string

	mu  sync.Mutex // guards the rest, and is held while a sum is made
	of  fs.FileInfo
	sum string
}

// open finds the program under the name of a release or of `make build`.
func (a *agentFiles) open() (*os.File, fs.FileInfo, error) {
	var missing error
	for _, name := range []string{agentName, "rehost-agent"} {
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

// digest is the SHA-256 of the program in hexadecimal. It is kept for as long as
// the file stays the same.
func (a *agentFiles) digest() (string, error) {
	f, info, err := a.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of != nil && os.SameFile(a.of, info) && a.of.Size() == info.Size() && a.of.ModTime().Equal(info.ModTime()) {
		return a.sum, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	a.of, a.sum = info, hex.EncodeToString(h.Sum(nil))
	return a.sum, nil
}

// ServeHTTP implements [http.Handler].
func (a *agentFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/agent/" + agentName:
		f, info, err := a.open()
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		// Longer than an answer of the API may take: a slow line is no fault.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(15 * time.Minute))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", info.ModTime(), f)
	case "/agent/" + agentName + ".sha256":
		sum, err := a.digest()
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "%s  %s\n", sum, agentName)
	default:
		http.NotFound(w, r)
	}
}

func executableDir() string {
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Dir(path)
}
