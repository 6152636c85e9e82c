package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// A Reason is what is wrong with a record.
type Reason string

// The reasons.
const (
	Changed   Reason = "changed"   // the text is not what was written, or not by us
	Missing   Reason = "missing"   // there were records before this one that are not here
	Reordered Reason = "reordered" // it was moved, or is there a second time
	Truncated Reason = "truncated" // there were records after this one
)

// A BadError is the first place at which a log is not what was written.
type BadError struct {
	File   string
	Line   int    // from 1
	Seq    uint64 // of the record, as far as it says so
	Reason Reason
	Err    error
}

func (e *BadError) Error() string {
	return fmt.Sprintf("audit log %s, line %d, record %d: %s: %v", e.File, e.Line, e.Seq, e.Reason, e.Err)
}

func (e *BadError) Unwrap() error { return e.Err }

// A Mark is one record of a log and what its chain is at after it.
type Mark struct {
	Seq  uint64
	Hash Hash
}

// A Report is what a verified log holds.
type Report struct {
	Files   int
	Records uint64
	First   uint64 // sequence number
	Last    Mark
	// Remarks are the records in which the log speaks of itself.
	Remarks []Remark
	// Torn is how many bytes of a line that was not finished stand at the end:
	// of the record that is being written, or that a crash has cut off.
	Torn int64
}

// Verify checks the log in a directory: each record, that none is missing, and
// that it goes as far as it is known to have gone. The log may be written meanwhile.
// Without keys (nil), it cannot tell a history that somebody has counted anew.
// The records that are expected must be in it, unless it begins after them.
// The error is a [*BadError] if the log is not what was written.
func Verify(dir string, keys Keys, expected ...Mark) (Report, error) {
	before, err := readHead(dir, keys)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Report{}, err
	}
	headless := err != nil
	files, err := openAll(dir)
	if err != nil {
		return Report{}, err
	}
	defer files.Close()
	if headless {
		if len(files) == 0 {
			return Report{}, fmt.Errorf("audit log in %s: %w", dir, fs.ErrNotExist)
		}
		return Report{}, &BadError{File: filepath.Join(dir, headName), Line: 1, Reason: Missing, Err: errors.New("the file that says how far the log goes is gone")}
	}
	w := walk{keys: keys, file: dir, expected: append(slices.Clone(expected), Mark{before.seq, before.Last})}
	if err := w.files(files); err != nil {
		return w.Report, err
	}
	after, err := readHead(dir, keys) // the oldest may have been removed before we listed it
	if err == nil {
		err = w.oldest(after)
	}
	return w.Report, err
}

// VerifyFiles checks files that were copied from a log, in their order. How the log
// went on after the last one is not known. With keys, the last one must be of one of them.
func VerifyFiles(paths []string, keys Keys, expected ...Mark) (Report, error) {
	files := openFiles{}
	defer func() { files.Close() }()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return Report{}, err
		}
		files = append(files, f)
	}
	w := walk{keys: keys, expected: expected}
	err := w.files(files)
	return w.Report, err
}

// A Remark is a record in which the log says that something happened to it.
type Remark struct {
	Seq     uint64
	Event   string // AuditRecordsLost, AuditLineTorn, AuditLogDamaged
	Details string // JSON
}

// remarks are the events of a Remark.
var remarks = []string{"AuditRecordsLost", "AuditLineTorn", "AuditLogDamaged"}

// remark takes note of a record in which the log speaks of itself.
func (w *walk) remark(text []byte) {
	for _, event := range remarks {
		if !bytes.Contains(text, []byte(event)) {
			continue
		}
		var r struct {
			EventType, EventSource, EventName string
			ServiceEventDetails               json.RawMessage
		}
		if json.Unmarshal(text, &r) == nil && r.EventType == ServiceEvent && r.EventName == event {
			w.Remarks = append(w.Remarks, Remark{w.Last.Seq, event, string(r.ServiceEventDetails)})
		}
	}
}

type openFiles []*os.File

// openAll opens all files before the first is read, so that none can be removed
// meanwhile.
func openAll(dir string) (files openFiles, err error) {
	paths, err := Files(dir)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) && len(files) == 0 {
			continue // the oldest was removed just now; that it was not too early is checked with the head
		}
		if err != nil {
			return nil, errors.Join(err, files.Close())
		}
		files = append(files, f)
	}
	return files, nil
}

// Close closes them all.
func (files openFiles) Close() (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// A walk goes through a log line by line.
type walk struct {
	Report
	keys     Keys
	expected []Mark

	file   string
	line   int
	begins string // the file that the log begins in

	key     []byte // of the file; nil if it is none of the keys
	named   string // what the file says of it
	unnamed bool   // it says nothing
}

func (w *walk) bad(seq uint64, why Reason, format string, args ...any) error {
	return &BadError{File: w.file, Line: w.line, Seq: seq, Reason: why, Err: fmt.Errorf(format, args...)}
}

func (w *walk) files(files openFiles) error {
	for i, f := range files {
		if err := w.read(f.Name(), f); err != nil {
			return err
		}
		if w.Torn > 0 && i < len(files)-1 {
			return w.bad(w.Last.Seq+1, Changed, "its line is not ended, and this is not the last file")
		}
	}
	return w.ended()
}

// errOtherKey is about what none of the keys has written.
func errOtherKey(name string) error {
	if name == "" {
		return errors.New("it was not written with this key: its mac is wrong")
	}
	return fmt.Errorf("it was written with the key %s, which is not among those that are given", name)
}

// ended checks that what is expected was there, and that one of the keys speaks for it:
// the last file's does for all before it.
func (w *walk) ended() error {
	if len(w.keys) > 0 && w.key == nil && w.Records > 0 {
		return w.bad(w.Last.Seq, Changed, "%w", errOtherKey(w.named))
	}
	for _, m := range w.expected {
		if m.Seq > w.Last.Seq {
			return w.bad(w.Last.Seq, Truncated, "it is the last one, and the log went on to record %d at least", m.Seq)
		}
	}
	return nil
}

// oldest checks that no file was removed before its time.
func (w *walk) oldest(h head) error {
	if w.Records > 0 && w.First > h.Oldest {
		w.file, w.line = w.begins, 1
		return w.bad(w.First, Missing, "the log begins with it, and must begin with record %d", h.Oldest)
	}
	return nil
}

// readers have room for the longest line.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, maxLine) }}

// read checks one file, which follows on those before.
func (w *walk) read(file string, from io.Reader) error {
	w.file, w.line = file, 0
	w.Files++
	lines := readers.Get().(*bufio.Reader)
	defer readers.Put(lines)
	lines.Reset(from)
	for {
		text, err := lines.ReadSlice('\n')
		switch {
		case err == io.EOF:
			if w.Torn = int64(len(text)); w.line == 0 {
				w.line = 1
				return w.bad(w.Last.Seq+1, Changed, "its file has no whole line")
			}
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			w.line++
			return w.bad(w.Last.Seq+1, Changed, "its line is longer than %d bytes", maxLine)
		case err != nil:
			return fmt.Errorf("read audit log %s: %w", file, err)
		}
		w.line++
		if err := w.one(text[:len(text)-1]); err != nil {
			return err
		}
	}
}

// one checks one line.
func (w *walk) one(text []byte) error {
	s, err := unseal(text)
	if err != nil {
		return w.bad(w.Last.Seq+1, Changed, "%w", err)
	}
	if w.line == 1 {
		if err := w.header(&s); err != nil {
			return err
		}
	}
	switch next := w.Last.Seq + 1; {
	case s.seq > next:
		return w.bad(s.seq, Missing, "record %d should be here", next)
	case s.seq < next:
		return w.bad(s.seq, Reordered, "record %d should be here", next)
	}
	if err := s.check(w.key, lineDomain, w.Last.Hash); err != nil {
		return w.bad(s.seq, Changed, "%w", err)
	}
	w.Last = Mark{s.seq, s.hash}
	w.Records++
	for _, m := range w.expected {
		if m.Seq == s.seq && m.Hash != s.hash {
			return w.bad(s.seq, Changed, "its hash was %s", m.Hash)
		}
	}
	w.remark(text)
	return nil
}

// header checks the first line of a file. Where the walk begins there, what was
// before is taken from it.
func (w *walk) header(s *sealed) error {
	h, err := s.header()
	if err != nil {
		return w.bad(s.seq, Changed, "%w", err)
	}
	if w.Records == 0 {
		w.begins = w.file
		if s.seq == 0 || s.seq == 1 && h.Previous != (Hash{}) {
			return w.bad(s.seq, Changed, "the first record of all has nothing before it")
		}
		w.First, w.Last = s.seq, Mark{s.seq - 1, h.Previous}
	} else if h.Previous != w.Last.Hash && s.seq == w.Last.Seq+1 {
		return w.bad(s.seq, Changed, "its file does not follow on the one before")
	}
	w.key, w.named, w.unnamed = w.keys.of(h.Key, s), h.Key, h.Key == ""
	if named, ok := beginning(w.file); ok && named != s.seq {
		return w.bad(s.seq, Reordered, "its file has the name of one that begins with record %d", named)
	}
	return nil
}
