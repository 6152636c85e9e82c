// Package sshd runs an OpenSSH server on loopback with keys of its own, for tests
// and peers that go over SSH. It lets in root alone, by one key.
package sshd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Server listens on one port of all addresses of 127.0.0.0/8.
type Server struct {
	Port    int
	HostKey string // its public key: what a line of known_hosts has behind the host
	UserKey string // file with the private key that is let in

	cmd *exec.Cmd
}

// Start starts a server whose files are in dir, which it makes. It answers when
// Start returns.
func Start(ctx context.Context, dir string) (*Server, error) {
	if err := errors.Join(os.MkdirAll("/run/sshd", 0o755), os.Mkdir(dir, 0o700)); err != nil { // its jail must be there
		return nil, err
	}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		return nil, err
	}
	words := strings.Fields(string(public)) // type, key, comment
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Port: l.Addr().(*net.TCPAddr).Port, HostKey: words[0] + " " + words[1], UserKey: filepath.Join(dir, "user")}
	l.Close()
	config := filepath.Join(dir, "config")
	listen := ""
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		listen += fmt.Sprintf("ListenAddress %s:%d\n", host, s.Port)
	}
	text := listen + fmt.Sprintf("HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s.cmd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
		if err == nil {
			return s, c.Close()
		}
		select {
		case <-ctx.Done():
			s.Stop()
			return nil, errors.Join(context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Client is the command line of a client of OpenSSH that gets in, without a host.
func (s *Server) Client() string {
	return fmt.Sprintf("ssh -F none -p %d -i %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes", s.Port, s.UserKey)
}

// Stop ends the server, and waits for it.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}
