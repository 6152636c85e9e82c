package freeze

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// The watchdog shares nothing with the freezer but a socket of packets: to it
// "armed" with a time and descriptors, or "disarmed"; from it one packet for each of
// these, and one when it is ready.
const (
	wdReady    = 1
	wdArm      = 2
	wdDisarm   = 3
	packetSize = 16

	// WatchdogFD is the descriptor under which [Watch] finds its socket.
	WatchdogFD = 3
)

// Requests of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// again is how soon a watchdog tries to thaw once more what should be thawed.
const again = 10 * time.Millisecond

// packet is what a watchdog is told and says: what, and a number that belongs to it.
func packet(what uint32, value uint64) []byte {
	b := make([]byte, packetSize)
	binary.LittleEndian.PutUint32(b, what)
	binary.LittleEndian.PutUint64(b[8:], value)
	return b
}

func parsePacket(b []byte) (what uint32, value uint64) {
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[8:])
}

// A ward is what a watchdog watches over.
type ward struct {
	until  time.Duration
	client int   // the connection of whoever asked
	dirs   []int // of what is to be thawed, in that order
}

// Watch is the watchdog: it thaws what it is given when it is time, when the client
// is gone, or when the freezer is, which is also when it returns. Signals that can be
// ignored do not end it.
func Watch() error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	f := append(inRuntime(), ioctl(fiThaw))
	probe, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if err := confine(f, unix.CAP_SYS_ADMIN); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if err := thaw(probe); !errors.Is(err, unix.EINVAL) { // nobody can have frozen it
		return fmt.Errorf("watchdog: it may not thaw: %w", err)
	}
	unix.Close(probe)
	if err := tell(wdReady, 0); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	for {
		what, w, err := receive()
		if err != nil {
			return fmt.Errorf("watchdog: %w", err)
		}
		if what == 0 {
			return nil
		}
		if what != wdArm {
			return fmt.Errorf("watchdog: told %d", what)
		}
		if err := tell(wdArm, 0); err != nil {
			return nil //nolint:nilerr // the freezer has gone; nothing is frozen before it is known
		}
		late, gone := w.guard()
		if gone {
			return w.end()
		}
		w.close() // before that is known: then nothing is in use any more
		if err := tell(wdDisarm, late); err != nil {
			return nil //nolint:nilerr // likewise
		}
	}
}

// tell sends a packet to the freezer.
func tell(what uint32, value uint64) error {
	return unix.Sendmsg(WatchdogFD, packet(what, value), nil, nil, unix.MSG_NOSIGNAL)
}

// receive takes a packet with its descriptors. What is 0 when the freezer is gone.
func receive() (what uint32, w ward, err error) {
	b, oob := make([]byte, packetSize), make([]byte, unix.CmsgSpace(4*(maxTargets+1)))
	n, oobn, flags, _, err := unix.Recvmsg(WatchdogFD, b, oob, unix.MSG_CMSG_CLOEXEC)
	switch {
	case err == unix.EINTR:
		return receive()
	case err != nil || n == 0:
		return 0, w, err
	case n != packetSize || flags&unix.MSG_CTRUNC != 0:
		return 0, w, errors.New("a packet that is none")
	}
	what, until := parsePacket(b)
	w.until = time.Duration(until)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, w, err
	}
	var fds []int
	for _, m := range messages {
		more, err := unix.ParseUnixRights(&m)
		if err != nil {
			return 0, w, err
		}
		fds = append(fds, more...)
	}
	if what == wdArm && len(fds) < 2 {
		return 0, w, errors.New("nothing to watch over")
	}
	if len(fds) > 0 {
		w.client, w.dirs = fds[0], fds[1:]
	}
	return what, w, nil
}

func (w ward) close() {
	unix.Close(w.client)
	for _, fd := range w.dirs {
		unix.Close(fd)
	}
}

// guard returns when the freezer says that everything is thawed, and says whether it
// was to be thawed by then (1) or not (0), or when the freezer is gone. Until then it may
// still be about to freeze one more: so one thaws again and again.
func (w ward) guard() (late uint64, gone bool) {
	for until := w.until; ; until = now() + again {
		fds := []unix.PollFd{{Fd: WatchdogFD, Events: unix.POLLIN}, {Fd: int32(w.client), Events: unix.POLLRDHUP}}
		if late > 0 {
			fds = fds[:1]
		}
		if err := await(fds, until); err != nil || fds[0].Revents == 0 { // also where it cannot be asked
			late = 1
			_ = w.thaw() // what fails is tried again
			continue
		}
		what, _, err := receive()
		return late, what != wdDisarm || err != nil
	}
}

// end thaws for the last time: the freezer is gone, and with it whatever call it was in.
func (w ward) end() (err error) {
	for range 1000 {
		if err = w.thaw(); err == nil {
			break
		}
		_ = await(nil, now()+again)
	}
	return err
}

// thaw thaws everything that is frozen.
func (w ward) thaw() (err error) {
	for _, fd := range w.dirs {
		if e := thaw(fd); e != nil && !errors.Is(e, unix.EINVAL) { // which it is where it is not frozen
			err = errors.Join(err, e)
		}
	}
	return err
}

func thaw(fd int) error   { return request(fd, fiThaw) }
func freeze(fd int) error { return request(fd, fiFreeze) }

func request(fd int, what uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), what, 0); errno != 0 {
		return errno
	}
	return nil
}
