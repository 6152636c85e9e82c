package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"rehost/capture"
)

// A Verdict is how a check ended.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Skipped Verdict = "skipped" // it could not be checked, and Text says why
	Warning Verdict = "warning" // it works, or may; Hint says what would be better
	Fails   Verdict = "fails"   // it does not work; Hint says what to do
)

// A Check is one question that [Diagnose] has answered.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Hint    string  `json:"hint,omitempty"`
}

// A Diagnosis is all of them, in the order in which one matters to the next.
type Diagnosis []Check

// Fails is whether one of the checks does.
func (d Diagnosis) Fails() bool {
	for _, c := range d {
		if c.Verdict == Fails {
			return true
		}
	}
	return false
}

// Print writes the diagnosis for people.
func (d Diagnosis) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, c := range d {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Verdict, c.Name, c.Text)
		if c.Hint != "" {
			fmt.Fprintf(t, "\t\t  -> %s\n", c.Hint)
		}
	}
	return t.Flush()
}

// PrintJSON writes it for programs.
func (d Diagnosis) PrintJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(d)
}

// DoctorOptions say what is looked at. Of an installation the state directory
// says where the service is and whom to believe; before one, the rest does.
type DoctorOptions struct {
	StateDir      string // "" is DefaultStateDir
	Endpoint      string // host, host:port or https URL
	CA            string // file with the service's certificate authority
	CAFingerprint string // its SHA-256
	VPNInvitation string // file that rehost vpn invite has written: the service is looked for in its VPN
	BPFFS         string // "" is /sys/fs/bpf

	Machine Machine
	System  capture.System

	now func() time.Time // nil is time.Now
}

// A doctor is a diagnosis being made.
type doctor struct {
	DoctorOptions
	dir       stateDir
	config    Config // of the installation
	installed bool
	checks    Diagnosis
}

// Diagnose looks for all that an agent on this machine needs, and for what could
// be in its way. It changes nothing, and works before an installation too.
func Diagnose(ctx context.Context, o DoctorOptions) Diagnosis {
	d := &doctor{DoctorOptions: o}
	if d.StateDir == "" {
		d.StateDir = DefaultStateDir
	}
	if d.now == nil {
		d.now = time.Now
	}
	d.dir = stateDir(d.StateDir)
	d.installation()
	d.rights()
	d.kernel()
	d.machine()
	d.selinux()
	d.disks()
	d.neighbours()
	d.network(ctx)
	return d.checks
}

func (d *doctor) note(v Verdict, name, hint, format string, args ...any) {
	d.checks = append(d.checks, Check{Name: name, Verdict: v, Text: fmt.Sprintf(format, args...), Hint: hint})
}

func (d *doctor) ok(name, format string, args ...any) { d.note(OK, name, "", format, args...) }

// fails notes an error, with what this package knows to do about it or else what
// the check does.
func (d *doctor) fails(name string, err error, hint string) {
	if h := Hint(err); h != "" {
		hint = h
	}
	d.note(Fails, name, hint, "%v", err)
}

// installation looks at the state directory and at who runs from it.
func (d *doctor) installation() {
	const name = "installation"
	config, err := d.dir.config()
	switch {
	case errors.Is(err, ErrNotInstalled) || errors.Is(err, fs.ErrNotExist):
		d.ok(name, "none in %s", d.StateDir)
	case err != nil:
		d.fails(name, err, "run it as root; a directory that is damaged is removed with rehost-agent uninstall")
	default:
		d.config, d.installed = config, true
		config.heedProxy()
		d.BPFFS = config.BPFFS
		d.runs(name)
	}
	if err := d.dir.room(); err != nil {
		d.fails("state directory", err, "")
		return
	}
	free, _, err := d.dir.fileSystem()
	switch {
	case err != nil:
		d.fails("state directory", err, "")
	case free < 4*leastRoom:
		d.note(Warning, "state directory", "free some space", "only %s are free where %s is", humanBytes(free), d.StateDir)
	default:
		d.ok("state directory", "%s, where %s are free", d.StateDir, humanBytes(free))
	}
}

func (d *doctor) runs(name string) {
	if err := d.dir.check(); err != nil {
		d.fails(name, err, "chmod 700 "+d.StateDir+", and make sure that nobody has put something there")
		return
	}
	if _, err := os.Stat(d.dir.program() + previousSuffix); err == nil {
		d.note(Warning, "upgrade", "rehost-agent upgrade finishes it, or takes it back", "one was interrupted")
	}
	s, err := ReadStatus(d.StateDir)
	switch {
	case err != nil:
		d.fails(name, err, "")
	case !s.Running:
		d.note(Fails, name, "rehost-agent restart starts it; its log says why it ended", "source server %s, and the agent does not run", s.SourceServerID)
	case s.Error != "":
		d.note(Fails, name, s.Hint, "source server %s: %s", s.SourceServerID, s.Error)
	case d.now().Sub(s.Time) > time.Minute:
		d.note(Warning, name, "see the agent's log", "source server %s: the agent, pid %d, has said nothing since %s", s.SourceServerID, s.PID, s.Time.UTC().Format(time.RFC3339))
	default:
		d.ok(name, "source server %s, agent %s runs, pid %d, %s", s.SourceServerID, s.Version, s.PID, strings.ToLower(s.State))
	}
}

// The capabilities that tracking needs, as linux/capability.h numbers them.
const (
	capPerfmon  = 38
	capBPF      = 39
	capSysAdmin = 21
)

// rights says whether this process could be an agent.
func (d *doctor) rights() {
	const name = "rights"
	have := capabilities(d.Machine.read("proc/self/status"))
	switch {
	case os.Geteuid() == 0 && (have.has(capSysAdmin) || have.has(capBPF) && have.has(capPerfmon)):
		d.ok(name, "this is root")
	case os.Geteuid() == 0:
		d.note(Fails, name, "a container has to be given CAP_BPF and CAP_PERFMON, and the disks", "this is root without CAP_BPF and CAP_PERFMON")
	case have.has(capBPF) && have.has(capPerfmon):
		d.ok(name, "not root, with CAP_BPF and CAP_PERFMON")
	default:
		d.note(Fails, name, "run it with sudo: what follows is less than root would see", "%v", ErrNotRoot)
	}
}

// A capabilitySet is the effective one of a process.
type capabilitySet uint64

func (s capabilitySet) has(n int) bool { return s&(1<<n) != 0 }

// capabilities reads CapEff out of /proc/PID/status.
func capabilities(status string) (set capabilitySet) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64); err == nil {
				set = capabilitySet(n)
			}
		}
	}
	return set
}

// machine says how this one is known again.
func (d *doctor) machine() {
	id, err := d.Machine.ID()
	switch {
	case err != nil:
		d.fails("machine", err, "")
	case d.installed && id != d.config.MachineID:
		d.fails("machine", fmt.Errorf("%w: installed on %s, this is %s", ErrCopied, d.config.MachineID, id), "")
	default:
		d.ok("machine", "known by %s", id)
	}
}
