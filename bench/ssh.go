package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// An sshd is a server on loopback with keys of its own, for peers that go over ssh.
type sshd struct {
	cmd     *exec.Cmd
	command string // what a client runs
}

// startSSH starts one whose files are in a directory that it makes.
func startSSH(ctx context.Context, dir string) (*sshd, error) {
	if err := errors.Join(os.MkdirAll("/run/sshd", 0o755), os.Mkdir(dir, 0o700)); err != nil { // its jail must be there
		return nil, err
	}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf("ListenAddress 127.0.0.1:%s\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n", port, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s := &sshd{cmd: exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config),
		command: fmt.Sprintf("ssh -F none -p %s -i %s/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes", port, dir)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := answering(ctx, "127.0.0.1:"+port); err != nil {
		s.stop()
		return nil, fmt.Errorf("sshd: %w", err)
	}
	return s, nil
}

func (s *sshd) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// rsync brings the file at target to what the device at source holds, and syncs it.
func (s *sshd) rsync(ctx context.Context, source, target string) (time.Duration, error) {
	start := time.Now()
	if out, err := exec.CommandContext(ctx, "rsync", "--inplace", "--no-whole-file", "--copy-devices", "--ignore-times", "--fsync", "-e", s.command, source, "127.0.0.1:"+target).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("rsync: %w: %s", err, out)
	}
	return time.Since(start), nil
}
