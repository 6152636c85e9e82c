package release_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"

	"rehost/release"
)

func newKey(t *testing.T) (minisign.PublicKey, minisign.PrivateKey) {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func listOf(names ...string) []byte {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256([]byte(name)), name)
	}
	return []byte(b.String())
}

// TestOpen: what was signed is believed, and nothing that differs from it in a bit.
func TestOpen(t *testing.T) {
	public, private := newKey(t)
	stranger, forger := newKey(t)
	version := release.Version{Major: 1, Minor: 2, Patch: 3}
	sums := listOf(release.Agent("amd64"), release.Agent("arm64"))
	signature := release.Sign(private, version, sums)
	for _, keys := range [][]minisign.PublicKey{{public}, {stranger, public}} {
		m, err := release.Open(sums, signature, keys)
		if err != nil || m.Version != version || len(m.Names()) != 2 {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := m.Check(release.Agent("arm64"), sha256.Sum256([]byte(release.Agent("arm64")))); err != nil {
			t.Error(err)
		}
		// One program of the release is not another one.
		if err := m.Check(release.Agent("arm64"), sha256.Sum256([]byte(release.Agent("amd64")))); !errors.Is(err, release.ErrSum) {
			t.Errorf("the program of another architecture: %v", err)
		}
		if err := m.Check("rehost", release.Sum{}); !errors.Is(err, release.ErrNotListed) {
			t.Error(err)
		}
	}
	for name, refused := range map[string]struct {
		sums, signature []byte
		keys            []minisign.PublicKey
	}{
		"NoKeys":   {sums, signature, nil},
		"Stranger": {sums, signature, []minisign.PublicKey{stranger}},
		"Forged":   {sums, release.Sign(forger, version, sums), []minisign.PublicKey{public}},
		"Unsigned": {sums, nil, []minisign.PublicKey{public}},
		"Longer":   {append(sums[:len(sums):len(sums)], listOf("more")...), signature, []minisign.PublicKey{public}},
		"Newer":    {sums, []byte(strings.Replace(string(signature), "rehost 1.2.3", "rehost 9.2.3", 1)), []minisign.PublicKey{public}},
	} {
		if _, err := release.Open(refused.sums, refused.signature, refused.keys); !errors.Is(err, release.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range sums {
		changed := append([]byte(nil), sums...)
		changed[i] ^= 1
		if _, err := release.Open(changed, signature, []minisign.PublicKey{public}); !errors.Is(err, release.ErrSignature) {
			t.Fatalf("byte %d is another: %v", i, err)
		}
	}
	other := minisign.SignWithComments(private, sums, "something else 1.2.3", "")
	if _, err := release.Open(sums, other, []minisign.PublicKey{public}); err == nil {
		t.Error("a signature for something else is taken for a release's")
	}
}

func TestParse_Refused(t *testing.T) {
	good := string(listOf("a"))
	for _, text := range []string{"", good[:len(good)-1], good + good, "x" + good, strings.Replace(good, "  ", " *", 1),
		strings.Replace(good, "  a", "  ../a", 1), strings.Replace(good, "  a", "  -a", 1), strings.ToUpper(good), good + "\n",
		string(listOf(strings.Repeat("a", release.MaxSums)))} {
		if m, err := release.Parse([]byte(text)); err == nil {
			t.Errorf("%.80q is taken: %v", text, m.Names())
		}
	}
}

func TestVersion(t *testing.T) {
	ordered := []string{"0.1.0", "0.2.0", "0.10.0-rc1", "0.10.0-rc2", "0.10.0", "0.10.1", "1.0.0-a", "1.0.0", "10.0.0"}
	for i, a := range ordered {
		v, err := release.ParseVersion(a)
		if err != nil || v.String() != a {
			t.Fatalf("%s: %v, %v", a, v, err)
		}
		for j, b := range ordered {
			o, _ := release.ParseVersion(b)
			if got := v.Compare(o); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s to %s: %d", a, b, got)
			}
		}
	}
	for _, text := range []string{"", "1", "1.2", "v1.2.3", "1.2.3-", "01.2.3", "1.2.3 ", "1.2.3.4", "1.2.3-a b", "1234567.0.0"} {
		if v, err := release.ParseVersion(text); err == nil {
			t.Errorf("%q is the version %v", text, v)
		}
	}
}

// TestOpen_Minisign: minisign itself takes our signatures, and we take its own.
func TestOpen_Minisign(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("SKIPPED: minisign is not there")
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	public, private := newKey(t)
	sums := listOf("a", "b")
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(release.SumsFile, sums)
	write(release.SignatureFile, release.Sign(private, release.Version{Major: 1}, sums))
	if out, err := exec.Command("minisign", "-V", "-m", path(release.SumsFile), "-P", public.String()).CombinedOutput(); err != nil || !strings.Contains(string(out), "rehost 1.0.0") {
		t.Errorf("minisign: %v: %s", err, out)
	}
	if out, err := exec.Command("minisign", "-G", "-W", "-p", path("key.pub"), "-s", path("key")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("minisign", "-S", "-m", path(release.SumsFile), "-s", path("key"), "-t", "rehost 2.0.0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	signature, err := os.ReadFile(path(release.SignatureFile))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := minisign.PublicKeyFromFile(path("key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := release.Open(sums, signature, []minisign.PublicKey{theirs}); err != nil || m.Version.Major != 2 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestParseKeys(t *testing.T) {
	a, _ := newKey(t)
	b, _ := newKey(t)
	all, err := release.ParseKeys(a.String() + "  " + b.String())
	if err != nil || len(all) != 2 || !all[1].Equal(b) {
		t.Errorf("%v, %v", all, err)
	}
	if all, err := release.ParseKeys(" "); err != nil || len(all) != 0 || len(release.Keys()) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := release.ParseKeys(a.String() + " RWx"); err == nil {
		t.Error("half a key is taken")
	}
}

// TestFormat holds docs/format/release.md and the constants together.
func TestFormat(t *testing.T) {
	page, err := os.ReadFile("../docs/format/release.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Release, version 1", "`" + release.SumsFile + "`", "`" + release.SignatureFile + "`", "`" + release.Agent("amd64") + "`",
		fmt.Sprintf("at most %d KiB |\n| `%s`", release.MaxSums>>10, release.SignatureFile), fmt.Sprintf("at most %d KiB |\n\n", release.MaxSignature>>10), "`rehost 1.2.3`", "rehost/release.keys"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("docs/format/release.md does not say %q", want)
		}
	}
}
