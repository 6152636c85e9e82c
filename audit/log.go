package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// What a log is allowed if nothing is said: it may not fill the disk that the
// replicas are on. What is kept longer is copied elsewhere.
const (
	DefaultFileSize = 64 << 20 // bytes
	DefaultFiles    = 9
	minFileSize     = 4 << 10
	minFiles        = 2
)

// maxWaiting is how many records wait in memory while none can be written.
const maxWaiting = 1024

// Options of a [Log].
type Options struct {
	Keys     Keys  // of the macs, 32 bytes each: the first one is required, and writes
	FileSize int64 // bytes that one file may have; 0 is DefaultFileSize
	Files    int   // how many files are kept; 0 is DefaultFiles

	Region, Account string    // of records that do not say
	Mirror          io.Writer // gets each line too, as far as it takes them; nil for none

	SyncEvery time.Duration    // how much a power cut may cost; 0 is a second
	Now       func() time.Time // nil is time.Now
	Logger    *slog.Logger     // nil discards; is told when writing begins and ends to fail
}

func (o *Options) validate() error {
	if err := o.Keys.validate(); err != nil {
		return err
	}
	if o.FileSize == 0 {
		o.FileSize = DefaultFileSize
	}
	if o.Files == 0 {
		o.Files = DefaultFiles
	}
	if o.FileSize < minFileSize || o.Files < minFiles {
		return fmt.Errorf("an audit log of %d files of %d bytes: want at least %d of %d", o.Files, o.FileSize, minFiles, minFileSize)
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// A Log is written by one process at a time, which the caller sees to. All
// methods may be called concurrently. Its states:
//
//	writing <──> failing (records wait, and are counted beyond maxWaiting) ──> closed
type Log struct {
	dir  string
	opts Options

	mu      sync.Mutex
	f       *os.File  // nil once closed
	path    string    // of f
	size    int64     // of f, up to the end of the last whole line
	last    Mark      // of the last line
	oldest  uint64    // where the oldest file begins
	waiting [][]byte  // records that could not be written
	lost    uint64    // records beyond those
	since   time.Time // when the first of them could not be
	failure error     // why; nil while writing

	repeats   map[stream]map[likeness]*repeat // calls whose repetitions are counted
	repeating int                             // how many
	foldable  func(*Record) bool              // constant; a test breaks it

	headMu sync.Mutex
	synced Mark // in the head; never goes back

	stop, done chan struct{}
	once       sync.Once
}

// ErrClosed is the answer of a log that was closed.
var ErrClosed = errors.New("audit log is closed")

// Append writes a record. When it returns nil the kernel has the record, so that
// it outlives this process; the disk has it after [Options.SyncEvery]. After an error
// it waits to be written, see [Log.Ready].
func (l *Log) Append(r Record) error {
	text, err := l.encode(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end(streamOf(&r))
	return l.add(text)
}

// add writes an encoded record after those that wait.
func (l *Log) add(text []byte) error {
	if l.f == nil {
		return ErrClosed
	}
	if len(l.waiting) < maxWaiting {
		l.waiting = append(l.waiting, text)
	} else {
		l.lost++
	}
	return l.drain()
}

// Ready is nil if all records so far were written, or could be now. Who changes
// something asks first.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return ErrClosed
	}
	return l.drain()
}

// key is the one that writes.
func (l *Log) key() []byte { return l.opts.Keys[0] }

// encode is the members of the record, completed.
func (l *Log) encode(r Record) ([]byte, error) {
	r.EventVersion, r.EventID, r.ManagementEvent, r.EventCategory = EventVersion, NewID(), true, "Management"
	if r.EventTime.IsZero() {
		r.EventTime = l.opts.Now()
	}
	r.EventTime = r.EventTime.UTC().Truncate(time.Second)
	if r.AWSRegion == "" {
		r.AWSRegion = l.opts.Region
	}
	if r.RecipientAccountID == "" {
		r.RecipientAccountID = l.opts.Account
	}
	if r.EventType == "" {
		r.EventType = APICall
	}
	text, err := r.encode()
	if err != nil {
		return nil, err
	}
	return members(text), nil
}

// Event is the record of something that the service did by itself.
func Event(name string, details any) Record {
	return Record{EventType: ServiceEvent, EventSource: EventSource, EventName: name, ServiceEventDetails: details,
		UserIdentity: UserIdentity{Type: "AWSService", InvokedBy: EventSource}}
}

// drain writes what waits. The first that cannot be written ends it.
func (l *Log) drain() error {
	for len(l.waiting) > 0 {
		if err := l.write(l.waiting[0]); err != nil {
			return l.failed(err)
		}
		l.waiting = l.waiting[1:]
	}
	l.waiting = nil
	if l.lost > 0 {
		text, err := l.encode(Event("AuditRecordsLost", map[string]any{"records": l.lost, "since": l.since.UTC(), "reason": l.failure.Error()}))
		if err == nil {
			err = l.write(text)
		}
		if err != nil {
			return l.failed(err)
		}
	}
	if l.failure != nil {
		l.opts.Logger.Warn("the audit log is written again", "lost", l.lost, "since", l.since)
		l.failure, l.lost = nil, 0
	}
	return nil
}

func (l *Log) failed(err error) error {
	err = fmt.Errorf("write audit log: %w", err)
	if l.failure == nil {
		l.since = l.opts.Now()
		l.opts.Logger.Error("the audit log cannot be written: what changes anything is refused until it can", "err", err)
	}
	l.failure = err
	return err
}

// write writes one line, into a new file if this one is full.
func (l *Log) write(members []byte) error {
	line, h := seal(l.key(), lineDomain, l.last.Hash, l.last.Seq+1, members)
	if l.size+int64(len(line)) > l.opts.FileSize {
		if err := l.rotate("full"); err != nil {
			return err
		}
		line, h = seal(l.key(), lineDomain, l.last.Hash, l.last.Seq+1, members)
	}
	if _, err := l.f.WriteAt(line, l.size); err != nil {
		return errors.Join(err, l.f.Truncate(l.size)) // half a line is no record
	}
	l.wrote(line, h)
	return nil
}

func (l *Log) wrote(line []byte, h Hash) {
	l.size += int64(len(line))
	l.last = Mark{l.last.Seq + 1, h}
	if l.opts.Mirror != nil {
		_, _ = l.opts.Mirror.Write(line) // the files are the log
	}
}

// rotate begins a new file, once the one before is on the disk.
func (l *Log) rotate(why string) error {
	if l.f != nil {
		if err := l.f.Sync(); err != nil {
			return err
		}
	}
	old := l.f
	if err := l.begin(why); err != nil {
		return err
	}
	if old != nil {
		if err := old.Close(); err != nil {
			l.opts.Logger.Warn("close an audit file", "err", err)
		}
	}
	return l.remove()
}

// begin begins a file after the last line.
func (l *Log) begin(why string) error {
	text, err := l.encode(Event("AuditFileBegun", map[string]any{"reason": why}))
	if err != nil {
		return err
	}
	first := fmt.Appendf(nil, `"magic":%q,"version":%d,"key":%q,"previousHash":%q,`, magic, version, keyName(l.key()), l.last.Hash)
	line, h := seal(l.key(), lineDomain, l.last.Hash, l.last.Seq+1, append(first, text...))
	path := filepath.Join(l.dir, name(l.last.Seq+1))
	f, err := place(path, line)
	if err != nil { // it may be there and not be on the disk: what comes next goes into the old one
		return errors.Join(err, ignoreMissing(os.Remove(path)))
	}
	l.f, l.path, l.size = f, path, 0
	l.wrote(line, h)
	return nil
}

// remove removes the oldest files beyond those that are kept. The head says so before.
func (l *Log) remove() error {
	files, err := Files(l.dir)
	if err != nil {
		return err
	}
	gone := files[:max(0, len(files)-l.opts.Files)]
	if len(gone) > 0 { // else it stays: others may have removed some
		l.oldest = oldestOf(files[len(gone):])
	}
	if err := l.writeHead(l.last, l.oldest); err != nil {
		return err
	}
	for _, path := range gone {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// writeHead says that the log is on the disk up to a mark.
func (l *Log) writeHead(m Mark, oldest uint64) error {
	l.headMu.Lock()
	defer l.headMu.Unlock()
	if m.Seq < l.synced.Seq {
		return nil // a new file was begun meanwhile
	}
	text, err := head{m.Seq, oldest, m.Hash}.encode(l.key())
	if err != nil {
		return err
	}
	f, err := place(filepath.Join(l.dir, headName), text)
	if err != nil {
		return fmt.Errorf("write the head: %w", err)
	}
	l.synced = m
	return f.Close()
}

// Sync brings what was written so far to the disk.
func (l *Log) Sync() error {
	l.mu.Lock()
	path, last, oldest := l.path, l.last, l.oldest
	l.mu.Unlock()
	l.headMu.Lock()
	have := l.synced
	l.headMu.Unlock()
	if last.Seq <= have.Seq {
		return nil
	}
	// By a descriptor of its own, so that nobody has to wait who writes meanwhile.
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // many files were begun since, each of which was synced
	}
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return l.writeHead(last, oldest)
}

// syncing calls Sync until the log is closed.
func (l *Log) syncing() {
	defer close(l.done)
	tick := time.NewTicker(l.opts.SyncEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
			l.sumDue()
			err := l.Sync()
			if err != nil && !failing {
				l.opts.Logger.Error("the audit log cannot be synced: a power cut may cost more than its last second", "err", err)
			}
			failing = err != nil
		}
	}
}

// Record is [Log.Append] for who can do nothing about a failure, which was logged.
func (l *Log) Record(_ context.Context, r Record) { _ = l.Append(r) }

// Close writes what waits, as far as it can, and syncs. It may be called twice.
func (l *Log) Close() (err error) {
	l.once.Do(func() {
		close(l.stop)
		<-l.done
		l.endAll()
		l.mu.Lock()
		err = l.drain()
		l.mu.Unlock()
		err = errors.Join(err, l.Sync())
		l.mu.Lock()
		defer l.mu.Unlock()
		err = errors.Join(err, l.f.Close())
		l.f = nil
	})
	return err
}
