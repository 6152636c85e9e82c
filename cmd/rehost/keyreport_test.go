package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/mgn"

	"rehost/identity"
)

// TestKeys_Ls lists the keys of the first start, beside the service that runs.
func TestKeys_Ls(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the whole service")
	}
	data := filepath.Join(t.TempDir(), "data")
	r := serve(t, data)
	_, err := r.mgn.InitializeService(t.Context(), &mgn.InitializeServiceInput{})
	r.must(err)
	var out, stderr bytes.Buffer
	if status := Run(t.Context(), []string{"keys", "ls", "--data", data, "--json"}, &out, &stderr); status != statusDone {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	var lines []keyEntry
	if err := json.Unmarshal(out.Bytes(), &lines); err != nil || len(lines) != 2 {
		t.Fatalf("got %v, %s", err, &out)
	}
	admin, installer := lines[0], lines[1]
	if admin.User != identity.AdminUser || admin.Status != "Active" || admin.LastUsed == nil || admin.Ends != nil || admin.Note != "" {
		t.Errorf("the administrator's: %+v", admin)
	}
	if !strings.HasPrefix(installer.User, installerPrefix) || installer.LastUsed != nil || installer.Ends == nil ||
		installer.Ends.Sub(installer.Created).Round(time.Minute) != installerLife {
		t.Errorf("the installation key: %+v", installer)
	}
	out.Reset()
	if status := Run(t.Context(), []string{"keys", "ls", "--data", data, "--older-than", "1ns"}, &out, &stderr); status != statusError || !strings.Contains(out.String(), "replace it") {
		t.Errorf("status %d: %s", status, &out)
	}
	if status := Run(t.Context(), []string{"keys", "ls", "--data", t.TempDir()}, &out, &stderr); status != statusNotFound {
		t.Errorf("a directory without a service: status %d", status)
	}
}

func TestKeysLs_Line(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ago := func(days int) time.Time { return now.AddDate(0, 0, -days) }
	c := KeysLsCmd{OlderThan: 90 * 24 * time.Hour, Unused: 30 * 24 * time.Hour}
	for name, test := range map[string]struct {
		key          identity.KeyState
		status, note string
	}{
		"young":        {identity.KeyState{Active: true, Created: ago(10)}, "Active", ""},
		"never used":   {identity.KeyState{Active: true, Created: ago(40)}, "Active", "not used for 40 days: delete it"},
		"old and used": {identity.KeyState{Active: true, Created: ago(100), Used: identity.KeyUse{Time: ago(1)}}, "Active", "100 days old: replace it"},
		"old and idle": {identity.KeyState{Created: ago(100), Used: identity.KeyUse{Time: ago(31)}}, "Inactive", "100 days old: replace it; not used for 31 days: delete it"},
		"ends":         {identity.KeyState{Active: true, Created: ago(100), Ends: ago(-1)}, "Active", ""},
		"has ended":    {identity.KeyState{Active: true, Created: ago(100), Ends: now}, "Ended", ""},
	} {
		if got := c.line(test.key, now); got.Status != test.status || got.Note != test.note {
			t.Errorf("%s: got %s, %q; want %s, %q", name, got.Status, got.Note, test.status, test.note)
		}
	}
}
