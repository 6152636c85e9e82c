package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// An Entry is a record with its place in the log.
type Entry struct {
	Seq uint64 `json:"seq"`
	Record
}

// Read shows the records of files in their order, with the line that each is from,
// which is good until show returns. It does not check them: see [Verify]. Lines that
// are no records are left out and counted. An error of show ends it.
func Read(paths []string, show func(e *Entry, line []byte) error) (unreadable int, err error) {
	for i, path := range paths {
		n, err := readFile(path, show)
		unreadable += n
		if i == 0 && errors.Is(err, fs.ErrNotExist) {
			continue // the oldest was removed meanwhile
		}
		if err != nil {
			return unreadable, err
		}
	}
	return unreadable, nil
}

func readFile(path string, show func(e *Entry, line []byte) error) (unreadable int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == io.EOF:
			return unreadable, nil
		case errors.Is(err, bufio.ErrBufferFull):
			unreadable++ // in pieces, each of which is none
			continue
		case err != nil:
			return unreadable, fmt.Errorf("read audit log %s: %w", path, err)
		}
		e := new(Entry)
		if json.Unmarshal(line, e) != nil {
			unreadable++
			continue
		}
		if err := show(e, line); err != nil {
			return unreadable, err
		}
	}
}
