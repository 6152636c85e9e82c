package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A Process is a program that runs until it is stopped or killed.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; to be read when done is closed
}

// Start starts a program, in a process group of its own, so that a ^C is not
// for it. Both outputs go to log. Start returns once ready was in the output,
// which "" does not wait for.
func Start(ctx context.Context, log io.Writer, ready, program string, args ...string) (*Process, error) {
	out := &watcher{to: log, word: []byte(ready), seen: make(chan struct{})}
	p := &Process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = 2 * time.Second // machines that it launched have its output open, and live on
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		defer close(p.done)
		if p.err = p.cmd.Wait(); errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
	}()
	if ready == "" {
		return p, nil
	}
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	select {
	case <-out.seen:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("%s ended before it was ready: %w", program, p.err)
	case <-limit.C:
		return nil, errors.Join(fmt.Errorf("%s was not ready within 30 s", program), p.Kill())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), p.Kill())
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended; nil while it runs, or if it ended well.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends the process a signal.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, p.cmd.Path, err)
	}
	return nil
}

// Stop ends the process as a service manager would, and waits for it. It
// answers how the process ended.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("%s did not stop within 20 s of SIGTERM", p.cmd.Path), p.Kill())
	}
}

// Kill ends the process without giving it a moment, and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	<-p.done
	return nil
}

// A watcher passes output on and notices a word in it.
type watcher struct {
	mu   sync.Mutex
	to   io.Writer
	word []byte
	tail []byte // of what came before, as long as a word can hang over
	once sync.Once
	seen chan struct{}
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tail = append(w.tail, p...)
	if bytes.Contains(w.tail, w.word) {
		w.once.Do(func() { close(w.seen) })
	}
	if keep := len(w.word); len(w.tail) > keep {
		w.tail = append(w.tail[:0], w.tail[len(w.tail)-keep:]...)
	}
	return w.to.Write(p)
}
