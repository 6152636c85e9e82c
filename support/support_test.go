package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rehost/internal/fault"
)

// contents unpacks a bundle.
func contents(t *testing.T, bundle []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(bundle))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(files)
		if err != nil || h.Mode != 0o600 {
			t.Fatal(h.Name, h.Mode, err)
		}
		out[h.Name] = string(text)
	}
}

func write(t *testing.T, parts ...Part) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(t.Context(), &b, "x", time.Unix(0, 0), parts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func said(name, text string) Part { return Text(name, func() (string, error) { return text, nil }) }

func TestRedact(t *testing.T) {
	for _, text := range fault.Secrets() {
		if got := Redact("before:\n" + text); strings.Contains(got, fault.Secret) || !strings.HasPrefix(got, "before:") {
			t.Errorf("%q became %q", text, got)
		}
	}
	for _, text := range []string{"connect to replication server 10.0.0.1:1500: connection refused", "https://rehost.example:8443/agent/x", "authorization failed",
		`level=INFO msg="agent started" server=s-0123456789abcdef0`, "/dev/sda1 / ext4 rw,relatime 0 0"} {
		if got := Redact(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// TestWrite: what is planted in any part, in its error or across the cut of a long one is not in the bundle.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	planted := fault.Secrets()
	lines := planted[:len(planted)-1] // the last would take all that follows with it
	var text strings.Builder
	for i := 0; text.Len() < 3<<20; i++ {
		fmt.Fprintf(&text, "%d %s\n", i, lines[i%len(lines)])
	}
	if err := os.WriteFile(log, []byte(text.String()+"the end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parts := []Part{Command("command.txt", 0, "echo", planted[0]), Command("none.txt", 0, "/nonexistent/program"), File("missing", filepath.Join(dir, "password=PLANTED"), 0),
		Text("failed", func() (string, error) { return "so far", errors.New(planted[1]) }), said("binary", "\xff\xfe\x00good")}
	for i := range 100 { // cut everywhere in the lines
		parts = append(parts, File(fmt.Sprint("log", i), log, 1000+i))
	}
	files := contents(t, write(t, parts...))
	if len(files) != len(parts) {
		t.Errorf("%d files of %d parts", len(files), len(parts))
	}
	for name, text := range files {
		if strings.Contains(text, fault.Secret) {
			t.Errorf("%s: %q", name, text)
		}
		if strings.HasPrefix(name, "x/log") && (!strings.HasSuffix(text, "the end\n") || !strings.HasPrefix(text, "(there is more")) {
			t.Errorf("%s: %q", name, text)
		}
	}
	for name, part := range map[string]string{"x/missing": "no such file", "x/none.txt": "no such file", "x/failed": "so far\n(cannot be read: ", "x/binary": "good"} {
		if !strings.Contains(files[name], part) {
			t.Errorf("%s: %q", name, files[name])
		}
	}
}

// TestWrite_Bounded: parts that do not shrink at all, and more of them than there is room for.
func TestWrite_Bounded(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var parts []Part
	for i := range 5 {
		b := make([]byte, 1<<20+100_000)
		for j := range b {
			b[j] = byte(' ' + r.IntN(95))
			if r.IntN(30) == 0 {
				b[j] = '\n'
			}
		}
		p := said(fmt.Sprint("part", i), string(b))
		p.Max = 1<<20 + i*1000
		parts = append(parts, p)
	}
	bundle := write(t, parts...)
	files := contents(t, bundle)
	if len(bundle) > 5<<20 || len(files) != 5 || len(files["x/part0"]) < 1<<20-1000 || len(files["x/part0"]) > 1<<20 {
		t.Errorf("seed %d: %d bytes, %d files, the first of %d", seed, len(bundle), len(files), len(files["x/part0"]))
	}
}

// TestFile_Others: what others could put in the place of a file, where root reads, is not followed or waited for.
func TestFile_Others(t *testing.T) {
	dir := t.TempDir()
	secret, link := filepath.Join(dir, "secret"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(secret, []byte("of somebody else"), 0o600), os.Symlink(secret, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, dir, "/dev/zero"} {
		if text, err := readEnd(path, 0); err == nil {
			t.Errorf("%s: %q", path, text)
		}
	}
}

// TestSystem: on this machine every part is made, most can be read, and one that hangs is given up with the bundle.
func TestSystem(t *testing.T) {
	files := contents(t, write(t, append(System(), Process(os.Getpid())...)...))
	for name, want := range map[string]string{"x/system/kernel.txt": "Linux", "x/system/self-mountinfo": " / ", "x/system/disks.txt": "size=", fmt.Sprintf("x/process-%d/status", os.Getpid()): "VmRSS"} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: %.200q", name, files[name])
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, io.Discard, "x", time.Now(), System()); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
}

// TestMutants: what keeps secrets in, left out, is missed.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"ContentAsItIs":    {File: "bundle.go", From: `Redact(end(strings.ToValidUTF8(string(content), "?"), limit))`, To: `end(strings.ToValidUTF8(string(content), "?"), limit)`, Tests: "TestWrite$"},
		"ErrorsAsTheyAre":  {File: "bundle.go", From: "Redact(err.Error())", To: "err.Error()", Tests: "TestWrite$"},
		"NamedSecretsStay": {File: "redact.go", From: "secrets.ReplaceAllString(text, awsapi.Redacted)", To: "text", Tests: "TestRedact$"},
		"KeysStay":         {File: "redact.go", From: "text = keys.ReplaceAllString(text, awsapi.Redacted)", To: "", Tests: "TestRedact$"},
		"RandomStays":      {File: "redact.go", From: "random.ReplaceAllString(secrets.ReplaceAllString(text, awsapi.Redacted), awsapi.Redacted)", To: "secrets.ReplaceAllString(text, awsapi.Redacted)", Tests: "TestRedact$"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fault.Caught(t, m)
		})
	}
}
