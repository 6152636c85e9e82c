package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"rehost/internal/fault"
	"rehost/release"
)

// askedVariables make this test program root's part of an upgrade.
const (
	askedVariable = "REHOST_AGENT_TEST_ASKED" // state directory
	keyVariable   = "REHOST_AGENT_TEST_KEY"   // who is believed
)

// askedMain is what such a test program does.
func askedMain(dir, key string) error {
	keys, err := release.ParseKeys(key)
	if err != nil {
		return err
	}
	u, err := openUpgrade(UpgradeOptions{StateDir: dir, proof: 20 * time.Millisecond, lasts: time.Millisecond})
	if err != nil {
		return err
	}
	return errors.Join(u.asked(context.Background(), keys), u.lock.Close())
}

// A site of an upgrade: an installation whose program is version 1.0.0, and what its
// agent lays down.
type upgradeSite struct {
	t        *testing.T
	dir      stateDir
	believed minisign.PublicKey
	signer   minisign.PrivateKey
}

const task = "t-00000000000000001"

// versioned is a program that says which version it is of.
func versioned(version string) []byte { return []byte("#!/bin/sh\necho " + version + "\n") }

func newUpgradeSite(t *testing.T) *upgradeSite {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it is about what root takes")
	}
	s := &upgradeSite{t: t, dir: stateDir(filepath.Join(t.TempDir(), "state"))}
	var err error
	if s.believed, s.signer, err = minisign.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	s.must(os.Mkdir(string(s.dir), 0o700))
	s.must(os.Mkdir(s.dir.programDir(), 0o755))
	s.must(os.WriteFile(s.dir.program(), versioned("1.0.0"), 0o755))
	s.must(s.dir.save(configFile, Config{Version: stateVersion, Endpoint: "https://127.0.0.1:1", Region: region, SourceServerID: serverID, MachineID: "m",
		Disks: []Device{{Name: "/dev/none", Size: 1 << 20}}, Service: ServiceNone, Installed: time.Now()}))
	return s
}

func (s *upgradeSite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// layDown is what the agent does.
func (s *upgradeSite) layDown(version string, program []byte) {
	s.t.Helper()
	v, err := release.ParseVersion(version)
	s.must(err)
	sum, err := release.SumOf(bytes.NewReader(program))
	s.must(err)
	sums := fmt.Appendf(nil, "%s  %s\n", sum, release.Agent(runtime.GOARCH))
	s.must(errors.Join(s.dir.write(askedProgram, program, false), s.dir.write(askedSums, sums, false),
		s.dir.write(askedSignature, release.Sign(s.signer, v, sums), false), s.dir.save(askedFile, asked{Task: task})))
}

// ask does root's part.
func (s *upgradeSite) ask(keys ...minisign.PublicKey) error {
	s.t.Helper()
	u, err := openUpgrade(UpgradeOptions{StateDir: string(s.dir), proof: 20 * time.Millisecond, lasts: time.Millisecond})
	s.must(err)
	defer u.lock.Close()
	return u.asked(s.t.Context(), keys)
}

// is wants the program to be whole and of a version, and nothing else to be there.
func (s *upgradeSite) is(version string) {
	s.t.Helper()
	if text, err := os.ReadFile(s.dir.program()); !bytes.Equal(text, versioned(version)) {
		s.t.Errorf("the program is not %s: %q, %v", version, text, err)
	}
	for _, dir := range []string{string(s.dir), s.dir.programDir()} {
		entries, err := os.ReadDir(dir)
		s.must(err)
		for _, e := range entries {
			if n := e.Name(); n != configFile && n != programFile && n != outcomeFile || dir == string(s.dir) && n == askedFile {
				s.t.Errorf("left behind in %s: %s", dir, n)
			}
		}
	}
}

// TestAsked: what the agent lays down is taken if somebody who is believed has signed it,
// and it is newer. Whatever else the agent's user puts there, root runs nothing of it,
// follows no link, waits for nobody, and says why.
func TestAsked(t *testing.T) {
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, versioned("1.1.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stranger, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, change func(path string) error) func(*upgradeSite) {
		return func(s *upgradeSite) { s.must(change(s.dir.path(name))) }
	}
	flip := func(path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text[len(text)-2] ^= 1
		return os.WriteFile(path, text, 0o600)
	}
	somebody := func(path string) error { return os.Lchown(path, 60123, 60123) }
	instead := func(put func(path string) error) func(path string) error {
		return func(path string) error { return errors.Join(os.Remove(path), put(path)) }
	}
	for name, c := range map[string]struct {
		version string
		change  func(*upgradeSite)
		why     string // "" if it is taken
	}{
		"Good":           {"1.1.0", nil, ""},
		"PreRelease":     {"1.0.0-rc1", nil, ErrOlder.Error()},
		"Older":          {"0.9.9", nil, ErrOlder.Error()},
		"Stranger":       {"1.1.0", func(s *upgradeSite) { s.signer = stranger; s.layDown("1.1.0", versioned("1.1.0")) }, release.ErrSignature.Error()},
		"Tampered":       {"1.1.0", file(askedProgram, flip), release.ErrSum.Error()},
		"CutOff":         {"1.1.0", file(askedProgram, func(path string) error { return os.Truncate(path, 7) }), release.ErrSum.Error()},
		"SumsChanged":    {"1.1.0", file(askedSums, flip), release.ErrSignature.Error()},
		"Relabelled":     {"1.1.0", file(askedSignature, func(path string) error { return exec.Command("sed", "-i", "s/rehost 1.1.0/rehost 9.1.0/", path).Run() }), release.ErrSignature.Error()},
		"Mislabelled":    {"1.1.0", func(s *upgradeSite) { s.layDown("1.2.0", versioned("1.1.0")) }, "says that it is 1.1.0"},
		"NoProgram":      {"1.1.0", func(s *upgradeSite) { s.layDown("1.2.0", []byte("this is no program")) }, "exec format error"},
		"Incomplete":     {"1.1.0", file(askedProgram, os.Remove), "no such file"},
		"Somebodys":      {"1.1.0", file(askedProgram, somebody), ErrNotTaken.Error()},
		"SomebodysWish":  {"1.1.0", file(askedFile, somebody), ErrNotTaken.Error()},
		"Link":           {"1.1.0", file(askedProgram, instead(func(path string) error { return os.Symlink(precious, path) })), "too many levels of symbolic links"},
		"Pipe":           {"1.1.0", file(askedProgram, instead(func(path string) error { return unix.Mkfifo(path, 0o600) })), ErrNotTaken.Error()},
		"Directory":      {"1.1.0", file(askedSums, instead(func(path string) error { return os.Mkdir(path, 0o700) })), ErrNotTaken.Error()},
		"Long":           {"1.1.0", file(askedSums, func(path string) error { return os.Truncate(path, release.MaxSums+1) }), ErrNotTaken.Error()},
		"NoWish":         {"1.1.0", file(askedFile, func(path string) error { return os.WriteFile(path, []byte("{}{"), 0o600) }), "read"},
		"NobodyBelieved": {"1.1.0", func(s *upgradeSite) { s.believed = minisign.PublicKey{} }, ErrNoKeys.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newUpgradeSite(t)
			s.layDown(c.version, versioned(c.version))
			if c.change != nil {
				c.change(s)
			}
			keys := []minisign.PublicKey{s.believed}
			if s.believed.ID() == 0 {
				keys = nil
			}
			s.must(s.ask(keys...))
			done := s.dir.outcome()
			if c.why == "" {
				s.is("1.1.0")
				if done != (outcome{Task: task}) {
					t.Errorf("it is written down: %+v", done)
				}
				return
			}
			s.is("1.0.0")
			if !strings.Contains(done.Failure, c.why) || done.UnderWay {
				t.Errorf("it does not say %q: %+v", c.why, done)
			}
		})
	}
}

// TestAsked_Unproven: a version that is signed and does not live is not left there, and the
// agent learns why it is not of that version.
func TestAsked_Unproven(t *testing.T) {
	s := newUpgradeSite(t)
	c, err := s.dir.config()
	s.must(err)
	c.Service = ServiceDetached
	s.must(s.dir.save(configFile, c))
	s.layDown("1.1.0", versioned("1.1.0"))
	s.must(s.ask(s.believed))
	s.is("1.0.0")
	if done := s.dir.outcome(); !strings.Contains(done.Failure, ErrUnproven.Error()) || !strings.Contains(done.Failure, "the version before runs again") {
		t.Errorf("it is written down: %+v", done)
	}
}

// TestAsked_Killed kills root's part at every step that it takes, by a signal that cannot
// be caught. Whenever that is, there is a program, whole and of one of the two versions;
// and when the agent has begun again, as it does, the outcome tells which, and nothing is
// left.
func TestAsked_Killed(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("SKIPPED: strace is not there")
	}
	killed, versions := 0, map[string]int{}
	for _, name := range []string{askedFile, askedProgram, programFile + nextSuffix, programFile, programFile + previousSuffix, outcomeFile, outcomeFile + ".new", ""} {
		for when := 1; when <= 6; when++ {
			s := newUpgradeSite(t)
			s.layDown("1.1.0", versioned("1.1.0"))
			calls := "renameat,renameat2,linkat,unlinkat,fsync,fchmod,fchmodat"
			if name != "" {
				calls += ",openat"
			}
			args := []string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls, "-e", "inject=" + calls + ":signal=SIGKILL:when=" + strconv.Itoa(when)}
			switch name {
			case "": // wherever
			case askedFile, askedProgram:
				args = append(args, "-P", s.dir.path(name))
			default:
				args = append(args, "-P", filepath.Join(s.dir.programDir(), name))
			}
			self, err := os.Executable()
			s.must(err)
			cmd := exec.CommandContext(t.Context(), "strace", append(args, self)...)
			cmd.Env = append(os.Environ(), askedVariable+"="+string(s.dir), keyVariable+"="+s.believed.String())
			if out, err := cmd.CombinedOutput(); err == nil {
				break // it does not come here so often
			} else if !strings.Contains(err.Error(), "killed") && !strings.Contains(err.Error(), "status 137") {
				t.Fatalf("%s %d: %v: %s", name, when, err, out)
			}
			killed++
			text, err := os.ReadFile(s.dir.program())
			if err != nil || !bytes.Equal(text, versioned("1.0.0")) && !bytes.Equal(text, versioned("1.1.0")) {
				t.Fatalf("%s %d: the program is %q: %v", name, when, text, err)
			}
			// The agent is started, finds that nobody is at it, and ends; or it learns the outcome.
			for range 2 {
				if done := s.dir.outcome(); done.Task == task && !done.UnderWay {
					break
				}
				if !s.dir.cutOff() && bytes.Equal(text, versioned("1.0.0")) {
					s.layDown("1.1.0", versioned("1.1.0"))
				}
				s.must(s.ask(s.believed))
			}
			done, version := s.dir.outcome(), "1.1.0"
			if strings.Contains(done.Failure, ErrUnproven.Error()) { // here is no agent that could
				version = "1.0.0"
			} else if done.Failure != "" || done.UnderWay {
				t.Errorf("%s %d: %+v", name, when, done)
			}
			versions[version]++
			s.must(s.ask(s.believed)) // what is left goes with the next one
			if _, err := os.Stat(filepath.Join(s.dir.programDir(), outcomeFile+".new")); err == nil {
				s.must(os.Remove(filepath.Join(s.dir.programDir(), outcomeFile+".new"))) // written over the next time
			}
			s.is(version)
		}
	}
	t.Logf("killed %d times: %v", killed, versions)
	if killed < 10 || versions["1.1.0"] == 0 {
		t.Errorf("killed %d times only: %v", killed, versions)
	}
}

// TestDownloads_CutOff: a program whose connection ends on the way, or that is another one
// than the list has, is not left behind.
func TestDownloads_CutOff(t *testing.T) {
	program := versioned("1.1.0")
	sum, err := release.SumOf(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	m, err := release.Parse(fmt.Appendf(nil, "%s  %s\n", sum, release.Agent(runtime.GOARCH)))
	if err != nil {
		t.Fatal(err)
	}
	var send []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(program)))
		_, _ = w.Write(send) // and the connection is cut
	}))
	defer srv.Close()
	d := &downloads{http: srv.Client(), endpoint: srv.URL}
	defer d.http.CloseIdleConnections()
	path := filepath.Join(t.TempDir(), askedProgram)
	for cut, want := range map[int]error{0: io.ErrUnexpectedEOF, 5: io.ErrUnexpectedEOF, len(program): nil} {
		send = program[:cut]
		err := d.program(t.Context(), m, path)
		if _, there := os.Stat(path); !errors.Is(err, want) || (there == nil) != (want == nil) {
			t.Errorf("cut off after %d bytes: %v, there: %v", cut, err, there)
		}
	}
	send = append(bytes.Clone(program[:len(program)-1]), ' ')
	if err := d.program(t.Context(), m, path); !errors.Is(err, release.ErrSum) {
		t.Errorf("another program: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("another program is left")
	}
}

// TestDue: root's part begins when the agent asks or something was cut off, and never twice
// at once.
func TestDue(t *testing.T) {
	s := newUpgradeSite(t)
	due := func(what string, want bool) {
		t.Helper()
		if s.dir.due() != want {
			t.Errorf("%s: due %v", what, !want)
		}
	}
	due("nothing", false)
	s.layDown("1.1.0", versioned("1.1.0"))
	due("laid down", true)
	u, err := openUpgrade(UpgradeOptions{StateDir: string(s.dir)})
	s.must(err)
	due("under way", false)
	if !s.dir.upgrading() {
		t.Error("the agent does not see that it is under way")
	}
	s.must(errors.Join(u.lock.Close(), s.dir.takeUp()))
	due("taken up", false)
	s.must(os.Link(s.dir.program(), s.dir.program()+previousSuffix))
	due("cut off", true)
	s.must(s.ask(s.believed))
	due("finished", false)
	if done := s.dir.outcome(); done != (outcome{}) {
		t.Errorf("nobody has asked, and it is written down: %+v", done)
	}
	if _, err := s.dir.asked(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestWish: an agent whose root does not do its part ends a few times for it, and then
// goes on as it is.
func TestWish(t *testing.T) {
	s := newUpgradeSite(t)
	tries := 0
	for {
		wish, err := s.dir.wish(task)
		if errors.Is(err, errNotTakenUp) {
			break
		}
		s.must(err)
		if tries++; tries > maxTries {
			t.Fatalf("laid down %d times", tries)
		}
		s.layDown("1.1.0", versioned("1.1.0"))
		s.must(s.dir.save(askedFile, wish))
	}
	if tries != maxTries || s.dir.due() {
		t.Errorf("laid down %d times, of %d; still due: %v", tries, maxTries, s.dir.due())
	}
	s.is("1.0.0")
}

// TestAskedMutants: what keeps who has the agent's user from root, left out, is noticed.
func TestAskedMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"SignatureNotChecked": {File: "upgrade.go", From: "m, err := release.Open(sums, signature, keys)", To: "m, err := release.Parse(sums)\n\tm.Version = release.Version{Major: 7}", Tests: "TestAsked$"},
		"SumNotChecked":       {File: "upgrade.go", From: "err = m.Check(name, sum)", To: "_ = m.Check(name, sum)", Tests: "TestAsked$"},
		"DowngradeAccepted":   {File: "upgrade.go", From: "case order < 0 && !downgrade:", To: "case false:", Tests: "TestAsked$"},
		"SomebodyBelieved":    {File: "asked.go", From: " || int(st.Uid) != owner.UID", To: "", Tests: "TestAsked$"},
		"LinkFollowed":        {File: "asked.go", From: "unix.O_NOFOLLOW|", To: "", Tests: "TestAsked$"},
		"LinesInUnit":         {File: "unit.go", From: "if strings.ContainsFunc(p, unicode.IsControl) {", To: "if strings.ContainsFunc(p, unicode.IsControl) && false {", Tests: "TestUnit_Lines$"},
		"TwiceAtOnce":         {File: "asked.go", From: "if d.upgrading() {\n\t\treturn false", To: "if false {\n\t\treturn false", Tests: "TestDue$"},
		"NothingKept":         {File: "upgrade.go", From: "errors.Join(os.Link(u.program, u.program+previousSuffix), ", To: "errors.Join(", Tests: "TestAsked_Unproven$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
