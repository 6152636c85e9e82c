package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rehost/awsapi/formgn"
	"rehost/internal/fault"
)

// unpack is what a support bundle has, by the names of its files.
func unpack(t *testing.T, bundle []byte) map[string]string {
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
		text, readErr := io.ReadAll(files)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(h.Name, "rehost-agent-support/")] = string(text)
	}
}

// TestAgent_Tasks: an agent that replicates is asked for a support bundle, and for something
// that it does not know; parts of the bundle are lost on the way.
func TestAgent_Tasks(t *testing.T) {
	w := newWorld(t)
	w.install()
	if err := os.WriteFile(filepath.Join(w.state, logFile), []byte("level=INFO msg=before\n"+strings.Join(fault.Secrets(), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := w.run()
	w.equal("first copy")
	w.mu.Lock()
	w.lose = 2
	w.orders = []formgn.AgentOrder{{TaskID: "t-00000000000000001", Kind: string(formgn.AgentTaskKindCollectLogs)}}
	w.mu.Unlock()
	var whole []byte
	w.wait("the support bundle", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		whole = bytes.Clone(w.bundle)
		return len(whole) > 0 && strings.Contains(w.agentLog.String(), "the support bundle is sent")
	})
	files := unpack(t, whole)
	for name, want := range map[string]string{"about.txt": Version, "status.txt": serverID, statusFile: "CONTINUOUS", configFile: w.disks[0].Path, pairingFile: replicator,
		"certificate.txt": serverID, "files.txt": pairFile, logFile: "msg=before", fmt.Sprintf("process-%d/bpf.txt", os.Getpid()): "prog_id:", "doctor.txt": "kernel", "recent.log": "agent started", "system/kernel.txt": "btf", "system/self-mountinfo": " / "} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s is without %q: %.300q", name, want, files[name])
		}
	}
	// Neither what was planted nor the agent's own key, in any form that it has on the disk.
	pair, err := os.ReadFile(filepath.Join(w.state, pairFile))
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{fault.Secret, w.installer.AccessKeyID, string(w.installer.SecretAccessKey), "PRIVATE KEY"}
	found := false
	for block, rest := pem.Decode(pair); block != nil; block, rest = pem.Decode(rest) {
		if strings.Contains(block.Type, "PRIVATE KEY") {
			found = true
			secrets = append(secrets, base64.StdEncoding.EncodeToString(block.Bytes)[:48], string(block.Bytes[len(block.Bytes)/2:]))
		}
	}
	if !found {
		t.Fatal("there is no key in the agent's directory that could come out")
	}
	for name, text := range files {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s has a secret: %q", name, s)
			}
		}
	}

	// The same task is not done twice, another kind is declined, and replication goes on.
	w.mu.Lock()
	w.bundle = nil
	w.orders = append(w.orders, formgn.AgentOrder{TaskID: "t-00000000000000002", Kind: "DANCE"})
	w.mu.Unlock()
	w.wait("an answer to what it does not know", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.declined) > 0 && strings.Contains(w.declined[0], "DANCE")
	})
	w.scribble(0, 0, diskSize)
	w.equal("beside tasks")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestSupportBundle: one is made also where there is no agent, or one whose directory is torn.
func TestSupportBundle(t *testing.T) {
	dir := t.TempDir()
	for _, state := range []string{filepath.Join(dir, "none"), dir} {
		var b bytes.Buffer
		if err := SupportBundle(t.Context(), state, &b); err != nil {
			t.Fatal(err)
		}
		files := unpack(t, b.Bytes())
		if !strings.Contains(files["status.txt"], ErrNotInstalled.Error()) || !strings.Contains(files["certificate.txt"], "cannot be read") || files["system/kernel.txt"] == "" {
			t.Errorf("%s: %.200q", state, files["status.txt"])
		}
	}
}

// TestShipper_Recent: the last lines of the log are known, in their order, whatever their level, and with what a logger adds.
func TestShipper_Recent(t *testing.T) {
	s := newShipper()
	log := slog.New(s.handler(slog.DiscardHandler)).With("part", "x")
	if text, _ := s.log(); text != "" {
		t.Errorf("before the first line: %q", text)
	}
	for i := range recentMost + 5 {
		log.Warn("line", "n", i)
	}
	text, _ := s.log()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != recentMost || !strings.HasSuffix(lines[0], "WARN line part=x n=5") || !strings.HasSuffix(lines[len(lines)-1], fmt.Sprint(" n=", recentMost+4)) {
		t.Errorf("%d lines from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
}
