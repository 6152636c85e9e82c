package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"rehost/release"
)

// TestScript installs the real agent from the real service with the line that
// people paste, again, with other tools, and through a proxy that alone knows the
// service's name.
func TestScript(t *testing.T) {
	w := newWorld(t)
	w.disk.Overwrite(t, 0, []byte("something to replicate"))
	out, err := w.sh(w.curl(w.installArgs("--tags", "Name=db")))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"the release is signed by " + w.key.String(), "The agent is installed"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if s := w.until("replication", continuous); s.Version != "0.1.0" {
		t.Errorf("%+v", s)
	}
	if entries, _ := os.ReadDir(w.tmp); len(entries) > 0 {
		t.Errorf("left in TMPDIR: %v", entries)
	}
	servers := w.servers()
	if len(servers) != 1 || servers[0].Tags["Name"] != "db" {
		t.Fatalf("%+v", servers)
	}

	// Again, by wget, through a proxy that alone finds the service.
	proxy := newConnectProxy(t)
	name := "https://rehost.test:" + w.port()
	line := fmt.Sprintf("wget -q --ca-certificate=%s/ca.pem -O - %s/install.sh | sh -s -- %s", w.service.Data, name, w.installArgs("--release-key", w.key.String()))
	if out, err := w.sh(line, "PATH="+w.toolbox("wget", "openssl"), "https_proxy="+proxy.url, "no_proxy=127.0.0.1"); err != nil || !strings.Contains(out, "knew this machine already") || !strings.Contains(out, "is signed by") {
		t.Fatalf("%v: %s", err, out)
	}
	if hosts := proxy.asked(); !slices.Contains(hosts, "rehost.test:"+w.port()) {
		t.Errorf("the proxy was asked for %v", hosts)
	}
	if n := len(w.servers()); n != 1 {
		t.Errorf("%d source servers", n)
	}
	// It knows the proxy itself: a service manager passes no environment on.
	before := len(proxy.asked())
	restart := exec.Command(w.program(), "restart", "--state-dir", w.state)
	restart.Env = []string{"PATH=" + os.Getenv("PATH")}
	if out, err := restart.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.until("replication by the proxy", func(s status) bool { return continuous(s) && len(proxy.asked()) > before })

	// doctor, of an installation by a proxy: the machine of tests is no model of health,
	// but the way to the service is.
	out, _ = w.agentRun("doctor")
	for _, want := range []string{"installation", "replication  ", "proxy", "rehost.test:" + w.port() + " answers", "chain and name of the service are right", "as the service's"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}
	t.Log("\n" + out)
	if out, err := w.agentRun("uninstall"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(w.state); err == nil {
		t.Error("the state directory stays")
	}
}

// toolbox is a directory with what the script needs and these, and no more.
func (w *world) toolbox(tools ...string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	for _, tool := range append(tools, "sh", "uname", "id", "mkdir", "rm", "chmod", "sed", "grep", "head", "tail", "cut", "sha256sum", "cat") {
		path, err := exec.LookPath(tool)
		if err != nil {
			w.t.Skipf("SKIPPED: %s is not there", tool)
		}
		if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
			w.t.Fatal(err)
		}
	}
	return dir
}

// fakeTool is a directory with a program of that name that prints a text.
func (w *world) fakeTool(name, prints string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+prints+"\n"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// mounted mounts a small file system of the test's own.
func (w *world) mounted(flags uintptr) string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := unix.Mount("rehost-test", dir, "tmpfs", flags, "size=128m"); err != nil {
		w.t.Skipf("SKIPPED: nothing can be mounted here: %v", err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestScript_Refused: what is wrong is said before anything has run, and leaves
// nothing here or at the service.
func TestScript_Refused(t *testing.T) {
	w := newWorld(t)
	script := filepath.Join(t.TempDir(), "install.sh")
	if out, err := w.sh(fmt.Sprintf("curl -fsS --cacert %s/ca.pem -o %s %s/install.sh", w.service.Data, script, w.service.Endpoint)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(args string, env ...string) (string, error) { return w.sh("sh "+script+" "+args, env...) }
	path := os.Getenv("PATH")

	out, err := run(w.installArgs(), "PATH="+w.fakeTool("uname", "s390x")+":"+path)
	w.refused("Uname", out, err, "this is s390x")
	arch := w.fakeTool("uname", `"$( [ "$1" = -s ] && echo Linux || echo s390x)"`)
	out, err = run(w.installArgs(), "PATH="+arch+":"+path)
	w.refused("Architecture", out, err, "this machine is s390x", "x86_64 and aarch64")
	arch = w.fakeTool("uname", `"$( [ "$1" = -s ] && echo Linux || echo aarch64)"`)
	out, err = run(w.installArgs(), "PATH="+arch+":"+path)
	w.refused("NoAgentForIt", out, err, "has no agent for aarch64", "--agent-dir")
	out, err = run(w.installArgs(), "PATH="+w.toolbox())
	w.refused("NoTools", out, err, "neither curl nor GNU wget", "hint:")

	_, stranger, _ := minisign.GenerateKey(nil)
	strangers := stranger.Public().(minisign.PublicKey).String()
	for _, tool := range []string{"minisign", "openssl"} { // either can check
		out, err = run(w.installArgs("--release-key", strangers), "PATH="+w.toolbox("curl", tool))
		w.refused("StrangersKey/"+tool, out, err, "is not by the key "+strangers)
	}
	out, err = run(w.installArgs("--release-key="+w.key.String()), "PATH="+w.toolbox("curl"))
	w.refused("CannotVerify", out, err, "neither minisign nor OpenSSL 3")
	out, err = run(w.installArgs("--release-key"))
	w.refused("NoKey", out, err, "--release-key needs a key")

	// A state directory that is no place for an agent.
	out, err = run(strings.Replace(w.installArgs(), w.state, w.mounted(unix.MS_RDONLY)+"/state", 1))
	w.refused("ReadOnly", out, err, "is read-only", "--state-dir")
	out, err = run(strings.Replace(w.installArgs(), w.state, w.mounted(unix.MS_NOEXEC)+"/state", 1))
	w.refused("NoExecState", out, err, "noexec", "--state-dir")

	// Half a script does nothing.
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{len(text) / 4, len(text) / 2, len(text) - 12} {
		out, _ := w.sh(fmt.Sprintf("head -c %d %s | sh -s -- %s", n, script, w.installArgs()))
		w.nothingLeft(fmt.Sprintf("the first %d bytes: %s", n, out))
	}

	// Another program than the script has heard of, though signed.
	w.serve(w.agent[1])
	out, err = run(w.installArgs())
	w.refused("OtherVersion", out, err, "is not in the signed list", "hint:")

	// A program that was changed where the service keeps it: not served, and the script neither.
	w.serve(w.agent[0])
	program := filepath.Join(w.serving, release.Agent("amd64"))
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(program, content, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err = w.sh(w.curl(w.installArgs())) // of which the shell gets nothing
	if !strings.Contains(out, "404") {
		t.Errorf("the script of a service whose agent was changed: %v: %s", err, out)
	}
	out, err = run(w.installArgs())
	w.refused("Tampered", out, err, "cannot be downloaded")
	if !strings.Contains(w.log.String(), release.ErrSum.Error()) {
		t.Error("the service does not say that its agent was changed")
	}

	// The same, with a list that fits it and nobody has signed.
	if err := new(command).sign(w.serving, nil, release.Version{}); err != nil {
		t.Fatal(err)
	}
	out, err = run(w.installArgs())
	w.refused("Forged", out, err, "cannot be downloaded")
	if !strings.Contains(w.log.String(), release.ErrSignature.Error()) {
		t.Error("the service does not say that its release is not signed")
	}

	// A program of another architecture, put there by hand under this one's name, in no release.
	header := slices.Concat([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57))
	header[16], header[18], header[20] = 2, 183, 1 // a program, of arm64
	if err := errors.Join(os.WriteFile(program, header, 0o755), os.Remove(filepath.Join(w.serving, release.SumsFile)), os.Remove(filepath.Join(w.serving, release.SignatureFile))); err != nil {
		t.Fatal(err)
	}
	out, err = w.sh(w.curl(w.installArgs()))
	w.refused("WrongArchitecture", out, err, "does not run on this machine (x86_64)", "program for another architecture", "hint:")
}

// TestScript_Download: what comes over the network is held against the script's
// own sum, whoever serves it.
func TestScript_Download(t *testing.T) {
	w := newWorld(t)
	script, err := exec.Command("curl", "-fsS", "--cacert", filepath.Join(w.service.Data, "ca.pem"), w.service.Endpoint+"/install.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat("/usr/bin/curl")
	if err != nil {
		t.Skip("SKIPPED: curl is not there")
	}
	// A curl that changes the last byte of the program.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "curl"), []byte(`#!/bin/sh
/usr/bin/curl "$@" || exit
case "$*" in *rehost-agent-linux*) for a; do case $a in */rehost-agent) printf X | dd of="$a" bs=1 seek=1000 conv=notrunc 2>/dev/null ;; esac; done ;; esac
`), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "install.sh")
	if err := os.WriteFile(path, script, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := w.sh("sh "+path+" "+w.installArgs(), "PATH="+dir+":"+os.Getenv("PATH"))
	w.refused("Changed", out, err, "is not what it should be", "hint:")

	// The mutation: a script that does not look takes anything.
	blind := bytes.Replace(script, []byte(`[ "$got" = "$sum" ] ||`), []byte("true ||"), 1)
	if bytes.Equal(blind, script) {
		t.Fatal("the script does not compare sums")
	}
	if err := os.WriteFile(path, blind, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := w.sh("sh "+path+" "+w.installArgs(), "PATH="+dir+":"+os.Getenv("PATH")); strings.Contains(out, "is not what it should be") {
		t.Errorf("the mutation was not made: %s", out)
	}
	_, _ = w.agentRun("uninstall")
}

// TestScript_Interrupted: a script that is ended while it downloads leaves nothing,
// and one in whose TMPDIR nothing may run finds another place.
func TestScript_Interrupted(t *testing.T) {
	w := newWorld(t)
	proxy := newConnectProxy(t)
	proxy.mu.Lock()
	proxy.stop = true // after the script
	proxy.mu.Unlock()
	line := fmt.Sprintf("curl -fsS --cacert %s/ca.pem https://rehost.test:%s/install.sh | sh -s -- %s", w.service.Data, w.port(), w.installArgs())
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(w.env, "https_proxy="+proxy.url, "no_proxy=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(proxy.asked()) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not download: %v", proxy.asked())
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // the shell in the pipe is not waited for
		if entries, _ := os.ReadDir(w.tmp); len(entries) == 0 {
			break
		}
	}
	w.nothingLeft("interrupted")

	noexec := w.mounted(unix.MS_NOEXEC)
	if out, err := w.sh(w.curl(w.installArgs()), "TMPDIR="+noexec); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.until("replication", continuous)
}

// TestScript_Busybox: the shell and the tools of a busybox do, besides curl. Its wget does
// not, which is said before anything is downloaded.
func TestScript_Busybox(t *testing.T) {
	w := newWorld(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("SKIPPED: busybox is not there")
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIPPED: curl is not there")
	}
	dir := t.TempDir()
	if out, err := exec.Command(busybox, "--install", "-s", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script, err := exec.Command(curl, "-fsS", "--cacert", filepath.Join(w.service.Data, "ca.pem"), w.service.Endpoint+"/install.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "install.sh")
	if err := os.WriteFile(path, script, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() (string, error) {
		cmd := exec.Command(busybox, append([]string{"sh", path}, strings.Fields(w.installArgs())...)...)
		cmd.Env = append(w.env, "PATH="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	w.refused("WgetOfBusybox", out, err, "neither curl nor GNU wget is there", "hint: install curl (busybox's wget does not do)")

	if err := os.Symlink(curl, filepath.Join(dir, "curl")); err != nil {
		t.Fatal(err)
	}
	if out, err = run(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(out, "its SHA-256 is") {
		t.Errorf("it does not say that the signature was not checked:\n%s", out)
	}
	w.until("replication", continuous)
}

// TestShellcheck holds all shell scripts of the packages against shellcheck.
func TestShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("SKIPPED: shellcheck is not there")
	}
	releases(t) // which goes to the top of the tree
	scripts, err := filepath.Glob("packaging/scripts/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatal(scripts, err)
	}
	if out, err := exec.Command("shellcheck", append(scripts, "-s", "sh", "cmd/rehost/install.sh")...).CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
}
