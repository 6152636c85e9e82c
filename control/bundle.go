package control

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
)

// Support bundles come from agents, in parts, and are given to operators as they came: they
// are never unpacked here. A bundle is a file that is named by its task; it counts once the
// task says so. What no task speaks of is removed.

const (
	maxBundle     = 8 << 20   // bytes; the API's model has it, too
	maxBundles    = 512 << 20 // of all together, those that may still come included
	bundlePart    = 512 << 10 // most bytes in a call: base64 and the rest of the body come on top
	bundleKept    = 7 * 24 * time.Hour
	bundleStarts  = 5 // how often an agent may begin anew
	bundleEnding  = ".tar.gz"
	supportFolder = 0o700
)

// A bundle is what a task says of its file.
type bundle struct {
	Size      int64  `json:"size"`
	Sum       string `json:"sha256"`
	Starts    int    `json:"starts"`
	KeptUntil string `json:"keptUntil,omitempty"` // set once it is whole
}

func (c *Service) bundlePath(id string) string { return filepath.Join(c.opts.Bundles, id+bundleEnding) }

// roomForBundle refuses a task whose bundle might not fit.
func (c *Service) roomForBundle(ctx context.Context, tx *sql.Tx) error {
	if c.opts.Bundles == "" {
		return conflict(isTask, "", "this service keeps no support bundles")
	}
	var n int64
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM agent_tasks WHERE kept_until <> '' OR `+openTask).Scan(&n); err != nil {
		return err
	}
	if (n+1)*maxBundle > maxBundles {
		return conflict(isTask, "", fmt.Sprintf("%d support bundles are kept or under way, which is the most there may be: they are removed %d days after they came", n, bundleKept/(24*time.Hour)))
	}
	return nil
}

// SendSupportBundle implements SendSupportBundleForRehost. Where the agent is elsewhere than
// the file, it is told where to go on; a bundle with another sum begins anew.
func (c *Service) SendSupportBundle(ctx context.Context, in *formgn.SendSupportBundleForRehostRequest) (*formgn.SendSupportBundleForRehostResponse, error) {
	if n := int64(len(in.Content)); n == 0 || n > bundlePart || in.Offset > in.SizeBytes-n {
		return nil, invalid("content", "a part has 1 to %d bytes and ends with the bundle", bundlePart)
	}
	c.bundles.Lock()
	defer c.bundles.Unlock()
	if t, err := taskOf(ctx, c.db.reader, in.SourceServerID, in.TaskID); err == nil && t.State == formgn.AgentTaskStateSucceeded && t.Bundle.Sum == in.Sha256 {
		return &formgn.SendSupportBundleForRehostResponse{NextOffset: in.SizeBytes}, nil // its answer was lost
	}
	t, err := c.beginBundle(ctx, in)
	if err != nil {
		return nil, err
	}
	size, err := appendBundle(c.bundlePath(t.ID), in.Offset, in.Content)
	if err != nil {
		return nil, fmt.Errorf("keep support bundle of %s: %w", t.ServerID, err)
	}
	if size < in.SizeBytes {
		if in.Offset > 0 {
			awsapi.Routine(ctx)
		}
		return &formgn.SendSupportBundleForRehostResponse{NextOffset: size}, nil
	}
	return c.endBundle(ctx, t)
}

// beginBundle finds the task, and says in it what is coming if that is news.
func (c *Service) beginBundle(ctx context.Context, in *formgn.SendSupportBundleForRehostRequest) (*agentTask, error) {
	t, err := c.openTaskOf(ctx, c.db.reader, in.SourceServerID, in.TaskID)
	if err != nil {
		return nil, orNotFound(err, in.SourceServerID)
	}
	if t.Bundle != nil && t.Bundle.Sum == in.Sha256 && t.Bundle.Size == in.SizeBytes {
		return t, nil
	}
	if err := removeFile(c.bundlePath(t.ID)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.opts.Bundles, supportFolder); err != nil {
		return nil, err
	}
	failed := false
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		if t, err = c.openTaskOf(ctx, tx, in.SourceServerID, in.TaskID); err != nil {
			return orNotFound(err, in.SourceServerID)
		}
		b := &bundle{Size: in.SizeBytes, Sum: in.Sha256, Starts: 1}
		if t.Bundle != nil {
			b.Starts += t.Bundle.Starts
		}
		t.Bundle = b
		if failed = b.Starts > bundleStarts; failed {
			t.end(formgn.AgentTaskStateFailed, fmt.Sprintf("the agent has begun to send a bundle %d times", b.Starts), c.now())
		}
		return putTask(ctx, tx, t)
	})
	if err == nil && failed {
		c.happened(ctx, agentTaskFailed, t.ServerID, "task", t.ID, "kind", t.Kind, "why", t.Message)
		err = conflict(isTask, t.ID, fmt.Sprintf("task %s has ended: %s", t.ID, t.Message))
	}
	return t, err
}

// endBundle looks whether the file is what was announced, and ends the task if it is. If it
// is not, as after a power cut, the agent sends it again.
func (c *Service) endBundle(ctx context.Context, t *agentTask) (*formgn.SendSupportBundleForRehostResponse, error) {
	id, announced := t.ID, *t.Bundle
	size, sum, err := syncBundle(c.bundlePath(id))
	if err != nil {
		return nil, fmt.Errorf("keep support bundle of %s: %w", t.ServerID, err)
	}
	good := size == announced.Size && sum == announced.Sum
	err = c.db.update(ctx, func(tx *sql.Tx) (err error) {
		if t, err = c.openTaskOf(ctx, tx, t.ServerID, id); err != nil {
			return err
		}
		if !good {
			t.Bundle.Sum = "" // what comes next begins anew
			return putTask(ctx, tx, t)
		}
		t.end(formgn.AgentTaskStateSucceeded, "", c.now())
		t.Bundle.KeptUntil = stamp(c.now().Add(bundleKept))
		if err := c.forget(ctx, tx, `server_id = ? AND kept_until <> ''`, t.ServerID); err != nil { // the last one is enough
			return err
		}
		return putTask(ctx, tx, t)
	})
	if err != nil {
		return nil, orNotFound(err, t.ServerID)
	}
	if !good {
		return &formgn.SendSupportBundleForRehostResponse{NextOffset: 0}, removeFile(c.bundlePath(id))
	}
	c.happened(ctx, bundleReceived, t.ServerID, "task", id, "bytes", size, "sha256", sum)
	return &formgn.SendSupportBundleForRehostResponse{NextOffset: size}, nil
}

// DownloadSupportBundle implements DownloadSupportBundleForRehost.
func (c *Service) DownloadSupportBundle(ctx context.Context, in *formgn.DownloadSupportBundleForRehostRequest) (*formgn.DownloadSupportBundleForRehostResponse, error) {
	t, err := taskOf(ctx, c.db.reader, in.SourceServerID, in.TaskID)
	if err != nil {
		return nil, err
	}
	if t.Bundle == nil || t.Bundle.KeptUntil == "" {
		return nil, conflict(isTask, t.ID, fmt.Sprintf("task %s is %s and has no support bundle, or it has been removed", t.ID, t.State))
	}
	if in.Offset >= t.Bundle.Size {
		return nil, invalid("offset", "the bundle has %d bytes", t.Bundle.Size)
	}
	f, err := os.Open(c.bundlePath(t.ID))
	if err != nil {
		return nil, fmt.Errorf("read support bundle: %w", err)
	}
	defer f.Close()
	part := make([]byte, min(bundlePart, t.Bundle.Size-in.Offset))
	if _, err := f.ReadAt(part, in.Offset); err != nil {
		return nil, fmt.Errorf("read support bundle: %w", err)
	}
	if in.Offset > 0 {
		awsapi.Routine(ctx)
	}
	return &formgn.DownloadSupportBundleForRehostResponse{Content: part, SizeBytes: t.Bundle.Size, Sha256: t.Bundle.Sum}, nil
}

// forgetBundles gives up those whose time is over.
func (c *Service) forgetBundles(ctx context.Context, tx *sql.Tx) error {
	return c.forget(ctx, tx, `kept_until <> '' AND kept_until <= ?`, stamp(c.now()))
}

func (c *Service) forget(ctx context.Context, tx *sql.Tx, which string, arg any) error {
	old, err := documents[*agentTask](ctx, tx, `SELECT document FROM agent_tasks WHERE `+which, arg)
	for _, t := range old {
		t.Bundle.KeptUntil = ""
		err = errors.Join(err, putTask(ctx, tx, t))
	}
	return err
}

// sweepBundles removes the files that no task speaks of: of tasks that have failed, of bundles
// whose time is over and of source servers that were deleted.
func (c *Service) sweepBundles(ctx context.Context) error {
	if c.opts.Bundles == "" {
		return nil
	}
	c.bundles.Lock()
	defer c.bundles.Unlock()
	entries, err := os.ReadDir(c.opts.Bundles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		var n int
		id := strings.TrimSuffix(e.Name(), bundleEnding)
		if err := c.db.reader.QueryRowContext(ctx, `SELECT COUNT(*) FROM agent_tasks WHERE id = ? AND (kept_until <> '' OR `+openTask+`)`, id).Scan(&n); err != nil {
			return fmt.Errorf("sweep support bundles: %w", err)
		}
		if n == 0 {
			err = errors.Join(err, removeFile(filepath.Join(c.opts.Bundles, e.Name())))
		}
	}
	return err
}

// appendBundle writes a part behind what there is, and returns how long the file is then. A
// part that belongs elsewhere changes nothing.
func appendBundle(path string, at int64, part []byte) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() != at {
		return sizeOf(info), err
	}
	if _, err := f.Write(part); err != nil {
		return 0, errors.Join(err, f.Truncate(at))
	}
	return at + int64(len(part)), nil
}

func sizeOf(info fs.FileInfo) int64 {
	if info == nil {
		return 0
	}
	return info.Size()
}

// syncBundle makes a file durable, and returns what it is.
func syncBundle(path string) (size int64, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return 0, "", err
	}
	if err := f.Sync(); err != nil {
		return 0, "", err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return 0, "", err
	}
	return size, hex.EncodeToString(h.Sum(nil)), errors.Join(dir.Sync(), dir.Close())
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
