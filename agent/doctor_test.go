package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// find is the first check of that name whose text or hint has the words.
func (d Diagnosis) find(name, words string) *Check {
	for _, c := range d {
		if c.Name == name && strings.Contains(c.Text+" -> "+c.Hint, words) {
			return &c
		}
	}
	return nil
}

func (d Diagnosis) want(t *testing.T, v Verdict, name, words string) {
	t.Helper()
	if c := d.find(name, words); c == nil || c.Verdict != v {
		t.Errorf("no check %q that is %q about %q: %+v", name, v, words, d)
	} else if v == Fails && c.Hint == "" {
		t.Errorf("%s does not say what to do: %s", name, c.Text)
	}
}

// TestDiagnose looks at an installation that is well, and then at what can happen
// to one.
func TestDiagnose(t *testing.T) {
	w := newWorld(t)
	options := DoctorOptions{StateDir: w.state, Endpoint: w.address, CAFingerprint: w.authority.Fingerprint(), BPFFS: w.bpffs}
	before := Diagnose(t.Context(), options)
	before.want(t, OK, "installation", "none in")
	before.want(t, OK, "TLS", "chain and name of the service are right")
	before.want(t, OK, "clock", "as the service's")
	before.want(t, Warning, "replication", "the service will say where it is")

	w.install()
	options = DoctorOptions{StateDir: w.state}
	Diagnose(t.Context(), options).want(t, Fails, "installation", "the agent does not run")
	w.run()
	w.equal("running")
	w.wait("a status", func() bool { s, err := ReadStatus(w.state); return err == nil && s.State == "CONTINUOUS" })
	d := Diagnose(t.Context(), options)
	d.want(t, OK, "installation", serverID+", agent "+Version+" runs")
	d.want(t, OK, "bpffs", w.bpffs)
	d.want(t, OK, "service", w.address+" answers")
	d.want(t, OK, "TLS", "TLS 1.3")
	d.want(t, OK, "replication", w.dataAt+" can be reached")
	for _, disk := range w.disks {
		d.want(t, Warning, "disk "+disk.Path, "known by nothing but its name")
	}
	var out bytes.Buffer
	if err := d.Print(&out); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &out)
	out.Reset()
	var again Diagnosis
	if err := d.PrintJSON(&out); err != nil || json.Unmarshal(out.Bytes(), &again) != nil || len(again) != len(d) {
		t.Errorf("%v: %s", err, &out)
	}

	for skew, v := range map[time.Duration]Verdict{24 * time.Hour: Fails, -24 * time.Hour: Fails, -2 * time.Minute: Warning} {
		o := options
		o.now = func() time.Time { return time.Now().Add(skew) }
		d := Diagnose(t.Context(), o)
		if skew > 0 {
			d.want(t, v, "clock", "timedatectl") // though the certificate has ended by this clock
		} else {
			d.want(t, v, "clock", "differs from the service's by")
		}
	}
	o := options
	o.CAFingerprint = strings.Repeat("0", 64)
	Diagnose(t.Context(), o).want(t, Fails, "TLS", "compare --ca-fingerprint")
	o = options
	o.Endpoint = "nobody.invalid"
	Diagnose(t.Context(), o).want(t, Fails, "DNS", "does not resolve")

	w.stopReceiver()
	w.stopService()
	d = Diagnose(t.Context(), options)
	d.want(t, Fails, "service", "nothing listens there")
	d.want(t, Fails, "replication", "open TCP 1500")
	if !d.Fails() {
		t.Error("it does not fail")
	}
}

// TestDiagnose_Machine: what a machine lacks is told by name.
func TestDiagnose_Machine(t *testing.T) {
	dir := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
	put("sys/fs/selinux/enforce", "1")
	put("proc/modules", "ext4 1 2 - Live 0x0\nveeamsnap 299008 0 - Live 0x0\naws_replication_driver 1 0 - Live 0x0\n")
	put("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n")
	put("proc/77/comm", "veeamservice\n")
	put("proc/78/comm", "rehost-agent\n")
	put("proc/78/cmdline", "/opt/other/rehost-agent\x00run\x00--state-dir\x00/opt/other\x00")
	put("proc/79/comm", "rehost-agent\n") // not an agent, but a command
	put("proc/79/cmdline", "rehost-agent\x00status\x00")
	put("var/lib/aws-replication-agent/agent.version", "1")
	d := Diagnose(t.Context(), DoctorOptions{StateDir: filepath.Join(dir, "state"), BPFFS: dir, Machine: Machine{Root: dir}})
	locked := &doctor{DoctorOptions: DoctorOptions{Machine: Machine{Root: dir}}}
	locked.lockdown(errors.New("denied"))
	locked.checks.want(t, Fails, "lockdown", "lockdown=integrity")
	locked.checks = nil
	locked.lockdown(nil)
	locked.checks.want(t, OK, "lockdown", "denies the tracking programs nothing")
	d.want(t, Fails, "BTF", "CONFIG_DEBUG_INFO_BTF")
	d.want(t, Warning, "bpffs", "mount -t bpf")
	d.want(t, Fails, "machine", "systemd-machine-id-setup")
	d.want(t, Warning, "SELinux", "restorecon")
	d.want(t, Fails, "rights", "")
	d.want(t, Warning, "neighbours", "veeamsnap of Veeam")
	d.want(t, Warning, "neighbours", "Veeam runs")
	d.want(t, Warning, "neighbours", "the AWS replication agent is loaded")
	d.want(t, Warning, "neighbours", "the AWS replication agent is installed")
	d.want(t, Fails, "neighbours", "another rehost-agent runs here, of /opt/other ->")
	d.want(t, Skipped, "service", "--endpoint")
}

func TestKernelBefore(t *testing.T) {
	for release, before := range map[string]bool{"5.10.0-28-amd64": true, "4.19.0": true, "5.11.0": false, "6.1.0-21-amd64": false, "10.0": false, "5.4": true, "5.100.1": false} {
		if got := kernelBefore(release, 5, 11); got != before {
			t.Errorf("%s before 5.11: %v", release, got)
		}
	}
}

// TestReadable: a disk that cannot be read says where.
func TestReadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readable(path, 8192); err != nil {
		t.Error(err)
	}
	if err := readable(path+"x", 8192); err == nil {
		t.Error("a disk that is not there can be read")
	}
	if err := readable(t.TempDir(), 8192); err == nil || !strings.Contains(err.Error(), "read at 0") {
		t.Errorf("%v", err)
	}
}
