package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/e2e/site"
	"rehost/internal/fault"
	"rehost/internal/sshd"
)

// TestFleet installs the agent over SSH by an inventory with a good server, one
// whose host key nobody knows, and one that is not there; then mends one and runs
// the same command again. The secret is in no command line of the machine meanwhile,
// and nothing that was copied stays.
func TestFleet(t *testing.T) {
	need(t)
	w := newWorld(t, 150*time.Second, filepath.Join(t.TempDir(), "rehost"))
	disk := fault.Loop(t, 16<<20)
	dir := t.TempDir()
	fault.Passage(t, dir)
	server, err := sshd.Start(w.ctx, filepath.Join(dir, "sshd"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	known := write("known", fmt.Sprintf("[127.0.0.1]:%d %s\n", server.Port, server.HostKey))
	options := fmt.Sprintf("--no-service --force-volumes --bpffs %s", w.bpffs)
	inventory := write("hosts.csv", fmt.Sprintf("host,port,devices,tags,options\n127.0.0.1,%[1]d,%[2]s,Name=one,%[3]s --state-dir %[4]s/one\n127.0.0.2,%[1]d,%[2]s,Name=two,%[3]s --state-dir %[4]s/two --user-provided-id another\n127.0.0.3,1,,,\n",
		server.Port, disk.Path, options, dir))
	left := func() []string {
		var found []string
		for _, in := range []string{"/var/lib", "/root", "/var/tmp", "/tmp", "/run"} {
			names, _ := filepath.Glob(filepath.Join(in, "rehost-install.*"))
			found = append(found, names...)
		}
		return found
	}
	before := strings.Join(left(), " ")
	secret := w.installer()
	_, value, _ := strings.Cut(secret[1], "=")
	seen := watchCommandLines(t, value)
	run := func() (string, error) {
		return w.command(append(secret, "SSH_AUTH_SOCK="), "rehost", "install", "--inventory", inventory, "--endpoint", w.service.Endpoint, "--region", site.Region,
			"--ca", filepath.Join(w.config.Data, "ca.pem"), "--ssh-key", server.UserKey, "--ssh-known-hosts", known)
	}
	out, err := run()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit status %v, want 1", err)
	}
	for _, says := range []string{"1 installed, 2 failed", "host key unknown", "connection refused", "2 of 3 servers failed", "hint: run the same command again"} {
		if !strings.Contains(out, says) {
			t.Errorf("the output does not say %q:\n%s", says, out)
		}
	}
	s, err := w.service.Server(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if id := *s.SourceServerID; s.Tags["Name"] != "one" || !strings.Contains(out, id) {
		t.Errorf("source server %s with tags %v; the output is\n%s", id, s.Tags, out)
	}

	write("known", fmt.Sprintf("[127.0.0.1]:%d %[2]s\n[127.0.0.2]:%[1]d %s\n", server.Port, server.HostKey))
	write("hosts.csv", strings.Replace(readFile(t, inventory), "127.0.0.3,1,,,\n", "", 1))
	out, err = run()
	if err != nil || !strings.Contains(out, "1 installed, 1 installed before") {
		t.Errorf("the second run: %v:\n%s", err, out)
	}
	var journal struct {
		Done map[string]struct{ SourceServerID string }
	}
	if err := json.Unmarshal([]byte(readFile(t, inventory+".done")), &journal); err != nil || len(journal.Done) != 2 {
		t.Errorf("journal: %v, %v", journal, err)
	}
	if strings.Contains(readFile(t, inventory+".done"), value) {
		t.Error("the secret is in the journal")
	}
	if lines := seen(); len(lines) > 0 {
		t.Errorf("the secret was in a command line: %v", lines)
	}
	if after := strings.Join(left(), " "); after != before {
		t.Errorf("left on the server: %s", after)
	}
	write("known", strings.Replace(readFile(t, known), server.HostKey, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 2))
	if err := os.Remove(inventory + ".done"); err != nil {
		t.Fatal(err)
	}
	if out, err = run(); err == nil || !strings.Contains(out, "HOST KEY CHANGED") {
		t.Errorf("another host key: %v:\n%s", err, out)
	}
}

// watchCommandLines looks through the command lines of all processes for a word,
// until the function that it returns is called, which tells what was found.
func watchCommandLines(t *testing.T, word string) func() []string {
	stop, found := make(chan struct{}), make(chan []string)
	go func() {
		var lines []string
		for {
			paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range paths {
				if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), word) {
					lines = append(lines, strings.ReplaceAll(string(b), "\x00", " "))
				}
			}
			select {
			case <-stop:
				found <- lines
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	done := func() []string { close(stop); return <-found }
	return done
}

// TestRole: Ansible takes the role and the playbook, where it is there to be asked,
// and the script in the cloud-init example is one of the shell.
func TestRole(t *testing.T) {
	root := filepath.Join("..", "packaging")
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Log("SKIPPED: ansible-playbook is not here")
	} else {
		cmd := exec.Command("ansible-playbook", "--syntax-check", "-i", "localhost,", "playbook.yml")
		cmd.Dir, cmd.Env = filepath.Join(root, "ansible"), append(os.Environ(), "ANSIBLE_ROLES_PATH=.", "LC_ALL=C.UTF-8", "ANSIBLE_LOCAL_TEMP="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("ansible-playbook --syntax-check: %v: %s", err, out)
		}
	}
	text := readFile(t, filepath.Join(root, "cloud-init", "rehost-agent.yaml"))
	_, script, ok := strings.Cut(text, "    - |\n      set -eu\n")
	if !ok || !strings.HasPrefix(text, "#cloud-config\n") {
		t.Fatal("the example has another shape than this test knows")
	}
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sh -n: %v: %s", err, out)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
