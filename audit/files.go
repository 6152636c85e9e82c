package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	headName   = "head"
	filePrefix = "audit-"
	fileSuffix = ".jsonl"
	unfinished = ".new"
)

// name is the name of the file that begins with the line seq.
func name(seq uint64) string { return fmt.Sprintf("%s%020d%s", filePrefix, seq, fileSuffix) }

// beginning is the inverse of name.
func beginning(file string) (seq uint64, ok bool) {
	digits := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), filePrefix), fileSuffix)
	seq, err := strconv.ParseUint(digits, 10, 64)
	return seq, err == nil && name(seq) == filepath.Base(file)
}

// Files lists the files of the log in a directory, oldest first.
func Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if _, ok := beginning(e.Name()); ok {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(files) // the digits are all of one length
	return files, nil
}

// A head says how far the log is known to be on the disk.
type head struct {
	seq    uint64
	Oldest uint64 `json:"oldest"`
	Last   Hash   `json:"last"`
}

type headMembers struct {
	Magic   string `json:"magic"`
	Version int    `json:"version"`
	Key     string `json:"key"`
	head
}

func (h head) encode(key []byte) ([]byte, error) {
	object, err := json.Marshal(headMembers{headMagic, version, keyName(key), h})
	if err != nil {
		return nil, err
	}
	line, _ := seal(key, headDomain, Hash{}, h.seq, members(object))
	return line, nil
}

func decodeHead(keys Keys, text []byte) (head, error) {
	line, ok := strings.CutSuffix(string(text), "\n")
	s, err := unseal([]byte(line))
	if err == nil && !ok {
		err = errors.New("it does not end in a line feed")
	}
	var m headMembers
	if err == nil {
		err = json.Unmarshal(append(bytes.Clone(s.body), '}'), &m)
	}
	var key []byte
	if err == nil && len(keys) > 0 {
		if key = keys.of(m.Key, &s); key == nil {
			err = errOtherKey(m.Key)
		}
	}
	if err == nil {
		err = s.check(key, headDomain, Hash{})
	}
	if err == nil && (m.Magic != headMagic || m.Version != version) {
		err = fmt.Errorf("it is %q of version %d, and this program knows only version %d", m.Magic, m.Version, version)
	}
	m.seq = s.seq
	return m.head, err
}

// readHead reads the head of the log in dir. What is wrong with it is a [*BadError];
// that there is none is [fs.ErrNotExist].
func readHead(dir string, keys Keys) (head, error) {
	path := filepath.Join(dir, headName)
	text, err := os.ReadFile(path)
	if err != nil {
		return head{}, err
	}
	h, err := decodeHead(keys, text)
	if err != nil {
		return h, &BadError{File: path, Line: 1, Seq: h.seq, Reason: Changed, Err: err}
	}
	return h, nil
}

// place writes a file that after a crash is there whole or not at all, and
// leaves it open for writing.
func place(path string, text []byte) (f *os.File, err error) {
	if err := os.Remove(path + unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err = os.OpenFile(path+unfinished, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), ignoreMissing(os.Remove(path+unfinished)))
	}
	return f, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
