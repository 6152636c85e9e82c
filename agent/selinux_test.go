package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartable: where SELinux is in use a program has the type that service managers
// may start; where it is not, or there are no labels, nothing is touched.
func TestStartable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root labels files")
	}
	selinux := t.TempDir()
	f, err := os.Create(filepath.Join(t.TempDir(), "program"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after := func(label string) string {
		t.Helper()
		if label != "" {
			if err := unix.Fsetxattr(int(f.Fd()), labelName, []byte(label), 0); err != nil {
				t.Skipf("SKIPPED: no labels here: %v", err)
			}
		}
		if err := startable(f, selinux); err != nil {
			t.Errorf("of %q: %v", label, err)
		}
		b := make([]byte, 200)
		n, err := unix.Fgetxattr(int(f.Fd()), labelName, b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	const lib = "unconfined_u:object_r:lib_t:s0:c1,c2\x00"
	if got := after(lib); got != lib {
		t.Errorf("without SELinux in use: %q", got)
	}
	if err := os.WriteFile(filepath.Join(selinux, "enforce"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	for label, want := range map[string]string{
		lib:                          "unconfined_u:object_r:bin_t:s0:c1,c2\x00",
		"system_u:object_r:usr_t":    "system_u:object_r:bin_t\x00",
		"system_u:object_r:bin_t:s0": "system_u:object_r:bin_t:s0",
		"nonsense":                   "nonsense",
	} {
		if got := after(label); got != want {
			t.Errorf("of %q: %q, want %q", label, got, want)
		}
	}
	if err := unix.Fremovexattr(int(f.Fd()), labelName); err != nil {
		t.Fatal(err)
	}
	if got := after(""); got != "" {
		t.Errorf("without a label: %q", got)
	}
}

// TestDiagnose_SELinux: the doctor names a program that systemd may not start, gives the
// commands under the name by which the policy knows the place, and has nothing more to
// say once they were run.
func TestDiagnose_SELinux(t *testing.T) {
	const name, rules = "SELinux", "etc/selinux/default/contexts/files/"
	machine := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(machine, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	state := stateDir(filepath.Join(t.TempDir(), "lib", "state"))
	program := state.program()
	look := func(installed bool) Diagnosis {
		d := &doctor{DoctorOptions: DoctorOptions{Machine: Machine{Root: machine}}, dir: state, installed: installed}
		d.selinux()
		return d.checks
	}
	put("sys/fs/selinux/enforce", "0")
	if d := look(true); len(d) > 0 {
		t.Errorf("nothing is enforced: %+v", d)
	}
	put("sys/fs/selinux/enforce", "1")
	look(false).want(t, Warning, name, "-> for that to last: semanage fcontext -a -t bin_t "+program+" && restorecon -v "+program)

	put("etc/selinux/config", "# SELINUXTYPE= is one of\nSELINUX=enforcing\nSELINUXTYPE=default\n")
	lib := filepath.Dir(filepath.Dir(program))
	put(rules+"file_contexts.subs_dist", "# aliases\n\n"+lib[:len(lib)-1]+" /elsewhere\n"+lib+" /usr/lib\n")
	const alias = "/usr/lib/state.program/rehost-agent"
	look(false).want(t, Warning, name, "semanage fcontext -a -t bin_t "+alias+" && restorecon -v "+program)

	put(rules+"file_contexts.local", "# made by semanage\n"+alias+"2 system_u:object_r:bin_t:s0\n"+alias+" -d system_u:object_r:bin_t:s0\n/usr/lib/(broken system_u:object_r:bin_t:s0\n")
	look(false).want(t, Warning, name, "semanage")
	put(rules+"file_contexts.local", "/usr/lib(/.*)? system_u:object_r:lib_t:s0\n"+alias+"    --   system_u:object_r:bin_t:s0\n")
	look(false).want(t, OK, name, "the policy has the type bin_t for "+program)

	if err := errors.Join(os.MkdirAll(state.programDir(), 0o755), os.WriteFile(program, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	look(true).want(t, OK, name, "the policy has the type bin_t")
	if err := unix.Setxattr(program, labelName, []byte("system_u:object_r:lib_t:s0\x00"), 0); err != nil {
		t.Skipf("SKIPPED: only root labels files, and not on every file system: %v", err)
	}
	look(true).want(t, Warning, name, program+" has the type lib_t: systemd may not start it (status 203), or runs it in its own domain -> restorecon -v "+program)
	put(rules+"file_contexts.local", "")
	look(true).want(t, Warning, name, "has the type lib_t: systemd may not start it (status 203), or runs it in its own domain -> semanage fcontext -a -t bin_t "+alias+" && restorecon")
}
