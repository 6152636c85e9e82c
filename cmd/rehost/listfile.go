package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rehost/control"
)

// A listFile is the file of prefix lists.
type listFile struct {
	path string
	seen os.FileInfo
}

// read reads the file; nothing and no error if it has not changed.
func (f *listFile) read() ([]control.PrefixList, error) {
	info, err := os.Stat(f.path)
	if err != nil || f.seen != nil && os.SameFile(f.seen, info) && f.seen.ModTime().Equal(info.ModTime()) && f.seen.Size() == info.Size() {
		return nil, err
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	lists, err := control.ParsePrefixLists(strings.NewReader(string(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	f.seen = info
	if lists == nil {
		lists = []control.PrefixList{} // an empty file is one that was read
	}
	return lists, nil
}

// A watch is told by the kernel when a file was written and closed, or put in its place. It
// hears of neither where the file is a link to one elsewhere, nor on some file systems of
// other machines, nor once its directory is gone: look at the file now and then, too.
type watch struct {
	name    string        // of the file in its directory
	changed chan struct{} // gets one when it has
	events  *os.File
	done    chan struct{}
}

// watchFile begins to watch. What begins to be written does not count: half a list would
// keep agents out.
func watchFile(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: inotify: %w", path, err)
	}
	w := &watch{filepath.Base(path), make(chan struct{}, 1), os.NewFile(uintptr(fd), "inotify"), make(chan struct{})}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		w.events.Close()
		return nil, fmt.Errorf("watch %s: inotify: %w", filepath.Dir(path), err)
	}
	go w.run()
	return w, nil
}

// Close ends it, and waits for that.
func (w *watch) Close() error {
	err := w.events.Close()
	<-w.done
	return err
}

func (w *watch) run() {
	defer close(w.done)
	for buf := make([]byte, 64<<10); ; {
		n, err := w.events.Read(buf)
		if err != nil {
			return // it is closed
		}
		if w.concerns(buf[:n]) {
			select {
			case w.changed <- struct{}{}:
			default: // the one before has not been taken, and does for both
			}
		}
	}
}

// concerns is whether events are of the file, or may be: the kernel says when it has
// dropped some. See inotify(7) for their form.
func (w *watch) concerns(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		rest := events[unix.SizeofInotifyEvent:]
		name := strings.TrimRight(string(rest[:min(int(size), len(rest))]), "\x00")
		if mask&unix.IN_Q_OVERFLOW != 0 || name == w.name {
			return true
		}
		events = rest[min(int(size), len(rest)):]
	}
	return false
}

// tendLists keeps the lists in force that the file holds, until ctx ends.
func (s *served) tendLists(ctx context.Context) {
	note := s.noteOf("prefix lists: the file is no good, the lists before it stay", "prefix lists: the file is good again")
	var changed chan struct{}
	if w, err := watchFile(s.lists.path); err == nil {
		defer w.Close()
		changed = w.changed
	} else {
		s.log.Warn("prefix lists: changes of the file are seen within a second only", "err", err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
			s.lists.seen = nil // two changes may be of one time and size
		}
		note(s.takeLists())
	}
}

// takeLists puts the lists in force if the file has changed.
func (s *served) takeLists() error {
	lists, err := s.lists.read()
	if err == nil && lists != nil {
		s.service.UsePrefixLists(lists)
		s.log.Info("prefix lists are read", "file", s.lists.path, "lists", len(lists))
	}
	return err
}
