package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deniedVariable makes this test program say whether it may track; "seccomp" forbids
// it bpf(2) before.
const deniedVariable = "REHOST_BPF_DENIED"

func TestMain(m *testing.M) {
	how := os.Getenv(deniedVariable)
	if how == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	if how == "seccomp" {
		if err := forbid(unix.SYS_BPF); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println(Supported())
}

// forbid has one system call answered with EPERM, as container engines do.
func forbid(call uint32) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
}

// TestSupported_Denied: who may not track is told what is missing, by its name.
func TestSupported_Denied(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	for _, c := range []struct{ name, how, drop, want string }{
		{"capabilities", "run", "-bpf,-perfmon,-sys_admin", "CAP_BPF and CAP_PERFMON"},
		{"one capability", "run", "-perfmon,-sys_admin", "capabilities CAP_PERFMON:"},
		{"seccomp", "seccomp", "", "seccomp or a security module"},
		{"nothing", "run", "", "<nil>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{os.Args[0]}
			if c.drop != "" {
				if _, err := exec.LookPath("setpriv"); err != nil {
					t.Skipf("SKIPPED: %v", err)
				}
				args = append([]string{"setpriv", "--bounding-set=" + c.drop, "--inh-caps=" + c.drop}, args...)
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), deniedVariable+"="+c.how)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "MEMLOCK may") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestLockdown(t *testing.T) {
	for text, want := range map[string]string{"none integrity [confidentiality]\n": "confidentiality", "none [integrity] confidentiality\n": "", "[none] integrity confidentiality\n": "", "": ""} {
		if got := lockdown(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
