package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// The audit log may not fill the disk that the replicas are on: agents alone
// make a line every few seconds each. What is kept longer is copied elsewhere.
const (
	auditSize = 64 << 20 // bytes of one file
	auditKept = 8        // files before the one that is written: audit.log.1 is the newest
)

// An auditFile is a log that begins a new file when one is full. Each write is
// one line and stays whole.
type auditFile struct {
	path string
	size int64 // of a file

	mu      sync.Mutex
	f       *os.File // guarded by mu
	written int64    // guarded by mu
}

func openAuditFile(path string, size int64) (*auditFile, error) {
	a := &auditFile{path: path, size: size}
	return a, a.begin()
}

// begin opens the file to go on with.
func (a *auditFile) begin() error {
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	a.f, a.written = f, info.Size()
	return nil
}

// Write implements [io.Writer].
func (a *auditFile) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.written > 0 && a.written+int64(len(line)) > a.size {
		if err := a.rotate(); err != nil {
			return 0, fmt.Errorf("rotate %s: %w", a.path, err)
		}
	}
	n, err := a.f.Write(line)
	a.written += int64(n)
	return n, err
}

func (a *auditFile) rotate() error {
	name := func(i int) string { return fmt.Sprintf("%s.%d", a.path, i) }
	for i := auditKept - 1; i > 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(a.path, name(1)); err != nil {
		return err
	}
	old := a.f
	return errors.Join(a.begin(), old.Close())
}

// Close implements [io.Closer].
func (a *auditFile) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.f.Close()
}
