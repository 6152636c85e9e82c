package main

import (
	"debug/elf"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rehost/agent"
	"rehost/release"
)

// TestARM64 runs the agent's program for the other architecture, on an emulated
// processor: it is static, knows its version, and diagnoses. (The emulator has no
// eBPF, of which doctor has to tell rather than stop.)
func TestARM64(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("SKIPPED: qemu-aarch64-static is not there")
	}
	releases(t) // which goes to the top of the tree
	c := command{Version: "0.1.0", Out: t.TempDir(), Only: []string{"rehost-agent"}}
	if err := c.programs(t.Context(), "arm64"); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(c.Out, release.Agent("arm64"))
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != elf.EM_AARCH64 {
		t.Errorf("it is for %v", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it is not static: %v", p.Type)
		}
	}
	if out, err := exec.Command(qemu, program, "--version").Output(); err != nil || strings.TrimSpace(string(out)) != "0.1.0" {
		t.Errorf("%v: %s", err, out)
	}
	out, err := exec.Command(qemu, program, "doctor", "--json", "--state-dir", filepath.Join(t.TempDir(), "state")).Output()
	if err != nil && !strings.Contains(err.Error(), "exit status 1") {
		t.Fatalf("%v: %s", err, out)
	}
	var d agent.Diagnosis
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	verdicts := map[string]agent.Verdict{}
	for _, c := range d {
		verdicts[c.Name] = c.Verdict
	}
	if verdicts["eBPF"] == "" || verdicts["state directory"] != agent.OK {
		t.Errorf("%s", out)
	}
	t.Logf("%v", verdicts)
}
