package fault

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Mutant is a mistake in a file of the package under test: the first From
// becomes To.
type Mutant struct {
	File, From, To string
	Tests          string // pattern of those that must not let it pass
}

// mutantEnv is set for the tests of a mutant, which are not to breed others.
const mutantEnv = "REHOST_MUTANT"

// IsMutant is whether these tests are those of a mutant, which need not be patient.
func IsMutant() bool { return os.Getenv(mutantEnv) != "" }

// every says how much of all mutants one run of the tests takes, by chance: one in so
// many. Each builds a package, which adds up to minutes; all of them are what
// REHOST_MUTANTS=all asks for, as make mutants does.
const every = 4

// Caught runs the tests of the package in the current directory on a copy of the
// source that has the mistake. It fails if they pass, and if they do not run.
func Caught(t *testing.T, m Mutant) {
	t.Helper()
	if IsMutant() {
		t.Skip("is a mutant itself")
	}
	source, err := os.ReadFile(m.File)
	if err != nil {
		t.Fatal(err)
	}
	mutant := strings.Replace(string(source), m.From, m.To, 1)
	if mutant == string(source) {
		t.Fatalf("%s has no %q", m.File, m.From)
	}
	if os.Getenv("REHOST_MUTANTS") != "all" && rand.IntN(every) != 0 {
		t.Skipf("SKIPPED: a run takes one mutant in %d, by chance; make mutants takes all", every)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, overlay := filepath.Join(dir, filepath.Base(m.File)), filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(wd, m.File): file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{file: []byte(mutant), overlay: text} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-vet=off", "-count=1", "-short", "-timeout=120s", "-run", m.Tests, ".")
	cmd.Env = append(os.Environ(), mutantEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("passes:\n%s", out)
	}
	if !strings.Contains(string(out), "--- FAIL") && !strings.Contains(string(out), "panic: ") { // one outside of a test ends the run
		t.Fatalf("does not run:\n%s", out)
	}
}
