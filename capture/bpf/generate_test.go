package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compiler made the objects that are checked in. Another version makes others.
const compiler = "clang version 14.0"

// TestGenerate makes the objects again from their source and wants the same
// bytes: what runs in the kernel is what can be read.
func TestGenerate(t *testing.T) {
	out, err := exec.Command("clang-14", "--version").Output()
	if err != nil || !strings.Contains(string(out), compiler) {
		t.Skipf("SKIPPED: the objects were made by %s, which is not installed here (%v)", compiler, err)
	}
	dir := t.TempDir()
	files, err := filepath.Glob("*")
	if err != nil {
		t.Fatal(err)
	}
	before := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(f, "tracker_") {
			before[f] = b
			continue
		}
		if strings.HasSuffix(f, ".c") || strings.HasSuffix(f, ".h") {
			if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(before) != 4 {
		t.Fatalf("%d generated files, want two for each of amd64 and arm64", len(before))
	}
	source, err := os.ReadFile("bpf.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(source), "//go:generate ")
	line, _, _ = strings.Cut(line, "\n")
	// The tool is built here and run there: the objects hold the source's path.
	tool := filepath.Join(dir, "bpf2go")
	if out, err := exec.Command("go", "build", "-o", tool, "github.com/cilium/ebpf/cmd/bpf2go").CombinedOutput(); err != nil {
		t.Fatalf("build bpf2go: %v\n%s", err, out)
	}
	line = strings.Replace(line, "go tool bpf2go", tool, 1)
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	for f, want := range before {
		got, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what its source makes: run go generate ./capture/bpf", f)
		}
	}
}
