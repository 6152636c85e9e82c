package freeze

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of [Options], and what they cannot exceed.
const (
	DefaultMost  = 2 * time.Second
	DefaultEvery = 10 * time.Second
	mostEver     = time.Minute
)

const (
	quietAfter    = time.Minute      // a client that asks nothing is disconnected
	answerWithin  = 30 * time.Second // a watchdog answers
	complainEvery = time.Minute      // about strangers
	forever       = time.Duration(1 << 62)
)

// Options say for whom a freezer is there, and what it does at most.
type Options struct {
	Socket string // path to listen at; "": what the service manager has opened (LISTEN_FDS)
	FD     int    // a connection, or a socket that listens, in place of both; 0: none
	User   int    // user id that may ask besides root; 0: none

	// UntilStdin ends the freezer with its standard input: it is there for a process
	// that holds the other end of a pipe.
	UntilStdin bool

	Most  time.Duration // the longest freeze; 0: DefaultMost
	Every time.Duration // between the begins of two freezes at least; 0: DefaultEvery

	Watchdog []string     // arguments with which this program calls Watch
	Log      *slog.Logger // nil: none. Nothing is logged while anything is frozen
}

// A freezer is one process's, and serves one connection at a time.
type freezer struct {
	Options
	machine  machine
	watchdog int

	last      time.Duration // when the last freeze began
	complaint time.Duration // when a stranger was last complained about
}

// Serve is the freezer. It returns when its only connection has ended, when nobody has
// come to a socket of the service manager for a while, with its standard input where
// that is asked for, or with an error: it never goes on without a watchdog. From when it listens this process can do nothing else.
func Serve(o Options) error {
	if o.Most == 0 {
		o.Most = DefaultMost
	}
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Most < time.Millisecond || o.Most > mostEver {
		return fmt.Errorf("a freeze of %v at most: it must be between a millisecond and %v", o.Most, mostEver)
	}
	signal.Reset(unix.SIGTERM, unix.SIGINT) // the watchdog thaws: there is nothing to do first
	f := &freezer{Options: o}
	socket, listening, idle, err := o.socket()
	if err != nil {
		return err
	}
	if f.machine.mountinfo, err = unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	if f.watchdog, err = startWatchdog(o.Watchdog); err != nil {
		return err
	}
	// CAP_DAC_READ_SEARCH opens mount points that belong to other users; the filter
	// lets directories be opened, and no file.
	if err := confine(freezerFilter(), unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH); err != nil {
		return err
	}
	o.Log.Info("freezer is ready", "at most", o.Most, "every", o.Every)
	if !listening {
		return f.serve(socket)
	}
	return f.accept(socket, idle)
}

// freezerFilter leaves what finds, opens, syncs and freezes file systems, and talks to
// whoever is connected.
func freezerFilter() filter {
	const look = unix.O_DIRECTORY | unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC
	return append(append(inRuntime(), calls(
		unix.SYS_ACCEPT4, unix.SYS_GETSOCKOPT, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_NEWFSTATAT, unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_LSEEK, unix.SYS_SYNCFS)...),
		rule{unix.SYS_OPENAT, []test{{2, look, unix.O_DIRECTORY | unix.O_RDONLY}}},
		ioctl(fiFreeze), ioctl(fiThaw))
}

// socket opens or finds the freezer's socket, and says whether it listens, and for how
// long nobody has to come before the service manager may do that again.
func (o Options) socket() (fd int, listening bool, idle time.Duration, err error) {
	const first = 3 // SD_LISTEN_FDS_START
	idle = forever
	switch {
	case o.FD != 0:
		fd = o.FD
	case o.Socket != "":
		fd, err = o.listen()
		return fd, true, idle, err
	case os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1":
		fd = first
		idle = max(quietAfter, 2*o.Every) // so that ending is no way round Every
	default:
		return 0, false, 0, errors.New("no socket: give --socket, or have a service manager open one (LISTEN_FDS)")
	}
	unix.CloseOnExec(fd)
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return 0, false, 0, fmt.Errorf("descriptor %d is no Unix socket: %w", fd, errors.Join(err, unix.EINVAL))
	}
	accepts, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return fd, accepts != 0, idle, err
}

func (o Options) listen() (fd int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen at %s: %w", o.Socket, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(o.Socket), 0o755); err != nil {
		return 0, err
	}
	if err := os.Remove(o.Socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return 0, err
	}
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	mask := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: o.Socket})
	unix.Umask(mask)
	return fd, errors.Join(err, os.Chown(o.Socket, o.User, 0), unix.Listen(fd, 128))
}

// startWatchdog starts the watchdog, and returns once it can thaw.
func startWatchdog(args []string) (fd int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("start watchdog: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "watchdog")
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.ExtraFiles = "/", []string{}, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		return 0, fmt.Errorf("start watchdog: %w", err)
	}
	_ = cmd.Process.Release() // it lives longer than this process
	if _, err := (&freezer{watchdog: pair[0]}).hear(wdReady, answerWithin); err != nil {
		return 0, fmt.Errorf("start watchdog: %w", err)
	}
	return pair[0], nil
}

// hear takes the watchdog's answer.
func (f *freezer) hear(want uint32, within time.Duration) (value uint64, err error) {
	if err := await([]unix.PollFd{{Fd: int32(f.watchdog), Events: unix.POLLIN}}, now()+within); err != nil {
		return 0, fmt.Errorf("%w: %w", errWatchdog, err)
	}
	b := make([]byte, packetSize)
	n, _, err := unix.Recvfrom(f.watchdog, b, 0)
	if err != nil || n != packetSize {
		return 0, fmt.Errorf("%w: %w", errWatchdog, errors.Join(err, io.EOF))
	}
	what, value := parsePacket(b)
	if what != want {
		return 0, fmt.Errorf("%w: it says %d", errWatchdog, what)
	}
	return value, nil
}

// accept serves who connects, one after the other.
func (f *freezer) accept(socket int, idle time.Duration) error {
	for {
		fds := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}, {Fd: int32(f.watchdog), Events: unix.POLLIN}, {Fd: -1}}
		if f.UntilStdin {
			fds[2].Fd = int32(unix.Stdin) // nothing is ever written to it
		}
		switch err := await(fds, now()+idle); {
		case errors.Is(err, errTime):
			return nil
		case err != nil:
			return fmt.Errorf("wait for connections: %w", err)
		case fds[1].Revents != 0:
			return errWatchdog
		case fds[2].Revents != 0:
			return nil
		}
		fd, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
		if err != nil {
			continue // whoever it was has gone
		}
		err = f.serve(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
}

// serve answers a client until it is gone. Only that the watchdog is gone is an error.
func (f *freezer) serve(fd int) error {
	c := conn{fd, f.watchdog}
	who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil
	}
	if who.Uid != 0 && (f.User == 0 || int(who.Uid) != f.User) {
		_ = c.send(refusal(refuse(Stranger, "user %d may not ask", who.Uid)))
		if t := now(); f.complaint == 0 || t-f.complaint > complainEvery {
			f.complaint = t
			f.Log.Warn("a stranger was turned away", "user", who.Uid, "process", who.Pid)
		}
		return nil
	}
	s := session{freezer: f, conn: c}
	defer func() { closeTargets(s.targets) }()
	for err == nil {
		err = s.answer()
	}
	if errors.Is(err, errWatchdog) {
		return err
	}
	return nil
}

func refusal(e *RefusedError) message {
	return message{kind: kindRefused, value: uint64(e.Code), body: []byte(e.Text)}
}

// A session is what one client has asked for so far.
type session struct {
	*freezer
	conn    conn
	targets []target
	frozen  time.Duration // by a freeze that ended before it was to be
}

// answer takes one question and answers it. The error ends the connection.
func (s *session) answer() error {
	m, err := s.conn.read(now() + quietAfter)
	if errors.Is(err, errMalformed) {
		return s.misunderstand()
	}
	if err != nil {
		return err
	}
	var no *RefusedError
	out := message{kind: kindThawed, value: uint64(s.frozen.Microseconds())}
	switch {
	case m.kind == kindPrepare && m.value == 0:
		out, err = s.prepare(m.body)
	case m.kind == kindFreeze && len(m.body) == 0 && m.value > 0:
		out, err = s.hold(time.Duration(min(m.value, uint64(mostEver.Milliseconds()))) * time.Millisecond)
	case m.kind == kindThaw && len(m.body) == 0:
		if s.frozen > 0 {
			out.body = []byte("the time was over")
		}
		s.frozen = 0
	default:
		return s.misunderstand()
	}
	if errors.As(err, &no) {
		return s.conn.send(refusal(no))
	}
	if err == nil && out.kind != 0 {
		err = s.conn.send(out)
	}
	return err
}

func (s *session) misunderstand() error {
	return errors.Join(errMalformed, s.conn.send(refusal(refuse(Malformed, "that is no question of version %d, or none for now", version))))
}

func (s *session) prepare(body []byte) (message, error) {
	closeTargets(s.targets)
	s.targets = nil
	disks, err := parseDisks(body)
	if err != nil {
		return message{}, s.misunderstand()
	}
	found, leftOut, err := s.machine.targets(disks)
	if err != nil {
		return message{}, err
	}
	s.targets = found
	text := strings.Join(leftOut, "; ")
	if len(found) == 0 {
		if text == "" {
			text = "nothing is mounted from these disks"
		}
		return message{}, refuse(Nothing, "there is nothing to freeze: %s", text)
	}
	if err := s.sync(); err != nil {
		return message{}, err
	}
	return message{kind: kindPrepared, value: uint64(len(found)), body: []byte(text)}, nil
}

func (s *session) sync() error {
	for _, t := range s.targets {
		if err := unix.Syncfs(t.fd); err != nil {
			return refuse(Failed, "sync %s: %v", t.name, err)
		}
	}
	return nil
}

// hold freezes, answers, and thaws when it is asked to or must.
func (s *session) hold(most time.Duration) (message, error) {
	most = min(most, s.Most)
	if len(s.targets) == 0 {
		return message{}, refuse(Unprepared, "nothing is prepared")
	}
	if left := s.last + s.Every - now(); s.last != 0 && left > 0 {
		return message{}, refuse(Soon, "it must wait %v more after the last freeze", left.Round(time.Millisecond))
	}
	began := now()
	if err := s.sync(); err != nil {
		return message{}, err
	}
	if took := now() - began; took > most/2 { // a freeze begins with one too, and cannot be called off
		return message{}, refuse(Failed, "a sync takes %v, which is too long for a freeze of %v", took.Round(time.Millisecond), most)
	}
	began = now()
	until := began + most
	if err := s.arm(until); err != nil {
		return message{}, err
	}
	s.last, s.frozen = began, 0
	n, err := freezeAll(s.targets, until)
	var m message
	if err == nil {
		err = s.conn.send(message{kind: kindFrozen, value: uint64(most.Milliseconds())})
	}
	if err == nil {
		m, err = s.conn.read(until)
	}
	thawErr := thawAll(s.targets[:n])
	frozen := now() - began
	late, wdErr := s.disarm()
	if err := errors.Join(thawErr, wdErr); err != nil { // the watchdog goes on trying when this process has ended
		return message{}, fmt.Errorf("%w: %w", errWatchdog, err)
	}
	if n > 0 {
		s.Log.Info("file systems were frozen", "number", n, "for", frozen)
	}
	var no *RefusedError
	switch {
	case errors.As(err, &no):
		return message{}, err
	case errors.Is(err, errTime):
		s.frozen = frozen
		return message{}, nil // there is an answer once it is asked for
	case errors.Is(err, errMalformed), err == nil && (m.kind != kindThaw || len(m.body) > 0):
		return message{}, s.misunderstand()
	case err != nil:
		return message{}, err
	case late:
		return message{kind: kindThawed, value: uint64(frozen.Microseconds()), body: []byte("the watchdog was first")}, nil
	}
	return message{kind: kindThawed, value: uint64(frozen.Microseconds())}, nil
}

// arm has the watchdog thaw at a time, and earlier when the client is gone.
func (s *session) arm(until time.Duration) error {
	fds := []int{s.conn.fd}
	for i := len(s.targets) - 1; i >= 0; i-- {
		fds = append(fds, s.targets[i].fd)
	}
	if err := unix.Sendmsg(s.watchdog, packet(wdArm, uint64(until)), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("%w: %w", errWatchdog, err)
	}
	_, err := s.hear(wdArm, answerWithin)
	return err
}

// disarm tells the watchdog that all is thawed, and asks whether it had to do it.
func (s *session) disarm() (late bool, err error) {
	if err := unix.Sendmsg(s.watchdog, packet(wdDisarm, 0), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return false, fmt.Errorf("%w: %w", errWatchdog, err)
	}
	value, err := s.hear(wdDisarm, answerWithin)
	return value != 0, err
}

// freezeAll freezes one after the other, and says how many are frozen.
func freezeAll(list []target, until time.Duration) (n int, err error) {
	for _, t := range list {
		if now() >= until {
			return n, refuse(Failed, "freezing takes too long; %s was next", t.name)
		}
		switch err := freeze(t.fd); {
		case err == nil:
			n++
		case errors.Is(err, unix.EBUSY):
			return n, refuse(Failed, "%s is frozen by somebody else", t.name)
		default:
			return n, refuse(Failed, "freeze %s: %v", t.name, err)
		}
	}
	return n, nil
}

// thawAll thaws what was frozen last first.
func thawAll(list []target) (err error) {
	for i := len(list) - 1; i >= 0; i-- {
		if e := thaw(list[i].fd); e != nil && !errors.Is(e, unix.EINVAL) { // the watchdog has thawed it
			err = errors.Join(err, fmt.Errorf("thaw %s: %w", list[i].name, e))
		}
	}
	return err
}
