package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// A Plan says what is installed on each host, and how.
type Plan struct {
	Login  Login
	Agents []Agent // programs, at most one for each architecture

	Endpoint, Region string
	CA               []byte // ca.pem of the service
	Key              Key
	Options          []string // more flags of rehost-agent install, for all hosts

	Parallel int           // hosts at once; 0: DefaultParallel
	Timeout  time.Duration // for one host; 0: DefaultTimeout
}

// A Key is what the agents are registered with.
type Key struct{ ID, Secret, Token string }

// Defaults of a [Plan].
const (
	DefaultParallel = 10
	DefaultTimeout  = 10 * time.Minute
)

// An Agent is the agent's program for one architecture, as uname -m names it.
type Agent struct {
	Machine string
	Program []byte
}

// machines are the architectures that the agent is built for.
var machines = map[elf.Machine]string{elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}

// ReadAgent reads a program, and finds out what it is for.
func ReadAgent(path string) (Agent, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return Agent{}, fmt.Errorf("read the agent: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return Agent{}, fmt.Errorf("read the agent: %s is no program for Linux: %w", path, err)
	}
	machine, ok := machines[f.Machine]
	if !ok {
		return Agent{}, fmt.Errorf("read the agent: %s is for %v, which the agent is not made for", path, f.Machine)
	}
	return Agent{machine, program}, nil
}

// The scripts that run on a host. They are short, since they must work with any
// shell; each ends with an error if anything in it fails.
const (
	// lookScript makes a directory in which programs may be run: /tmp often may not.
	lookScript = `set -eu; umask 077
uname -sm
for at in /var/lib /root /var/tmp /tmp /run; do
	d=$(mktemp -d "$at/rehost-install.XXXXXX" 2>/dev/null) || continue
	if printf '#!/bin/sh\n' >"$d/try" 2>/dev/null && chmod 700 "$d/try" && "$d/try" 2>/dev/null; then rm "$d/try"; echo "$d"; exit 0; fi
	rm -rf "$d"
done
echo "error: no directory on this server lets programs be run (noexec, or read-only): tried /var/lib, /root, /var/tmp, /tmp, /run" >&2
exit 1`

	copyScript = `set -eu; umask 077; cat >"$1/$2"; chmod "$3" "$1/$2"
if command -v sha256sum >/dev/null; then
	echo "$4  $1/$2" | sha256sum -c - >/dev/null 2>&1 || { echo "error: $2 did not arrive as it was sent" >&2; exit 1; }
fi`

	// The credentials are read from standard input: everybody can see arguments.
	installScript = `set -eu
IFS= read -r AWS_ACCESS_KEY_ID; IFS= read -r AWS_SECRET_ACCESS_KEY; IFS= read -r AWS_SESSION_TOKEN
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
if [ -n "$AWS_SESSION_TOKEN" ]; then export AWS_SESSION_TOKEN; else unset AWS_SESSION_TOKEN; fi
d=$1; shift
"$d/rehost-agent" install --no-prompt --ca "$d/ca.pem" "$@"`

	removeScript = `case "$1" in */rehost-install.*) rm -rf "$1";; esac`
)

// A step is where the installation on a host is.
type step string

const (
	waiting    step = "waiting"
	connecting step = "connecting"
	copying    step = "copying"
	installing step = "installing"
	installed  step = "installed"
	failed     step = "failed"
	skipped    step = "installed before"
)

var sourceServer = regexp.MustCompile(`\bs-[0-9a-f]{17}\b`)

// install installs the agent on one host, and returns its source server's id, if
// the agent said it. What was copied is removed, also when ctx has ended.
func (p *Plan) install(ctx context.Context, h Host, tell func(step)) (id string, err error) {
	tell(connecting)
	r, err := p.Login.dial(ctx, h)
	if err != nil {
		return "", err
	}
	defer r.close()
	out, err := r.run(ctx, nil, lookScript)
	if err != nil {
		return "", err
	}
	machine, dir, ok := strings.Cut(out, "\n")
	if !ok || !strings.Contains(dir, "/rehost-install.") || strings.ContainsAny(dir, "\n'") {
		return "", fmt.Errorf("the server answered %q", printable(out))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		if _, rerr := r.run(ctx, nil, removeScript, dir); rerr != nil && err == nil {
			err = fmt.Errorf("installed, but %s is left on the server: %w", dir, rerr)
		}
	}()
	agent, err := p.agentFor(machine)
	if err != nil {
		return "", err
	}
	tell(copying)
	for _, f := range []struct {
		name, mode string
		content    []byte
	}{{"rehost-agent", "700", agent.Program}, {"ca.pem", "600", p.CA}} {
		sum := sha256.Sum256(f.content)
		if _, err := r.run(ctx, bytes.NewReader(f.content), copyScript, dir, f.name, f.mode, hex.EncodeToString(sum[:])); err != nil {
			return "", fmt.Errorf("copy %s: %w", f.name, err)
		}
	}
	tell(installing)
	out, err = r.run(ctx, p.credentials(), installScript, append([]string{dir}, p.flags(h)...)...)
	if err != nil {
		return "", err
	}
	return sourceServer.FindString(out), nil
}

// agentFor finds the program for what uname -sm said.
func (p *Plan) agentFor(uname string) (Agent, error) {
	system, machine, _ := strings.Cut(strings.TrimSpace(uname), " ")
	if system != "Linux" {
		return Agent{}, fmt.Errorf("the server runs %s, the agent Linux only", printable(system))
	}
	var have []string
	for _, a := range p.Agents {
		if a.Machine == machine {
			return a, nil
		}
		have = append(have, a.Machine)
	}
	return Agent{}, fmt.Errorf("the server is %s, and --agent names a program for %s: name one for it too", printable(machine), strings.Join(have, ", "))
}

func (p *Plan) flags(h Host) []string {
	flags := []string{"--endpoint", p.Endpoint, "--region", p.Region}
	for _, d := range h.Devices {
		flags = append(flags, "--devices="+d)
	}
	for _, t := range h.Tags {
		flags = append(flags, "--tags="+t)
	}
	if h.UserProvidedID != "" {
		flags = append(flags, "--user-provided-id", h.UserProvidedID)
	}
	return append(append(flags, p.Options...), h.Options...)
}

func (p *Plan) credentials() io.Reader {
	return strings.NewReader(p.Key.ID + "\n" + p.Key.Secret + "\n" + p.Key.Token + "\n")
}

// validate finds what would fail on every host before any is touched.
func (p *Plan) validate() error {
	var errs []error
	for _, v := range []string{p.Key.ID, p.Key.Secret, p.Key.Token} {
		if strings.ContainsAny(v, "\r\n") {
			errs = append(errs, errors.New("the access key has a line end in it"))
		}
	}
	for what, missing := range map[string]bool{"endpoint": p.Endpoint == "", "region": p.Region == "", "authority (ca.pem)": len(p.CA) == 0,
		"access key": p.Key.ID == "" || p.Key.Secret == "", "agent": len(p.Agents) == 0, "file of known hosts": len(p.Login.KnownHosts) == 0} {
		if missing {
			errs = append(errs, fmt.Errorf("no %s given", what))
		}
	}
	return errors.Join(errs...)
}
