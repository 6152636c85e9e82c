package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/ca"
	"rehost/internal/testvm"
	"rehost/launch"
	"rehost/launch/qemu"
)

const region = "us-east-1"

// A service is one `rehost serve` that this program started.
type service struct {
	cmd      *exec.Cmd
	data     string // its --data directory
	endpoint string // https://127.0.0.1:PORT
	port     int
	api      *mgn.Client
	done     chan error
}

// freePort asks the kernel for a TCP port on loopback that is free now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startService starts the service with embedded defaults and waits until it says that it is ready.
func startService(ctx context.Context, program, data string, log *os.File) (*service, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	replication, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &service{data: data, port: port, endpoint: fmt.Sprintf("https://127.0.0.1:%d", port), done: make(chan error, 1)}
	s.cmd = exec.Command(program, "serve", "--data", data, "--region", region,
		"--listen", fmt.Sprintf("127.0.0.1:%d", port),
		"--replication-listen", fmt.Sprintf("127.0.0.1:%d", replication),
		"--advertise", testvm.GuestHost, "--launch-forward", "80")
	s.cmd.Stdout = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is for the demo, which then stops it in order
	errs, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(errs)
		for seen := false; lines.Scan(); {
			fmt.Fprintln(log, lines.Text())
			if !seen && strings.Contains(lines.Text(), "ready") {
				seen = true
				close(ready)
			}
		}
		s.done <- s.cmd.Wait()
	}()
	select {
	case <-ready:
	case err := <-s.done:
		s.done <- err
		return nil, fmt.Errorf("the service ended before it was ready (%v): see %s", err, log.Name())
	case <-time.After(30 * time.Second):
		return nil, errors.Join(errors.New("the service was not ready within 30 s"), s.stop())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.stop())
	}
	if s.api, err = s.client(); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// client is the stock AWS SDK, with the credentials and the CA that the service wrote at its first start.
func (s *service) client() (*mgn.Client, error) {
	id, secret, err := readCredentials(filepath.Join(s.data, "credentials"))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(s.data, "ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the service's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the service's ca.pem holds no certificate")
	}
	return mgn.New(mgn.Options{
		Region:       region,
		BaseEndpoint: aws.String(s.endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}},
	}), nil
}

// readCredentials reads the profile rehost of an AWS credentials file.
func readCredentials(path string) (id, secret string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("read the administrator's key: %w", err)
	}
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		name, value, _ := strings.Cut(line, "=")
		if section != "rehost" {
			continue
		}
		switch strings.TrimSpace(name) {
		case "aws_access_key_id":
			id = strings.TrimSpace(value)
		case "aws_secret_access_key":
			secret = strings.TrimSpace(value)
		}
	}
	if id == "" || secret == "" {
		return "", "", fmt.Errorf("%s has no profile rehost with a key", path)
	}
	return id, secret, nil
}

// stop ends the service as a service manager would and waits for it.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the service: %w", err)
	}
	select {
	case err := <-s.done:
		s.done <- err
		return err
	case <-time.After(20 * time.Second):
		err := s.cmd.Process.Kill()
		return errors.Join(errors.New("the service did not stop within 20 s of SIGTERM"), err)
	}
}

// fingerprint is what an installer pins the service's CA by.
func (s *service) fingerprint() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.data, "ca.pem"))
	if err != nil {
		return "", fmt.Errorf("read the service's CA: %w", err)
	}
	certs, err := ca.DecodeCertificates(text)
	if err != nil {
		return "", fmt.Errorf("read the service's CA: %w", err)
	}
	return ca.Fingerprint(certs[0]), nil
}

// instance looks up a launched instance as `rehost instance ls` does.
func (s *service) instance(id string) (launch.Instance, error) {
	list, err := qemu.List(filepath.Join(s.data, "instances"))
	for _, in := range list {
		if in.ID == id && len(in.Forwards) > 0 {
			return in, nil
		}
	}
	return launch.Instance{}, errors.Join(fmt.Errorf("instance %s is not there, or its ports are not forwarded", id), err)
}

// removeInstances stops and removes what is still launched, after the service
// has stopped: an instance that was cut over to is nobody else's to remove.
func (s *service) removeInstances() (err error) {
	dir := filepath.Join(s.data, "instances")
	list, err := qemu.List(dir)
	if err != nil || len(list) == 0 {
		return err
	}
	target, err := qemu.Open(qemu.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for _, in := range list {
		err = errors.Join(err, target.Terminate(context.Background(), in.ID))
	}
	return errors.Join(err, target.Close())
}
