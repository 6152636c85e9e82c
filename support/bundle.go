package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxText is how much all parts can have together, in bytes: what does not shrink at all
	// still makes no more than 5 MiB, since gzip adds less than 1 %, and tar about a kilobyte
	// for each part. The service takes 8. Looking for secrets costs 0.3 s a MiB.
	maxText = 4 << 20
	maxPart = 1 << 20

	readTimeout = 20 * time.Second // of a part
)

// A Part is one file of a bundle.
type Part struct {
	Name string
	Max  int // bytes of its end that are kept; 0 is 1 MiB
	Read func(ctx context.Context) ([]byte, error)
}

// Text is a part that is made of what is known already.
func Text(name string, make func() (string, error)) Part {
	return Part{Name: name, Read: func(context.Context) ([]byte, error) {
		text, err := make()
		return []byte(text), err
	}}
}

// File is the end of a file, as many bytes as max; 0 is 1 MiB.
func File(name, path string, max int) Part {
	return Part{Name: name, Max: max, Read: func(context.Context) ([]byte, error) { return readEnd(path, max) }}
}

// Command is what a program prints. One that is not there is no part worth having, and says so.
func Command(name string, max int, program string, args ...string) Part {
	return Part{Name: name, Max: max, Read: func(ctx context.Context) ([]byte, error) {
		c := exec.CommandContext(ctx, program, args...)
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		c.WaitDelay = time.Second
		var out limited
		c.Stdout, c.Stderr = &out, &out
		err := c.Run()
		return out.Bytes(), err
	}}
}

// A limited keeps what is written up to a size; a program that prints more is cut off.
type limited struct{ bytes.Buffer }

// Write implements [io.Writer].
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxText {
		return 0, errors.New("it prints too much")
	}
	return l.Buffer.Write(p)
}

// readEnd reads the last bytes of a file. What /proc and /sys have has no size, and is read
// from its beginning. No link is followed: root reads here what others may write.
func readEnd(path string, max int) ([]byte, error) {
	if max == 0 {
		max = maxPart
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is no file", path)
	}
	if from := info.Size() - int64(max) - 1; from > 0 { // one more tells that there is more
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, int64(max)+1))
}

// Write makes a bundle of the parts, in their order, redacted, of 5 MiB at most. The last parts come short if
// they are too much together. An error is one of w; those of parts are in the bundle.
func Write(ctx context.Context, w io.Writer, folder string, now time.Time, parts []Part) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	left := maxText
	for _, p := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		text := p.text(ctx, left)
		left -= len(text)
		h := &tar.Header{Name: path.Join(folder, p.Name), Mode: 0o600, Size: int64(len(text)), ModTime: now, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write support bundle: %w", err)
		}
		if _, err := io.WriteString(t, text); err != nil {
			return fmt.Errorf("write support bundle: %w", err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return fmt.Errorf("write support bundle: %w", err)
	}
	return nil
}

// text is the part as it goes into the bundle.
func (p Part) text(ctx context.Context, left int) string {
	limit := p.Max
	if limit == 0 {
		limit = maxPart
	}
	ctx, done := context.WithTimeout(ctx, readTimeout)
	defer done()
	content, err := p.Read(ctx)
	text := Redact(end(strings.ToValidUTF8(string(content), "?"), limit))
	if err != nil {
		text += "\n(cannot be read: " + Redact(err.Error()) + ")\n"
	}
	return end(text, min(limit, left))
}

// end is the last lines of a text that has too many. A line is whole or not there: of a secret
// whose name was cut off, nobody would know that it is one.
func end(text string, n int) string {
	const note = "(there is more before this)\n"
	if len(text) <= n {
		return text
	}
	text = text[len(text)-max(n-len(note), 0):]
	_, text, _ = strings.Cut(text, "\n")
	if n < len(note) {
		return ""
	}
	return note + text
}
