package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestReadInventory: what a person writes is taken, and what is wrong is named with
// its line.
func TestReadInventory(t *testing.T) {
	got, err := ReadInventory(strings.NewReader("\ufeffHost, port,user,devices,tags,options\n# the web servers\nweb-1,,admin,/dev/sda /dev/sdb,Name=web-1 Env=prod,--no-replication\n\n2001:db8::7,2222,,,,\n"))
	want := []Host{
		{Name: "web-1", Port: 22, User: "admin", Devices: []string{"/dev/sda", "/dev/sdb"}, Tags: []string{"Name=web-1", "Env=prod"}, Options: []string{"--no-replication"}},
		{Name: "2001:db8::7", Port: 2222},
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for text, says := range map[string]string{
		"":                                 "it is empty",
		"name\nweb-1\n":                    `unknown column "name"`,
		"user\nroot\n":                     "names no column host",
		"host,port\nweb-1,0\n":             "line 2: port",
		"host,tags\nweb-1,prod\n":          `line 2: tag "prod" is not KEY=VALUE`,
		"host\nweb-1\n\nweb-1\n":           "line 4: web-1:22 is on line 2 already",
		"host,user\n,root\n":               "line 2: \"\" is no host name",
		"host\n-oProxyCommand=x\n":         "is no host name",
		"host\nweb 1\n":                    "is no host name",
		"host,user\nweb-1,root,/dev/sda\n": "wrong number of fields",
		"host\n\"web-1\n":                  "quote",
	} {
		if _, err := ReadInventory(strings.NewReader(text)); !errors.Is(err, ErrInventory) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want one that says %q", text, err, says)
		}
	}
}

// TestQuote: the shell gives every word back as it was.
func TestQuote(t *testing.T) {
	words := []string{"", "a b", "it's", `"$(reboot)"`, "`reboot`", "a\nb", `\`, "-n", "*", "ä"}
	args := ""
	for _, w := range words {
		args += " " + quote(w)
	}
	out, err := exec.Command("sh", "-c", `for w; do printf '%s\0' "$w"; done`+"\n"+"true", "sh").CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Fatalf("%v: %s", err, out)
	}
	out, err = exec.Command("sh", "-c", "sh -c "+quote(`for w; do printf '%s\0' "$w"; done`)+" sh"+args).CombinedOutput()
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, words) {
		t.Errorf("got %q, %v, want %q", got, err, words)
	}
}

// TestScripts runs them with the shells that servers have: dash and busybox.
func TestScripts(t *testing.T) {
	shells := [][]string{{"sh"}}
	if path, err := exec.LookPath("busybox"); err == nil {
		shells = append(shells, []string{path, "sh"})
	}
	for _, shell := range shells {
		run := func(stdin, script string, args ...string) (string, error) {
			cmd := exec.Command(shell[0], append(append(slices.Clone(shell[1:]), "-c", script, "sh"), args...)...)
			cmd.Stdin = strings.NewReader(stdin)
			out, err := cmd.CombinedOutput()
			return strings.TrimSpace(string(out)), err
		}
		out, err := run("", lookScript)
		uname, dir, _ := strings.Cut(out, "\n")
		if err != nil || !strings.HasPrefix(uname, "Linux ") || !strings.Contains(dir, "/rehost-install.") {
			t.Fatalf("%v: look: %q, %v", shell, out, err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		content := "#!/bin/sh\nfor a; do echo \"$a\"; done; printf '%s ' \"$AWS_ACCESS_KEY_ID\" \"$AWS_SECRET_ACCESS_KEY\" \"${AWS_SESSION_TOKEN-none}\"\n"
		const sum = "4e1b2b5f0d8d6e5c4e1b2b5f0d8d6e5c4e1b2b5f0d8d6e5c4e1b2b5f0d8d6e5c"
		if out, err := run(content, copyScript, dir, "rehost-agent", "700", sum); err == nil || !strings.Contains(out, "did not arrive as it was sent") {
			t.Errorf("%v: a wrong sum: %q, %v", shell, out, err)
		}
		if out, err := run("ID\nse cret\\n\n\n", installScript, dir, "--tags=A=b c"); err != nil || out != "install\n--no-prompt\n--ca\n"+dir+"/ca.pem\n--tags=A=b c\nID se cret\\n none" {
			t.Errorf("%v: install: %q, %v", shell, out, err)
		}
		if out, err := run("", removeScript, filepath.Dir(dir)); err != nil || out != "" {
			t.Errorf("%v: remove what is not ours: %q, %v", shell, out, err)
		}
		if _, err := run("", removeScript, dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: left: %v", shell, err)
		}
	}
}

// TestRun_Refuses what would fail everywhere before any host is touched.
func TestRun_Refuses(t *testing.T) {
	p := Plan{Endpoint: "rehost.example", Region: "eu-west-1", CA: []byte("x"), Key: Key{ID: "AKIA", Secret: "x\ny"}, Login: Login{KnownHosts: []string{"x"}}}
	_, err := Run(t.Context(), p, []Host{{Name: "a", Port: 22}}, filepath.Join(t.TempDir(), "done"), &Table{Out: new(bytes.Buffer)})
	if err == nil || !strings.Contains(err.Error(), "line end") || !strings.Contains(err.Error(), "no agent given") {
		t.Errorf("got %v", err)
	}
	p.Key.Secret, p.Agents = "x", []Agent{{"x86_64", nil}}
	journal := filepath.Join(t.TempDir(), "done")
	if err := os.WriteFile(journal, []byte(`{"format":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), p, nil, journal, &Table{Out: new(bytes.Buffer)}); err == nil || !strings.Contains(err.Error(), "unknown format 7") {
		t.Errorf("a journal of another format: got %v", err)
	}
	if _, err := p.agentFor("Linux riscv64"); err == nil || !strings.Contains(err.Error(), "the server is riscv64") {
		t.Errorf("an architecture without a program: got %v", err)
	}
	if _, err := p.agentFor("FreeBSD amd64"); err == nil || !strings.Contains(err.Error(), "Linux only") {
		t.Errorf("another system: got %v", err)
	}
	file := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAgent(file); err == nil || !strings.Contains(err.Error(), "no program for Linux") {
		t.Errorf("a script as agent: got %v", err)
	}
}

// TestTable: what a server says cannot move the cursor, and no line is wider than
// the terminal.
func TestTable(t *testing.T) {
	var out bytes.Buffer
	table := &Table{Out: &out, Live: true, Width: func() int { return 50 }}
	table.Begin([]Host{{Name: "web-1"}, {Name: "database-1"}})
	table.Step(0, string(installed), "s-0123456789abcdef0", 3*time.Second)
	table.Step(1, string(failed), "evil \x1b[2J\u009b2J words\nand more words than have room here", time.Second)
	table.End()
	text := strings.ReplaceAll(strings.ReplaceAll(out.String(), "\x1b[2A", ""), "\x1b[K", "")
	if strings.ContainsAny(text, "\x1b\u009b") {
		t.Errorf("control characters: %q", text)
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 50 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if !strings.HasSuffix(text, "1 installed, 1 failed\n") {
		t.Errorf("got %q", text)
	}
}

// TestLogin_Unreachable: a host that takes the connection and says nothing costs
// no more than the time it was given.
func TestLogin_Unreachable(t *testing.T) {
	known := filepath.Join(t.TempDir(), "known")
	if err := os.WriteFile(known, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Login{User: "root", KnownHosts: []string{known}}).dial(ctx, Host{Name: "127.0.0.1", Port: 1}); err == nil || !strings.Contains(err.Error(), "no key to log in with") {
		t.Errorf("without a key: got %v", err)
	}
}
