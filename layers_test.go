package rehost

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers says which packages of this module each package may import, tests
// aside. The order is the road of a block; whoever adds a package puts it here
// and says in its doc comment what goes in and what comes out.
var layers = map[string][]string{
	"":                    nil,
	"audit":               nil,
	"fence":               nil,
	"fence/nft":           {"fence"},
	"block":               nil,
	"release":             nil,
	"ca":                  nil,
	"capture":             {"block", "capture/bpf", "internal/loop"},
	"capture/bpf":         nil,
	"capture/freeze":      nil,
	"wire":                {"block", "ca"},
	"tunnel":              nil,
	"store":               {"block"},
	"receive":             {"block", "wire", "store", "ca"},
	"replicator":          {"block", "ca", "fence", "wire", "store", "receive", "awsapi", "awsapi/formgn"},
	"export":              {"block"},
	"launch":              {"block"},
	"launch/qemu":         {"block", "launch"},
	"launch/launchtest":   {"export", "launch"},
	"identity/policy":     nil,
	"identity":            {"identity/policy"},
	"identity/oidc":       {"identity"},
	"identity/api":        {"identity", "identity/oidc", "identity/policy", "awsapi", "awsapi/iam", "awsapi/sts"},
	"awsapi":              {"audit", "identity", "identity/policy"},
	"awsapi/mgn":          {"awsapi"},
	"awsapi/formgn":       {"awsapi"},
	"awsapi/iam":          {"awsapi"},
	"awsapi/sts":          {"awsapi"},
	"awsapi/ec2":          {"awsapi"},
	"awsapi/generate":     nil,
	"control":             {"block", "ca", "identity", "identity/policy", "awsapi", "awsapi/mgn", "awsapi/formgn", "awsapi/ec2", "store", "export", "launch", "tunnel", "release"},
	"agent":               {"block", "ca", "capture", "capture/bpf", "capture/freeze", "wire", "tunnel", "awsapi", "awsapi/formgn", "release", "privilege", "support"},
	"privilege":           nil,
	"support":             {"awsapi"},
	"fleet":               nil, // knows the agent as a program, not as a package
	"cmd/rehost":          nil, // ties everything together
	"cmd/rehost-agent":    {"agent", "capture/freeze"},
	"packaging":           {"release"},
	"internal/fault":      {"block", "internal/loop"},
	"internal/loop":       nil,
	"internal/sshd":       nil,
	"internal/testvm":     nil,
	"internal/testreport": nil,

	"e2e/sourceserver":         {"e2e/sourceserver/records"},
	"e2e/sourceserver/records": nil,
	"e2e/road":                 nil,
	"e2e/site":                 {"ca"},
	"e2e/demo":                 nil,
	"e2e":                      nil,
	"bench":                    nil,
}

// agentMayLink is all that the program on a source server is made of: small
// enough to be read by those who are to trust it.
var agentMayLink = []string{"block", "ca", "capture", "capture/bpf", "capture/freeze", "internal/loop", "wire", "tunnel", "awsapi", "awsapi/formgn", "agent", "identity", "identity/policy", "audit", "cmd/rehost-agent", "release", "privilege", "support"}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func inModule(path string) (string, bool) {
	if path == "rehost" {
		return "", true
	}
	return strings.CutPrefix(path, "rehost/")
}

func TestLayers(t *testing.T) {
	for _, line := range list(t, "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...") {
		words := strings.Fields(line)
		pkg, _ := inModule(words[0])
		may, known := layers[pkg]
		if !known {
			t.Errorf("package %q is not on the import map in layers_test.go: put it there", pkg)
		}
		if pkg == "cmd/rehost" || strings.HasPrefix(pkg, "e2e") || strings.HasPrefix(pkg, "bench") {
			continue // these tie everything together
		}
		for _, imp := range words[1:] {
			if dep, ok := inModule(imp); ok && !slices.Contains(may, dep) {
				t.Errorf("%s imports %s, which the import map does not allow", pkg, dep)
			}
		}
	}
}

func TestLayers_Agent(t *testing.T) {
	for _, path := range list(t, "-deps", "./cmd/rehost-agent") {
		if dep, ok := inModule(path); ok && !slices.Contains(agentMayLink, dep) {
			t.Errorf("rehost-agent links %s", dep)
		}
	}
}
