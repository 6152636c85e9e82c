package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// connectTimeout is how long a host has to answer and to let us in.
const connectTimeout = 20 * time.Second

// Login says how to get into the hosts.
type Login struct {
	User       string   // where the inventory names none
	Keys       []string // files with private keys, without a passphrase
	KnownHosts []string // files in the form of OpenSSH; a host that is in none is refused
	Socket     string   // of an SSH agent, whose keys are tried first; "": none
}

// A remote is a server that we are logged into.
type remote struct {
	client *ssh.Client
	sudo   bool
}

// dial logs in. The host must show a key that the files name for it.
func (l Login) dial(ctx context.Context, h Host) (_ *remote, err error) {
	known, err := knownhosts.New(l.KnownHosts...)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	user := h.User
	if user == "" {
		user = l.User
	}
	auth, done, err := l.auth(ctx, h)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", h.Address())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if !stop() && err != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
	}()
	conn, channels, requests, err := ssh.NewClientConn(raw, h.Address(), &ssh.ClientConfig{
		User: user, Auth: auth, HostKeyCallback: known, HostKeyAlgorithms: algorithms(known, h.Address()),
	})
	if err != nil {
		raw.Close()
		return nil, explain(err, h, user)
	}
	return &remote{client: ssh.NewClient(conn, channels, requests), sudo: user != "root"}, nil
}

// auth collects the keys to log in with. Those of the agent are used until done.
func (l Login) auth(ctx context.Context, h Host) (methods []ssh.AuthMethod, done func(), err error) {
	done = func() {}
	files := l.Keys
	if h.Key != "" {
		files = []string{h.Key}
	} else if l.Socket != "" {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", l.Socket)
		if err != nil {
			return nil, done, fmt.Errorf("reach the SSH agent: %w", err)
		}
		methods = append(methods, ssh.PublicKeysCallback(agent.NewClient(conn).Signers))
		done = func() { conn.Close() }
	}
	var signers []ssh.Signer
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, done, fmt.Errorf("read the key: %w", err)
		}
		signer, err := ssh.ParsePrivateKey(text)
		if missing := new(ssh.PassphraseMissingError); errors.As(err, &missing) {
			return nil, done, fmt.Errorf("key %s has a passphrase: add it to an SSH agent (ssh-add)", file)
		}
		if err != nil {
			return nil, done, fmt.Errorf("read key %s: %w", file, err)
		}
		signers = append(signers, signer)
	}
	if len(signers) > 0 {
		methods = append(methods, ssh.PublicKeys(signers...))
	}
	if len(methods) == 0 {
		return nil, done, errors.New("no key to log in with: name one with --ssh-key, or start an SSH agent")
	}
	return methods, done, nil
}

// algorithms are those of the keys that are known of a host, so that it shows one
// of these and not another that it has too.
func algorithms(known ssh.HostKeyCallback, address string) (names []string) {
	var keys *knownhosts.KeyError
	if err := known(address, &net.TCPAddr{}, nobodysKey{}); !errors.As(err, &keys) {
		return nil
	}
	for _, k := range keys.Want {
		switch t := k.Key.Type(); t {
		case ssh.KeyAlgoRSA:
			names = append(names, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			names = append(names, t)
		}
	}
	return names
}

// nobodysKey is one that no file of known hosts has.
type nobodysKey struct{}

func (nobodysKey) Type() string                        { return "nobody" }
func (nobodysKey) Marshal() []byte                     { return []byte("nobody") }
func (nobodysKey) Verify([]byte, *ssh.Signature) error { return errors.New("nobody signs") }

// explain says what to do about a login that failed.
func explain(err error, h Host, user string) error {
	var keys *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return fmt.Errorf("the host key was revoked: %w", err)
	case errors.As(err, &keys) && len(keys.Want) == 0:
		return fmt.Errorf("host key unknown: check it, and add it with ssh-keyscan -p %d %s to a file of known hosts", h.Port, h.Name)
	case errors.As(err, &keys):
		return fmt.Errorf("HOST KEY CHANGED: it is not the one in %s line %d; somebody may be in between", keys.Want[0].Filename, keys.Want[0].Line)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("login as %s refused: %w", user, err)
	}
	return err
}

// quote makes a word of the shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// run runs a script of the POSIX shell as root, with stdin and arguments, and
// returns what it prints. An error has the last line of its errors.
func (r *remote) run(ctx context.Context, stdin io.Reader, script string, args ...string) (string, error) {
	session, err := r.client.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	var out, errs tail
	session.Stdin, session.Stdout, session.Stderr = stdin, &out, &errs
	command := "sh -c " + quote(script) + " sh"
	for _, a := range args {
		command += " " + quote(a)
	}
	if r.sudo {
		command = "sudo -n " + command
	}
	err = session.Run(command)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err == nil {
		return strings.TrimSpace(out.String()), nil
	}
	if said := errs.lastLines(); said != "" {
		return "", errors.New(said)
	}
	return "", err
}

func (r *remote) close() { r.client.Close() }

// A tail keeps the end of what is written: a server may say anything.
type tail struct{ bytes.Buffer }

const tailBytes = 16 << 10

// Write implements [io.Writer].
func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.Buffer.Write(p)
	if over := t.Len() - tailBytes; over > 0 {
		t.Next(over)
	}
	return n, nil
}

// lastLines are the error and the hint that our programs end with, or the last
// line, made fit for a terminal.
func (t *tail) lastLines() string {
	var lines []string
	for line := range strings.Lines(t.String()) {
		if line = printable(line); line != "" {
			lines = append(lines, line)
		}
	}
	n := len(lines)
	switch {
	case n == 0:
		return ""
	case n > 1 && strings.HasPrefix(lines[n-1], "hint: "):
		return strings.TrimPrefix(lines[n-2], "error: ") + " (" + lines[n-1] + ")"
	}
	return strings.TrimPrefix(lines[n-1], "error: ")
}

// printable drops what a terminal would obey.
func printable(text string) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return -1
		}
		return c
	}, text))
}
