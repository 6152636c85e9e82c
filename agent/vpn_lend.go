package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rehost/tunnel"
)

// The way into the service's VPN for commands beside the agent: docs/format/tunnel.md.
// WireGuard knows an end by its key alone. Two ends with one key take the session
// from each other with every handshake, and what one has sent is answered to the
// other. So the rules are:
//
//   - While an agent runs, nobody else uses its key: it lends its tunnel, over a
//     socket that only the owner of the state directory and root come to.
//   - What is lent is one connection to one of the service's two ports. Whoever
//     borrows it speaks TLS through it with the service; to the agent it is noise.
//   - While no agent runs, a command uses the key that was kept. One that starts
//     meanwhile takes the session over, and the command's connection ends. Nothing
//     keeps it from starting: an agent must not stay down for a question.

const (
	lentMost    = 8                // connections lent at once
	lendTimeout = 20 * time.Second // for a question and its answer
	lendLine    = 4 << 10          // bytes of either, at most
)

// A lendQuestion asks for a connection.
type lendQuestion struct {
	Version int    `json:"version"`
	Port    uint16 `json:"port"` // inside
}

func (q lendQuestion) validate() error {
	switch {
	case q.Version != stateVersion:
		return fmt.Errorf("version %d of the question is not known", q.Version)
	case q.Port != tunnel.APIPort && q.Port != tunnel.ReplicationPort:
		return fmt.Errorf("port %d is none of the service's", q.Port)
	}
	return nil
}

// A lendAnswer says what came of it. Without an error what follows on the socket is the
// connection's.
type lendAnswer struct {
	Version   int       `json:"version"`
	Endpoint  string    `json:"endpoint"`           // of the service's VPN
	Handshake time.Time `json:"handshake,omitzero"` // the last one
	Silent    bool      `json:"silent,omitempty"`   // there is none now; Error is what is known besides
	Error     string    `json:"error,omitempty"`
}

// errNotLent says that there is an agent and no way through it.
var errNotLent = errors.New("the agent that runs does not lend its tunnel")

// lend lets commands on this machine use the tunnel until ctx ends.
func (a *agent) lend(ctx context.Context) {
	if a.identity.vpn == nil {
		return
	}
	// Who has the directory locked has no other beside it: what is there is of one that ended.
	err := gone(a.dir.path(socketFile))
	var l net.Listener
	if err == nil {
		l, err = net.Listen("unix", a.dir.path(socketFile))
	}
	if err != nil {
		a.log.Warn("the tunnel cannot be lent to rehost-agent doctor and upgrade", "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close() // which has removed the socket when it returns, whoever was first
	var all sync.WaitGroup
	defer all.Wait()
	places := make(chan struct{}, lentMost)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-places
			if ctx.Err() != nil || pause(ctx, time.Second) != nil { // out of descriptors, for now
				return
			}
			continue
		}
		all.Go(func() {
			defer func() { <-places }()
			a.identity.vpn.lend(ctx, c)
		})
	}
}

// lend answers one question.
func (v *vpn) lend(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(lendTimeout))
	var q lendQuestion
	err := receiveLine(c, &q)
	if err == nil {
		err = q.validate()
	}
	var out net.Conn
	client := v.now()
	if err == nil {
		out, err = client.Dial(ctx, q.Port)
	}
	answer := lendAnswer{Version: stateVersion, Endpoint: client.Endpoint(), Handshake: client.Handshake()}
	var unanswered *tunnel.HandshakeError
	switch {
	case errors.As(err, &unanswered):
		answer.Silent = true
		if unanswered.Err != nil {
			answer.Error = unanswered.Err.Error()
		}
	case err != nil:
		answer.Error = err.Error()
	}
	if e := sendLine(c, answer); out == nil {
		return
	} else if e != nil {
		out.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	tunnel.Join(ctx, c, out)
}

func sendLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// receiveLine takes no byte that comes after the line.
func receiveLine(r io.Reader, v any) error {
	var line []byte
	for next := make([]byte, 1); ; line = append(line, next[0]) {
		if _, err := io.ReadFull(r, next); err != nil {
			return err
		}
		if next[0] == '\n' {
			return strictJSON(line, v)
		}
		if len(line) == lendLine {
			return errors.New("the line is too long")
		}
	}
}

// A passage is how a command comes to the service through its VPN. Close it.
type passage struct {
	dir stateDir
	own *tunnel.Client // nil: an agent lends its own

	mu        sync.Mutex // guards:
	handshake time.Time  // the last one that was heard of
}

// quietLog is for ends whose trouble is in an error, too.
var quietLog = slog.New(slog.DiscardHandler)

// openPassage opens that of an installation.
func openPassage(dir stateDir) (*passage, error) {
	if dir.running() != 0 {
		return &passage{dir: dir}, nil
	}
	var s vpnState
	if err := dir.load(vpnFile, &s); err != nil {
		return nil, err
	}
	own, err := s.open(quietLog)
	if err != nil {
		return nil, err
	}
	return &passage{dir: dir, own: own}, nil
}

func (p *passage) close() error {
	if p.own == nil {
		return nil
	}
	return p.own.Close()
}

// lent is whether the agent's tunnel is used.
func (p *passage) lent() bool { return p.own == nil }

// last is the last handshake that a dial has heard of; zero if there was none.
func (p *passage) last() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handshake
}

func (p *passage) heard(handshake time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handshake = handshake
}

// dial connects to a port of the service. The error is a [tunnel.HandshakeError]
// where the service's VPN does not answer.
func (p *passage) dial(ctx context.Context, port uint16) (net.Conn, error) {
	if p.own != nil {
		c, err := p.own.Dial(ctx, port)
		p.heard(p.own.Handshake())
		return c, err
	}
	c, err := p.dir.borrow(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotLent, err)
	}
	answer, err := requestLoan(ctx, c, port)
	p.heard(answer.Handshake)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// dialService makes the connections of calls, whatever the endpoint's address is.
func (p *passage) dialService(ctx context.Context, _, _ string) (net.Conn, error) {
	return p.dial(ctx, tunnel.APIPort)
}

// borrow connects to the agent that runs, which may just have begun to.
func (d stateDir) borrow(ctx context.Context) (c net.Conn, err error) {
	for end := time.Now().Add(2 * time.Second); ; {
		if c, err = d.reachAgent(); err == nil || time.Now().After(end) {
			return c, err
		}
		if stopped := pause(ctx, 50*time.Millisecond); stopped != nil {
			return nil, stopped
		}
	}
}

// reachAgent connects as the owner of the directory: who took the agent over could
// put a link there, to a socket of root's.
func (d stateDir) reachAgent() (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), d.path(socketFile))
	defer f.Close()
	err = d.as(func() error {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: d.path(socketFile)})
	})
	if err != nil {
		return nil, &os.PathError{Op: "connect", Path: d.path(socketFile), Err: err}
	}
	return net.FileConn(f)
}

// requestLoan asks for a port. After it has succeeded c is the connection to that.
func requestLoan(ctx context.Context, c net.Conn, port uint16) (answer lendAnswer, err error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(lendTimeout + time.Second)) // the agent's is to end first
	if err = sendLine(c, lendQuestion{Version: stateVersion, Port: port}); err == nil {
		err = receiveLine(c, &answer)
	}
	switch {
	case err != nil:
		return answer, fmt.Errorf("%w: %w", errNotLent, err)
	case answer.Version != stateVersion:
		return answer, fmt.Errorf("%w: version %d of its answer is not known", errNotLent, answer.Version)
	case answer.Silent && answer.Error != "":
		return answer, &tunnel.HandshakeError{Endpoint: answer.Endpoint, Err: errors.New(answer.Error)}
	case answer.Silent:
		return answer, &tunnel.HandshakeError{Endpoint: answer.Endpoint}
	case answer.Error != "":
		return answer, errors.New(answer.Error)
	}
	return answer, c.SetDeadline(time.Time{})
}
