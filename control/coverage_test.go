package control

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/awsapi/formgn"
	"rehost/awsapi/iam"
	"rehost/awsapi/mgn"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/identity/api"
	"rehost/identity/oidc"
)

var update = flag.Bool("update", false, "write docs/api-coverage.md anew")

const coverage = "../docs/api-coverage.md"

// TestCoverage holds docs/api-coverage.md and what is registered together.
func TestCoverage(t *testing.T) {
	s := awsapi.New(awsapi.Options{Region: "us-east-1"}, mgn.Service, formgn.Service, iam.Service, sts.Service, ec2.Service)
	(&Service{}).Register(s)
	(&Service{}).RegisterGroups(s)
	api.Register(s, new(identity.Directory), oidc.New(nil))
	want := coverageText(s)
	if *update {
		if err := os.WriteFile(coverage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(coverage)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what is built (%v): go test ./control -run TestCoverage -update", coverage, err)
	}
}

func coverageText(s *awsapi.Server) string {
	var b strings.Builder
	built := func(service *awsapi.Service) (n int) {
		for _, op := range service.Operations {
			if s.Handles(op) {
				n++
			}
		}
		return n
	}
	b.WriteString("# API coverage\n\nMade from the operation tables by `go test ./control -run TestCoverage -update`; a test holds both together.\n\n" +
		"Every operation of the model is routed. One that is not built answers `NotImplementedException` (HTTP 501; `NotImplemented` in\n" +
		"the query protocols of IAM, STS and EC2) to whoever has signed the call; to others no operation answers anything. Requests of those that are built are validated against the model\n" +
		"and authorized before anything is done.\n")
	for _, part := range []struct {
		title   string
		service *awsapi.Service
	}{
		{"Application Migration Service", mgn.Service},
		{"Agents, installers and replication servers", formgn.Service},
		{"Identity and Access Management", iam.Service},
		{"Security Token Service", sts.Service},
		{"Elastic Compute Cloud: security groups", ec2.Service},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%d of %d operations are built.\n\n| operation | request | state |\n|---|---|---|\n",
			part.title, built(part.service), len(part.service.Operations))
		for _, op := range part.service.Operations {
			state := "built"
			if !s.Handles(op) {
				state = "answers NotImplementedException"
			}
			fmt.Fprintf(&b, "| %s | `%s %s` | %s |\n", op.Name, op.Method, op.URI, state)
		}
	}
	b.WriteString(limits)
	return b.String()
}

// limits is what the table cannot say.
const limits = `
## What is built and does less

- DescribeSourceServers: the filters applicationIDs and replicationTypes other than AGENT_BASED find nothing.
- UpdateLaunchConfiguration and launch templates: launchDisposition STOPPED and post-launch actions are refused with a
  ValidationException; right-sizing and licensing are kept and have no effect.
- StartTest and StartCutover: the newest consistent recovery point is launched; the API has no way to name another.
- UpdateReplicationConfiguration: staging disk types and subnets are kept and have no effect.
- Security groups: those of a replication configuration guard port 1500 of its replication server, the one called rehost-api
  guards the API ([network](guide/network.md)). There are no VPCs: a VpcId is refused. Rules of egress, and those for anything but TCP, are
  kept and have no effect. RevokeSecurityGroup*: a rule that is not there is always an InvalidPermission.NotFound. Of the filters on dates
  and VPCs there are none.
- CreateTags, DeleteTags, DescribeTags of EC2: of security groups and their rules.
- DescribeManagedPrefixLists: lists come from a file, always in version 1; one with both families has no AddressFamily.
- UpdateSourceServer: the connector action is kept and has no effect.
- GetAccessKeyLastUsed: exact to a minute.
- GenerateCredentialReport: the report is complete at once, and is made when it is fetched.
- ListEntitiesForPolicy: answers everything in one page.
- SimulateCustomPolicy, SimulatePrincipalPolicy: name the statements that decided; ResourceOwner and ResourceHandlingOption
  have no effect. The latter knows the principal's own condition keys and the time, except for aws:userid of a role, whose end is the
  session's name.
`
