package qemu

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"

	"rehost/launch"
)

// What the serial console says when user space is up, and when it never will be.
var (
	bootSuccess = regexp.MustCompile(`\blogin: ?$` +
		`|Reached target .*(Multi-User System|multi-user\.target|Graphical Interface|graphical\.target)` +
		`|Cloud-init v\. .* finished`)
	bootFailure = regexp.MustCompile(`Kernel panic - not syncing` +
		`|grub rescue>` +
		`|^grub> ?$` +
		`|No bootable device` +
		`|BdsDxe: No bootable option` +
		`|UEFI Interactive Shell` +
		`|^Shell> ?$` +
		`|^\(initramfs\) ?$` +
		`|You are in (emergency|rescue) mode`)
	terminalCodes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_=>])`)
)

const maxLine = 4096

// A judge reads a console as it grows and decides how the first boot went.
type judge struct {
	success, failure []*regexp.Regexp
	line             []byte // not ended yet, at most maxLine
}

func newJudge(check launch.FirstBootCheck) (*judge, error) {
	j := &judge{success: []*regexp.Regexp{bootSuccess}, failure: []*regexp.Regexp{bootFailure}}
	for expr, list := range map[string]*[]*regexp.Regexp{check.Success: &j.success, check.Failure: &j.failure} {
		if expr == "" {
			continue
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, err
		}
		*list = append(*list, re)
	}
	return j, nil
}

// feed takes what was printed. It answers SUCCEEDED or STOPPED with the line
// that shows it, or WAITING.
func (j *judge) feed(printed []byte) (launch.FirstBoot, string) {
	for len(printed) > 0 {
		end := bytes.IndexAny(printed, "\r\n")
		piece, rest := printed, []byte(nil)
		if end >= 0 {
			piece, rest = printed[:end], printed[end+1:]
		}
		j.line = append(j.line, piece...)
		if over := len(j.line) - maxLine; over > 0 {
			j.line = append(j.line[:0], j.line[over:]...)
		}
		if verdict, line := j.look(); verdict != launch.FirstBootWaiting {
			return verdict, line
		}
		if end >= 0 {
			j.line = j.line[:0]
		}
		printed = rest
	}
	return launch.FirstBootWaiting, ""
}

// look judges the present line, which may be a prompt that never ends.
func (j *judge) look() (launch.FirstBoot, string) {
	line := terminalCodes.ReplaceAll(j.line, nil)
	for _, re := range j.failure {
		if re.Match(line) {
			return launch.FirstBootStopped, printable(line)
		}
	}
	for _, re := range j.success {
		if re.Match(line) {
			return launch.FirstBootSucceeded, printable(line)
		}
	}
	return launch.FirstBootWaiting, ""
}

// printable makes a guest's line safe to show.
func printable(line []byte) string {
	line = bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, bytes.ToValidUTF8(line, nil))
	return string(bytes.TrimSpace(line[max(0, len(line)-200):]))
}

// A consoleReader follows a console's file.
type consoleReader struct {
	path   string
	offset int64
}

// next returns what was appended since, at most 1 MiB of it.
func (c *consoleReader) next() ([]byte, error) {
	f, err := os.Open(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, c.offset, 1<<20))
	c.offset += int64(len(b))
	return b, err
}

// bound empties the file when it has grown beyond limit, so that a guest that
// prints for ever does not fill the host's disk. QEMU appends, so it goes on at
// the new end. What was read last is kept in front of it.
func (c *consoleReader) bound(limit int64) error {
	fi, err := os.Stat(c.path)
	if err != nil || fi.Size() <= limit {
		return nil
	}
	tail, err := tailOf(c.path, int(min(limit/4, 64<<10)))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(tail)
	c.offset = int64(len(tail))
	return err
}

// tailOf returns the last bytes of a file, at most limit.
func tailOf(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	limit = max(limit, 0)
	return io.ReadAll(io.NewSectionReader(f, max(0, fi.Size()-int64(limit)), int64(limit)))
}
