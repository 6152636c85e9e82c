package freeze

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// errWatchdog says that the watchdog is gone, or does not answer.
var errWatchdog = errors.New("the watchdog is gone or does not answer")

// errTime says that it took too long.
var errTime = errors.New("time is over")

// await returns when one of the descriptors has something, or errTime. It asks the
// kernel and nobody else: no goroutine has to be scheduled for it.
func await(fds []unix.PollFd, until time.Duration) error {
	for {
		left := until - now()
		if left < 0 {
			left = 0
		}
		ts := unix.NsecToTimespec(int64(left))
		switch n, err := unix.Ppoll(fds, &ts, nil); {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			return nil
		case now() >= until:
			return errTime
		}
	}
}

// A conn is a client's connection, as the freezer sees it.
type conn struct {
	fd       int
	watchdog int // whose end ends everything
}

// read takes one message, all of it before until.
func (c conn) read(until time.Duration) (message, error) {
	head := make([]byte, headSize)
	if err := c.fill(head, until); err != nil {
		return message{}, err
	}
	m, length, err := parseHead(head)
	if err != nil {
		return message{}, err
	}
	m.body = make([]byte, length)
	return m, c.fill(m.body, until)
}

func (c conn) fill(b []byte, until time.Duration) error {
	for len(b) > 0 {
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.watchdog), Events: unix.POLLIN}}
		if err := await(fds, until); err != nil {
			return err
		}
		if fds[1].Revents != 0 { // it says nothing that it was not asked
			return errWatchdog
		}
		n, _, err := unix.Recvfrom(c.fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			b = b[n:]
		}
	}
	return nil
}

// send never waits: who does not read what was answered is not worth it.
func (c conn) send(m message) error {
	return unix.Sendto(c.fd, m.append(nil), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}
