package store

import (
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// crashFS is a file system in memory that knows what has been synced. crash
// returns a state that a power cut may leave: of each file what was durable, and
// of the changes since any subset, sector by sector; of each directory any subset
// of the entries changed since it was synced.
type crashFS struct {
	mu    sync.Mutex
	rand  *rand.Rand
	root  map[string]*inode // by path; directories are inodes too
	old   map[string]*inode // as of the last syncs of directories
	ops   []dirOp           // since then
	locks map[string]bool

	// Things to break.
	skipSync bool  // files' Sync does nothing, and says it did
	writes   int   // count down, when positive; then fail with failWith
	failWith error // nil: never
}

type dirOp struct {
	path string
	node *inode // nil removes
	from string // of a rename
}

const sector = 512

type inode struct {
	dir     bool
	data    []byte
	durable []byte
	changes []change // since the last sync
}

type change struct {
	off  int64
	data []byte // nil: the size becomes off
}

func newCrashFS(r *rand.Rand) *crashFS {
	return &crashFS{rand: r, root: map[string]*inode{}, old: map[string]*inode{}, locks: map[string]bool{}}
}

func (c *crashFS) err(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// crash is the power cut. The old file system must not be used any more.
func (c *crashFS) crash() *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := newCrashFS(c.rand)
	tree := maps.Clone(c.old)
	// Directory entries reach the disk in order here or in any order, as either
	// happens; a rename whose source never came is not possible then.
	ordered, upTo := c.rand.IntN(2) == 0, c.rand.IntN(len(c.ops)+1)
	for i, op := range c.ops {
		if ordered && i >= upTo || !ordered && c.rand.IntN(2) == 0 {
			continue
		}
		if op.node == nil {
			delete(tree, op.path)
			continue
		}
		tree[op.path] = op.node
		delete(tree, op.from)
	}
	for path, node := range tree {
		fresh := &inode{dir: node.dir, durable: node.crashed(c.rand)}
		fresh.data = slices.Clone(fresh.durable)
		n.root[path], n.old[path] = fresh, fresh
	}
	return n
}

func (n *inode) crashed(r *rand.Rand) []byte {
	out := slices.Clone(n.durable)
	if len(n.changes) == 0 {
		return out
	}
	keep := []float64{0, 0.5, 0.9, 1}[r.IntN(4)]
	for _, ch := range n.changes {
		if ch.data == nil {
			if r.Float64() < keep {
				out = resize(out, ch.off)
			}
			continue
		}
		for i := 0; i < len(ch.data); {
			end := min(len(ch.data), int((ch.off+int64(i))/sector+1)*sector-int(ch.off))
			if r.Float64() < keep {
				if at := ch.off + int64(end); int64(len(out)) < at {
					out = resize(out, at)
				}
				copy(out[ch.off+int64(i):], ch.data[i:end])
			}
			i = end
		}
	}
	return out
}

func resize(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

func (c *crashFS) change(op dirOp) {
	if op.node == nil {
		delete(c.root, op.path)
	} else {
		c.root[op.path] = op.node
		delete(c.root, op.from)
	}
	c.ops = append(c.ops, op)
}

func (c *crashFS) Create(name string, _ bool) (file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root[name] != nil {
		return nil, c.err("create", name, fs.ErrExist)
	}
	node := &inode{}
	c.change(dirOp{path: name, node: node})
	return &crashFile{c, node, name}, nil
}

func (c *crashFS) Open(name string) (file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.root[name]
	if node == nil {
		return nil, c.err("open", name, fs.ErrNotExist)
	}
	return &crashFile{c, node, name}, nil
}

func (c *crashFS) OpenWrite(name string) (file, error) { return c.Open(name) }

// Rename moves a file, or a directory with all that is in it; the latter is
// durable at once, as the store syncs it before it goes on.
func (c *crashFS) Rename(from, to string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.root[from]
	if node == nil {
		return c.err("rename", from, fs.ErrNotExist)
	}
	if !node.dir {
		c.change(dirOp{path: to, node: node, from: from})
		return nil
	}
	for _, tree := range []map[string]*inode{c.root, c.old} {
		for path, node := range maps.Clone(tree) {
			if inside, ok := strings.CutPrefix(path+"/", from+"/"); ok {
				delete(tree, path)
				tree[strings.TrimSuffix(to+"/"+inside, "/")] = node
			}
		}
	}
	return nil
}

func (c *crashFS) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root[name] == nil {
		return c.err("remove", name, fs.ErrNotExist)
	}
	c.change(dirOp{path: name})
	return nil
}

func (c *crashFS) ReadDir(name string) (names []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.root[name]; n == nil || !n.dir {
		return nil, c.err("readdir", name, fs.ErrNotExist)
	}
	for path := range c.root {
		if filepath.Dir(path) == name && path != name {
			names = append(names, filepath.Base(path))
		}
	}
	return names, nil
}

func (c *crashFS) SyncDir(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops = slices.DeleteFunc(c.ops, func(op dirOp) bool {
		if filepath.Dir(op.path) != name {
			return false
		}
		if op.node == nil {
			delete(c.old, op.path)
		} else {
			c.old[op.path] = op.node
			delete(c.old, op.from)
		}
		return true
	})
	return nil
}

func (c *crashFS) MakeDir(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; name != "." && name != "/"; name = filepath.Dir(name) {
		if c.root[name] == nil {
			c.root[name] = &inode{dir: true}
			c.old[name] = c.root[name]
		}
	}
	return nil
}

func (c *crashFS) Lock(name string) (io.Closer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.locks[name] {
		return nil, ErrLocked
	}
	c.locks[name] = true
	return unlocker(func() { c.mu.Lock(); defer c.mu.Unlock(); delete(c.locks, name) }), nil
}

type unlocker func()

func (u unlocker) Close() error { u(); return nil }

type crashFile struct {
	fs   *crashFS
	node *inode
	name string
}

func (f *crashFile) ReadAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.node.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) broken(op string) error {
	if f.fs.failWith == nil {
		return nil
	}
	if f.fs.writes--; f.fs.writes >= 0 {
		return nil
	}
	return f.fs.err(op, f.name, f.fs.failWith)
}

func (f *crashFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.broken("write"); err != nil {
		return 0, err
	}
	if end := off + int64(len(b)); end > int64(len(f.node.data)) {
		f.node.data = resize(f.node.data, end)
	}
	copy(f.node.data[off:], b)
	f.node.changes = append(f.node.changes, change{off, slices.Clone(b)})
	return len(b), nil
}

func (f *crashFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.node.data = resize(f.node.data, size)
	f.node.changes = append(f.node.changes, change{off: size})
	return nil
}

func (f *crashFile) Allocate(size int64) error { return nil }

func (f *crashFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.broken("sync"); err != nil {
		return err
	}
	if !f.fs.skipSync {
		f.node.durable, f.node.changes = slices.Clone(f.node.data), nil
	}
	return nil
}

func (f *crashFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.node.data)), nil
}

func (f *crashFile) Close() error { return nil }
