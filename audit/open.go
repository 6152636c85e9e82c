package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxTorn is how much of a torn line is kept, in bytes.
const maxTorn = 32 << 10

// Open goes on with the log in a directory, or begins it. What a crash has torn is
// set aside in a record; a log that is not what was written is left as it is, and
// gone on with in a new file that says so.
func Open(dir string, o Options) (*Log, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, opts: o, repeats: map[stream]map[likeness]*repeat{}, foldable: foldable, stop: make(chan struct{}), done: make(chan struct{})}
	if err := l.open(); err != nil {
		if l.f != nil {
			err = errors.Join(err, l.f.Close())
		}
		return nil, fmt.Errorf("open audit log %s: %w", dir, err)
	}
	go l.syncing()
	return l, nil
}

func (l *Log) open() error {
	if err := l.removeUnfinished(); err != nil {
		return err
	}
	files, err := Files(l.dir)
	if err != nil {
		return err
	}
	h, headErr := readHead(l.dir, l.opts.Keys)
	if errors.Is(headErr, fs.ErrNotExist) && len(files) == 0 {
		// The head comes first: a log without one has lost it.
		if err := l.writeHead(Mark{}, 1); err != nil {
			return err
		}
		h.Oldest, headErr = 1, nil
	}
	if l.oldest = max(h.Oldest, 1); len(files) == 0 && headErr == nil && h.seq == 0 {
		return l.rotate("first start") // or the one that a crash has cut off
	}
	var bad *BadError
	if headErr != nil && !errors.Is(headErr, fs.ErrNotExist) && !errors.As(headErr, &bad) {
		return headErr
	}
	w, err := l.walkLast(files, h)
	if err == nil {
		err = headErr
	}
	switch {
	case errors.As(err, &bad), errors.Is(err, fs.ErrNotExist):
		return l.goOnAfter(err, w, h)
	case err != nil:
		return err
	}
	l.last, l.synced = w.Last, Mark{h.seq, h.Last}
	if err := l.resume(files[len(files)-1], w.Torn, w.key); err != nil || bytes.Equal(w.key, l.key()) && !w.unnamed {
		return err
	}
	return l.rotate("key") // a file has one key
}

func (l *Log) removeUnfinished() error {
	entries, err := os.ReadDir(l.dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), unfinished) {
			err = errors.Join(err, os.Remove(filepath.Join(l.dir, e.Name())))
		}
	}
	return err
}

// walkLast checks the newest file, which is the one that a crash can have torn;
// the others are for Verify.
func (l *Log) walkLast(files []string, h head) (*walk, error) {
	w := &walk{keys: l.opts.Keys, expected: []Mark{{h.seq, h.Last}}, file: l.dir}
	opened := openFiles{}
	for _, path := range files[max(0, len(files)-1):] {
		f, err := os.Open(path)
		if err != nil {
			return w, err
		}
		opened = append(opened, f)
	}
	err := w.files(opened)
	if len(files) > 0 && err == nil && oldestOf(files) > max(h.Oldest, 1) {
		err = w.bad(oldestOf(files), Missing, "the log begins with it, and must begin with record %d", h.Oldest)
	}
	return w, errors.Join(err, opened.Close())
}

// resume goes on in a file, whose last line may be torn. One write replaces that
// by its record, which is longer: at no time are the bytes in neither. It has the key of
// its file.
func (l *Log) resume(path string, torn int64, key []byte) (err error) {
	if l.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return err
	}
	l.path = path
	end, err := l.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	l.size = end - torn
	if torn == 0 {
		return nil
	}
	half := make([]byte, min(torn, maxTorn))
	if _, err := l.f.ReadAt(half, l.size); err != nil {
		return err
	}
	text, err := l.encode(Event("AuditLineTorn", map[string]any{"bytes": torn, "text": base64.StdEncoding.EncodeToString(half)}))
	if err != nil {
		return err
	}
	line, h := seal(key, lineDomain, l.last.Hash, l.last.Seq+1, text) // never in another file
	if _, err := l.f.WriteAt(line, l.size); err != nil {
		return err
	}
	l.wrote(line, h)
	return l.f.Truncate(l.size)
}

// goOnAfter begins a file behind a log that is not what was written, with numbers
// that none of its records has had.
func (l *Log) goOnAfter(damage error, w *walk, h head) error {
	l.last = w.Last
	if h.seq > l.last.Seq {
		l.last = Mark{h.seq, h.Last}
	}
	files, err := Files(l.dir)
	if err != nil {
		return err
	}
	if seq := lastSeq(files); seq > l.last.Seq {
		l.last = Mark{Seq: seq}
	}
	l.opts.Logger.Error("the audit log was damaged, and goes on in a new file", "err", damage)
	if err := l.rotate("damage"); err != nil {
		return err
	}
	text, err := l.encode(Event("AuditLogDamaged", map[string]any{"reason": damage.Error()}))
	if err != nil {
		return err
	}
	return l.write(text)
}

func oldestOf(files []string) uint64 { seq, _ := beginning(files[0]); return seq }

// lastSeq is the highest number that a record of the newest file can have had,
// whatever is left of it: as many as there are lines, or what one of them says.
func lastSeq(files []string) (last uint64) {
	if len(files) == 0 {
		return 0
	}
	path := files[len(files)-1]
	first, _ := beginning(path)
	last = first - 1
	text, err := os.ReadFile(path)
	if err != nil {
		return first
	}
	for line := range strings.Lines(string(text)) {
		last++
		if s, err := unseal([]byte(strings.TrimSuffix(line, "\n"))); err == nil && s.seq < last+uint64(len(text)) {
			last = max(last, s.seq)
		}
	}
	return max(first, last)
}
