package freeze

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is where a freezer listens if nothing else is said.
const Socket = "/run/rehost-agent/freezer.sock"

// ChildFD is the descriptor under which a freezer that a [Client] starts finds its connection.
const ChildFD = 3

// thawWithin is how long a freezer may take to say that all is thawed. If it does
// not, the connection ends, at which its watchdog thaws.
const thawWithin = 10 * time.Second

// goneWithin is how long a freezer that was started may take to end.
const goneWithin = time.Second

// ErrNoFreezer says that nobody is there who could freeze anything.
var ErrNoFreezer = errors.New("there is no freezer")

// A Client asks a freezer: the one that listens at a socket, or else a process that it
// starts for each freeze. One goroutine uses it, in the order Prepare, Freeze, Thaw.
type Client struct {
	Socket  string   // "": Socket
	Program []string // a freezer and its arguments, with a connection at ChildFD; nil: none is started

	conn *net.UnixConn
	gone chan struct{} // closed when a freezer that was started has ended; nil: none was
}

// Prepare finds the file systems that lie on disks, by their numbers (unix.Mkdev), and
// syncs them. That nobody is there to ask wraps [ErrNoFreezer]; what the freezer does
// not do is a [*RefusedError].
func (c *Client) Prepare(ctx context.Context, disks []uint64) error {
	c.close()
	if err := c.connect(ctx); err != nil {
		return err
	}
	_, err := c.ask(ctx, message{kind: kindPrepare, body: appendDisks(nil, disks)}, kindPrepared)
	return c.done(err)
}

// Freeze returns once nothing is written to what was prepared, and when that ends
// by itself: granted after Freeze was called, at most.
func (c *Client) Freeze(ctx context.Context, most time.Duration) (granted time.Duration, err error) {
	m, err := c.ask(ctx, message{kind: kindFreeze, value: uint64(max(1, most.Milliseconds()))}, kindFrozen)
	return time.Duration(m.value) * time.Millisecond, c.done(err)
}

// Thaw ends what was begun. Frozen says how long programs were kept waiting; an error
// that the freeze had ended before, or that it is not known to have ended by now. It
// may be called at any time.
func (c *Client) Thaw() (frozen time.Duration, err error) {
	if c.conn == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), thawWithin)
	defer cancel()
	m, err := c.ask(ctx, message{kind: kindThaw}, kindThawed)
	c.close()
	if err == nil && len(m.body) > 0 {
		err = fmt.Errorf("the freeze was over already: %s", m.body)
	}
	return time.Duration(m.value) * time.Microsecond, err
}

// done ends the connection after an error: then nothing stays frozen.
func (c *Client) done(err error) error {
	if err != nil {
		c.close()
	}
	return err
}

func (c *Client) connect(ctx context.Context) error {
	path := c.Socket
	if path == "" {
		path = Socket
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		c.conn = conn.(*net.UnixConn)
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(c.Program) == 0 || os.Geteuid() != 0 {
		return fmt.Errorf("%w: %w", ErrNoFreezer, err)
	}
	if err := c.start(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoFreezer, err)
	}
	return nil
}

// start starts a freezer that serves this client and ends with the connection.
func (c *Client) start() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "freezer"), os.NewFile(uintptr(pair[1]), "freezer")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	cmd := exec.Command(c.Program[0], c.Program[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.ExtraFiles = "/", []string{}, os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a signal to the agent's group is none to it
	if err := cmd.Start(); err != nil {
		return errors.Join(err, conn.Close())
	}
	gone := make(chan struct{})
	go func() { // ends with the freezer, which ends with the connection
		defer close(gone)
		_ = cmd.Wait() // how it ended is in its log
	}()
	c.conn, c.gone = conn.(*net.UnixConn), gone
	return nil
}

// close ends the connection, and waits a moment for a freezer that was started for
// it: one that is in the midst of a sync cannot end before that does.
func (c *Client) close() {
	if c.conn != nil {
		c.conn.Close()
	}
	if c.gone != nil {
		timer := time.NewTimer(goneWithin)
		defer timer.Stop()
		select {
		case <-c.gone:
		case <-timer.C:
		}
	}
	c.conn, c.gone = nil, nil
}

// ask sends a question and takes its answer.
func (c *Client) ask(ctx context.Context, q message, want kind) (m message, err error) {
	if c.conn == nil {
		return m, fmt.Errorf("ask freezer: %w", net.ErrClosed)
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	_, unsaid := c.conn.Write(q.append(nil)) // a stranger is answered before it has asked
	head := make([]byte, headSize)
	if _, err := io.ReadFull(c.conn, head); err != nil {
		return m, fmt.Errorf("ask freezer: it ended: %w", errors.Join(unsaid, err))
	}
	m, length, err := parseHead(head)
	if err != nil {
		return m, fmt.Errorf("ask freezer: %w", err)
	}
	m.body = make([]byte, length)
	if _, err := io.ReadFull(c.conn, m.body); err != nil {
		return m, fmt.Errorf("ask freezer: it ended: %w", err)
	}
	switch m.kind {
	case want:
		return m, nil
	case kindRefused:
		return m, &RefusedError{Code(m.value), string(m.body)}
	default:
		return m, fmt.Errorf("ask freezer: %w: kind %d in answer to %d", errMalformed, m.kind, q.kind)
	}
}
