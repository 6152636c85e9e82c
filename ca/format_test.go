package ca

import (
	"os"
	"strings"
	"testing"
)

// TestFormat_Document holds the pages of docs/format and the constants together.
func TestFormat_Document(t *testing.T) {
	for page, facts := range map[string][]string{
		"authority.md":    {"`" + stateFile + "`", "`" + stateFormat + "`", "| `version` | 1;", "`" + sealedBlock + "`", "`authority key `", "`" + stateLock + "`", "`" + publicFile + "`", "`" + serviceFile + "`", "`" + rootFile + "`"},
		"trust-bundle.md": {bundleHeader + "\n", "at most 256 KiB", "one to eight roots"},
	} {
		text, err := os.ReadFile("../docs/format/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, fact := range facts {
			if !strings.Contains(string(text), fact) {
				t.Errorf("%s does not say %q", page, fact)
			}
		}
	}
	if stateVersion != 1 || maxBundle != 256<<10 || maxBundleRoots != 8 {
		t.Error("the pages have other figures")
	}
}
