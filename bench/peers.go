package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// This file runs the peers as their users would: every one over TLS with
// certificates on both ends, on loopback, durable before its clock stops.

// A copier copies the block device at source into the file at target, which it makes.
type copier struct {
	name string
	copy func(ctx context.Context, source, target string) (time.Duration, error)
}

// credentialsDir writes a CA and one certificate for both roles under the names
// that nbdkit, libnbd, qemu-nbd and qemu-img look for.
func credentialsDir(dir string) error {
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "ca-cert.pem"), "CERTIFICATE", caDER); err != nil {
		return err
	}
	for i, role := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		err = errors.Join(writePEM(filepath.Join(dir, role+"-cert.pem"), "CERTIFICATE", der),
			writePEM(filepath.Join(dir, role+"-key.pem"), "PRIVATE KEY", keyDER))
		if err != nil {
			return err
		}
	}
	return nil
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// nbdcopyToNbdkit copies with libnbd's copier into nbdkit's file plugin.
func nbdcopyToNbdkit(certs string) copier {
	return copier{"nbdcopy", func(ctx context.Context, source, target string) (time.Duration, error) {
		return between(ctx, source, target,
			func(port string) []string {
				return []string{"nbdkit", "--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port", port, "--tls=require",
					"--tls-certificates=" + certs, "--tls-verify-peer", "file", target}
			},
			func(port string) []string {
				return []string{"nbdcopy", "--flush", source, "nbds://localhost:" + port + "/?tls-certificates=" + certs}
			})
	}}
}

// qemuImgToQemuNBD copies with qemu-img into qemu-nbd, which is the faster of the two on most machines.
func qemuImgToQemuNBD(certs string) copier {
	return copier{"qemu-img", func(ctx context.Context, source, target string) (time.Duration, error) {
		return between(ctx, source, target,
			func(port string) []string {
				return []string{"qemu-nbd", "--bind=127.0.0.1", "--port=" + port, "--persistent", "--cache=none", "--aio=native", "--format=raw", "--discard=unmap",
					"--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir=" + certs, "--tls-creds=tls0", target}
			},
			func(port string) []string {
				return []string{"qemu-img", "convert", "-n", "-W", "-m", "8", "-T", "none", "-t", "none", "-f", "raw", "--target-image-opts",
					"--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + certs, source,
					"driver=raw,file.driver=nbd,file.host=localhost,file.port=" + port + ",file.tls-creds=tls0"}
			})
	}}
}

// between makes target as large as source, starts the server, runs the client
// against it and times the client up to the moment when the target is synced.
func between(ctx context.Context, source, target string, server, client func(port string) []string) (time.Duration, error) {
	size, err := deviceSize(source)
	if err != nil {
		return 0, err
	}
	f, err := os.Create(target)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()

	args := server(port)
	daemon := exec.Command(args[0], args[1:]...)
	daemon.Stderr = os.Stderr
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return 0, err
	}
	defer daemon.Wait()
	defer daemon.Process.Kill()
	if err := answering(ctx, "127.0.0.1:"+port); err != nil {
		return 0, fmt.Errorf("%s: %w", args[0], err)
	}
	args = client(port)
	start := time.Now()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%v: %w: %s", args, err, out)
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// answering waits until something accepts connections at addr.
func answering(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing answers at %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
