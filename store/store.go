package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"rehost/block"
)

// Options of a [Store]. The zero value is the default.
type Options struct {
	ReadOnly    bool         // write nothing, take no lock: beside a live writer, or on a read-only mount
	SegmentSize int64        // bytes, after which a segment is sealed; 512 MiB if zero
	Reserve     int64        // bytes of the file system that are left free for others: less is [ErrFull]
	Logger      *slog.Logger // of what recovery dropped; nowhere if nil

	fs        fileSystem
	chunkSize int // bytes written at a time; the largest record must fit
}

const (
	defaultSegmentSize = 512 << 20
	defaultChunkSize   = 4 << 20
)

// A Store is a directory of replicas. All methods may be called concurrently.
type Store struct {
	dir  string
	keys Keyring
	opts Options

	mu       sync.Mutex
	closed   bool
	replicas map[string]*Replica // those in use
}

// Open opens the store in dir, which is created if it does not exist and the
// store may write.
func Open(dir string, keys Keyring, opts Options) (*Store, error) {
	if opts.SegmentSize == 0 {
		opts.SegmentSize = defaultSegmentSize
	}
	if opts.SegmentSize < 0 || opts.SegmentSize > maxSegment/2 {
		return nil, fmt.Errorf("open store %s: segment size %d is out of range", dir, opts.SegmentSize)
	}
	if opts.chunkSize == 0 {
		opts.chunkSize = defaultChunkSize
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.fs == nil {
		opts.fs = osFS{opts.Reserve}
	}
	if !opts.ReadOnly {
		if err := opts.fs.MakeDir(dir); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	if _, err := opts.fs.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Store{dir: dir, keys: keys, opts: opts, replicas: map[string]*Replica{}}, nil
}

// Close closes every replica of the store, and their writers. It may be called
// twice.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for id, r := range s.replicas {
		errs = append(errs, r.close(ErrClosed))
		delete(s.replicas, id)
	}
	return errors.Join(errs...)
}

// plainName is what may become a directory's name.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// check is what all methods that name a replica begin with, under the lock.
func (s *Store) check(id string, write bool) error {
	switch {
	case s.closed:
		return ErrClosed
	case !plainName.MatchString(id):
		return fmt.Errorf("%q: %w", id, ErrBadID)
	case write && s.opts.ReadOnly:
		return ErrReadOnly
	}
	return nil
}

// Create makes an empty replica of the source server id, encrypted with a new
// data key that is wrapped by the keyring's key keyID (its default one if empty).
// [ErrExists] if there is one already.
func (s *Store) Create(ctx context.Context, id string, disks []block.Disk, keyID string) (*Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.check(id, true)
	if err == nil {
		err = checkDisks(disks)
	}
	if err == nil {
		err = s.create(ctx, id, disks, keyID)
	}
	if err != nil {
		return nil, fmt.Errorf("create replica %s: %w", id, classify(err))
	}
	return s.open(ctx, id)
}

// create builds the replica under another name, so that it exists whole or not
// at all.
func (s *Store) create(ctx context.Context, id string, disks []block.Disk, keyID string) error {
	fsys, dir := s.opts.fs, filepath.Join(s.dir, id)
	switch names, err := fsys.ReadDir(dir); {
	case slices.Contains(names, keyName):
		return ErrExists
	case err == nil: // the rest of an interrupted Delete
		if err := s.removeAll(dir); err != nil {
			return err
		}
	case !isNotExist(err):
		return err
	}
	dataKey, replica := make([]byte, dataKeySize), newID()
	rand.Read(dataKey)
	wrapped, err := s.keys.Wrap(ctx, keyID, dataKey, keyContext(id, replica))
	if err != nil {
		return err
	}
	tmp := filepath.Join(s.dir, hiddenPrefix+id+tmpSuffix)
	if err := s.removeAll(tmp); err != nil && !isNotExist(err) {
		return err
	}
	if err := fsys.MakeDir(tmp); err != nil {
		return err
	}
	doc := keyDocument{Format: metaFormat, Server: id, Replica: replica, Key: wrapped}
	meta := metadata{Format: metaFormat, Server: id, Replica: replica, Created: time.Now().UTC().Truncate(time.Second),
		Disks: []diskTable{{Disks: disks}}}
	for _, step := range []func() error{
		func() error { return replaceFile(fsys, filepath.Join(tmp, keyName), marshal(doc)) },
		func() error { return writeMeta(fsys, tmp, dataKey, meta) },
		func() error { return fsys.Rename(tmp, dir) },
		func() error { return fsys.SyncDir(s.dir) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// hiddenPrefix begins names of directories that are no replicas.
const hiddenPrefix = "."

func checkDisks(disks []block.Disk) error {
	seen := map[block.DiskID]bool{}
	for _, d := range disks {
		if d.Size <= 0 || seen[d.ID] {
			return fmt.Errorf("disk %v (%s): size %d, or its number is given twice", d.ID, d.Name, d.Size)
		}
		seen[d.ID] = true
	}
	return nil
}

// Replica opens the replica of the source server id. All callers in this process
// get the same one, so that readers see what its writer commits. [ErrNotFound] if
// there is none.
func (s *Store) Replica(ctx context.Context, id string) (*Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(id, false); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	return s.open(ctx, id)
}

func (s *Store) open(ctx context.Context, id string) (*Replica, error) {
	if r := s.replicas[id]; r != nil && !r.replaced() {
		return r, nil
	} else if r != nil { // another process has deleted it, and perhaps made a new one
		delete(s.replicas, id)
		if err := r.close(ErrFenced); err != nil {
			s.opts.Logger.Warn("close what was deleted", "replica", id, "err", err)
		}
	}
	r, err := openReplica(ctx, s, id)
	if err != nil {
		return nil, fmt.Errorf("open replica %s: %w", id, err)
	}
	s.replicas[id] = r
	return r, nil
}

// Replicas lists the source servers that have a replica here, in order.
func (s *Store) Replicas() ([]string, error) {
	names, err := s.opts.fs.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list replicas: %w", err)
	}
	var ids []string
	for _, name := range names {
		if strings.HasPrefix(name, hiddenPrefix) || !plainName.MatchString(name) {
			continue
		}
		if files, err := s.opts.fs.ReadDir(filepath.Join(s.dir, name)); err == nil && slices.Contains(files, keyName) {
			ids = append(ids, name)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Delete destroys the replica of the source server id: first its wrapped key,
// without which nothing of it can be read, then its files. A writer in this
// process is fenced; one in another process is an error ([ErrLocked]).
func (s *Store) Delete(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.check(id, true)
	if err == nil {
		err = s.delete(id)
	}
	if err != nil {
		return fmt.Errorf("delete replica %s: %w", id, err)
	}
	return nil
}

func (s *Store) delete(id string) error {
	fsys, dir := s.opts.fs, filepath.Join(s.dir, id)
	if _, err := fsys.ReadDir(dir); err != nil {
		if isNotExist(err) {
			return ErrNotFound
		}
		return err
	}
	lock, err := fsys.Lock(filepath.Join(dir, lockName))
	r := s.replicas[id]
	if err != nil && (r == nil || !r.writing()) {
		return err
	}
	if r != nil {
		delete(s.replicas, id)
		if err := r.close(ErrFenced); err != nil {
			s.opts.Logger.Warn("close before delete", "replica", id, "err", err)
		}
	}
	if lock == nil { // the writer had it
		if lock, err = fsys.Lock(filepath.Join(dir, lockName)); err != nil {
			return err
		}
	}
	defer lock.Close()
	if err := shred(fsys, filepath.Join(dir, keyName)); err != nil && !isNotExist(err) {
		return err
	}
	return s.removeAll(dir)
}

// shred overwrites a file before it removes it. Where the file system or the
// device keeps old copies, what protects the replica is that the key which
// wrapped its data key is not in the store.
func shred(fsys fileSystem, name string) error {
	f, err := fsys.OpenWrite(name)
	if err != nil {
		return err
	}
	n, err := f.Size()
	if err == nil {
		noise := make([]byte, n)
		rand.Read(noise)
		_, err = f.WriteAt(noise, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Remove(name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// removeAll removes a directory of plain files.
func (s *Store) removeAll(dir string) error {
	names, err := s.opts.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.opts.fs.Remove(filepath.Join(dir, name)); err != nil && !isNotExist(err) {
			return err
		}
	}
	if err := s.opts.fs.Remove(dir); err != nil {
		return err
	}
	return s.opts.fs.SyncDir(s.dir)
}
