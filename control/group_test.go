package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"rehost/awsapi"
	"rehost/awsapi/ec2"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
)

// ec2 makes a call as clients of EC2 write it: names and values, one after the other.
func (a *apiWorld) ec2(c identity.Credentials, action string, pairs ...string) (code, body string) {
	a.t.Helper()
	form := url.Values{"Action": {action}, "Version": {"2016-11-15"}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	text := []byte(form.Encode())
	r, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.server.URL+"/", bytes.NewReader(text))
	a.must(err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	digest := sha256.Sum256(text)
	who := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: string(c.SecretAccessKey), SessionToken: string(c.SessionToken)}
	a.must(v4.NewSigner().SignHTTP(a.t.Context(), who, r, hex.EncodeToString(digest[:]), "ec2", "us-east-1", time.Now()))
	answer, err := a.server.Client().Do(r)
	a.must(err)
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	a.must(err)
	if m := regexp.MustCompile(`<Code>(.*)</Code>`).FindSubmatch(text); m != nil {
		code = string(m[1])
	}
	if (answer.StatusCode == http.StatusOK) != (code == "") {
		a.t.Fatalf("%s: status %d with %s", action, answer.StatusCode, text)
	}
	return code, string(text)
}

// between is what stands in an element of an answer, the first of that name.
func between(body, element string) string {
	_, rest, _ := strings.Cut(body, "<"+element+">")
	out, _, _ := strings.Cut(rest, "</"+element+">")
	return out
}

// tcp is a permission for TCP ports of the addresses.
func tcp(from, to int32, cidrs ...string) []ec2.IpPermission {
	p := ec2.IpPermission{IpProtocol: p("tcp"), FromPort: &from, ToPort: &to}
	for _, c := range cidrs {
		switch {
		case strings.HasPrefix(c, "sg-"):
			p.UserIdGroupPairs = append(p.UserIdGroupPairs, ec2.UserIdGroupPair{GroupId: &c})
		case strings.HasPrefix(c, "pl-"):
			p.PrefixListIds = append(p.PrefixListIds, ec2.PrefixListId{PrefixListId: &c})
		case strings.Contains(c, ":"):
			p.Ipv6Ranges = append(p.Ipv6Ranges, ec2.Ipv6Range{CidrIpv6: &c})
		default:
			p.IpRanges = append(p.IpRanges, ec2.IpRange{CidrIp: &c})
		}
	}
	return []ec2.IpPermission{p}
}

func (w *world) group(name string) string {
	w.t.Helper()
	out, err := w.CreateSecurityGroup(w.t.Context(), &ec2.CreateSecurityGroupRequest{GroupName: name, Description: "a group"})
	w.must(err)
	return out.GroupId
}

func (w *world) allow(id string, permissions []ec2.IpPermission) {
	w.t.Helper()
	_, err := w.AuthorizeSecurityGroupIngress(w.t.Context(), &ec2.AuthorizeSecurityGroupIngressRequest{GroupId: &id, IpPermissions: permissions})
	w.must(err)
}

func (w *world) takeBack(id string, permissions []ec2.IpPermission) {
	w.t.Helper()
	_, err := w.RevokeSecurityGroupIngress(w.t.Context(), &ec2.RevokeSecurityGroupIngressRequest{GroupId: &id, IpPermissions: permissions})
	w.must(err)
}

func (w *world) named(name string) ec2.SecurityGroup {
	w.t.Helper()
	out, err := w.DescribeSecurityGroups(w.t.Context(), &ec2.DescribeSecurityGroupsRequest{GroupNames: []string{name}})
	w.must(err)
	return out.SecurityGroups[0]
}

// reached are the addresses that may reach the replication server, as it is told.
func (w *world) reached() string {
	w.t.Helper()
	out, err := w.DescribeReplicationServerAssociations(w.t.Context(), &formgn.DescribeReplicationServerAssociationsForMgnRequest{ReplicatorID: replicatorID, Address: p("127.0.0.1:2500")})
	w.must(err)
	return strings.Join(out.AllowedAddresses, " ")
}

const everybody = "0.0.0.0/0 ::/0"

// TestReach: who may reach a replication server is what the configurations of its
// source servers say together, and nothing else.
func TestReach(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	want := func(what, addresses string) {
		t.Helper()
		if got := w.reached(); got != addresses {
			t.Errorf("%s: %q may connect, want %q", what, got, addresses)
		}
	}
	configure := func(id string, associated bool, groups ...string) {
		t.Helper()
		_, err := w.UpdateReplicationConfiguration(ctx, &mgn.UpdateReplicationConfigurationRequest{SourceServerID: id, AssociateDefaultSecurityGroup: &associated, ReplicationServersSecurityGroupsIDs: append([]string{}, groups...)})
		w.must(err)
	}
	want("no template and no source server", everybody)
	office, lab := w.group("office"), w.group("lab")
	w.allow(office, tcp(1500, 1500, "192.0.2.9/24"))
	w.allow(office, tcp(22, 22, "198.51.100.0/24"))    // another port
	w.allow(office, tcp(8443, 8443, "203.0.113.0/24")) // that of the API
	_, err := w.AuthorizeSecurityGroupEgress(ctx, &ec2.AuthorizeSecurityGroupEgressRequest{GroupId: office, IpPermissions: tcp(1500, 1500, "198.51.100.0/24")})
	w.must(err)
	w.allow(lab, []ec2.IpPermission{{IpProtocol: p("-1"), Ipv6Ranges: []ec2.Ipv6Range{{CidrIpv6: p("2001:db8::/32")}}}})
	w.allow(lab, tcp(2000, 3000, "10.0.0.0/8")) // where it listens
	w.allow(lab, []ec2.IpPermission{{IpProtocol: p("17"), FromPort: p(int32(1500)), ToPort: p(int32(1500)), IpRanges: []ec2.IpRange{{CidrIp: p("172.16.0.0/12")}}}})
	template := &mgn.CreateReplicationConfigurationTemplateRequest{AssociateDefaultSecurityGroup: false, DataPlaneRouting: "PRIVATE_IP",
		DefaultLargeStagingDiskType: "GP3", EbsEncryption: "DEFAULT", ReplicationServersSecurityGroupsIDs: []string{office}}
	_, err = w.CreateReplicationConfigurationTemplate(ctx, template)
	w.must(err)
	want("the template's group", "192.0.2.0/24")

	a, b := w.register("01"), w.register("02")
	configure(a, false, lab)
	want("two servers, two groups", "10.0.0.0/8 192.0.2.0/24 2001:db8::/32")
	configure(b, false)
	want("one has no group at all", "10.0.0.0/8 2001:db8::/32")
	configure(b, true)
	want("one has the default group", everybody[:9]+" 10.0.0.0/8 2001:db8::/32 ::/0")
	_, err = w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: b})
	w.must(err)
	want("it is disconnected", "10.0.0.0/8 2001:db8::/32")

	// A group that is named is its members, by the addresses that their agents call from.
	configure(a, false, office)
	w.takeBack(office, tcp(1500, 1500, "192.0.2.0/24"))
	w.allow(office, tcp(1500, 1500, office))
	want("no address of a member is known", "")
	w.gauge.set(a, func(t *telemetry) { t.From = "192.0.2.7" })
	w.gauge.set(b, func(t *telemetry) { t.From = "192.0.2.8" })
	want("one member", "192.0.2.7/32")

	w.UsePrefixLists([]PrefixList{{ID: "pl-0123456789abcdef0", Entries: []PrefixEntry{{Prefix: netip.MustParsePrefix("203.0.113.0/24")}}}})
	w.allow(office, tcp(1500, 1500, "pl-0123456789abcdef0"))
	want("a list besides", "192.0.2.7/32 203.0.113.0/24")
	w.UsePrefixLists(nil)
	want("the list is gone", "192.0.2.7/32")
	_, err = w.UpdateReplicationConfiguration(ctx, &mgn.UpdateReplicationConfigurationRequest{SourceServerID: a, ReplicationServersSecurityGroupsIDs: []string{"sg-00000000000000000"}})
	if !is[*mgn.ValidationException](err) {
		t.Errorf("a group that is not there: %v", err)
	}
	w.restart()
	if got := w.reached(); got != "" { // where an agent called from was not written down before the crash
		t.Errorf("after a crash: %q", got)
	}
}

// TestReach_Wait: a replication server that waits, and the API, hear of a change at once,
// and hear the addresses only when they are others.
func TestReach_Wait(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.register("01")
	w.replicate(id)
	ask := func(in *formgn.DescribeReplicationServerAssociationsForMgnRequest) *formgn.DescribeReplicationServerAssociationsForMgnResponse {
		in.ReplicatorID, in.WaitSeconds = replicatorID, p(int32(20))
		out, err := w.DescribeReplicationServerAssociations(ctx, in)
		if err != nil {
			t.Error(err)
			return new(formgn.DescribeReplicationServerAssociationsForMgnResponse)
		}
		return out
	}
	first := ask(&formgn.DescribeReplicationServerAssociationsForMgnRequest{})
	if again := ask(&formgn.DescribeReplicationServerAssociationsForMgnRequest{AllowedDigest: &first.AllowedDigest}); again.AllowedAddresses != nil || again.AllowedDigest != first.AllowedDigest || len(first.AllowedAddresses) != 2 {
		t.Errorf("got %v, then %v", first, again)
	}
	g := w.group("office")
	allowed, revision, err := w.APIReach(ctx, 0)
	if texts, _ := reachDigest(allowed); err != nil || strings.Join(texts, " ") != everybody {
		t.Fatalf("%v, %v", allowed, err)
	}
	began := time.Now()
	replication, api := make(chan []string, 1), make(chan int, 1)
	first = ask(&formgn.DescribeReplicationServerAssociationsForMgnRequest{})
	go func() {
		replication <- ask(&formgn.DescribeReplicationServerAssociationsForMgnRequest{Revision: first.Revision, AllowedDigest: &first.AllowedDigest}).AllowedAddresses
	}()
	go func() {
		wait, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_, newer, err := w.APIReach(wait, revision)
		if err != nil || newer == revision {
			t.Errorf("revision %d after %d, %v", newer, revision, err)
		}
		api <- 1
	}()
	_, err = w.UpdateReplicationConfiguration(ctx, &mgn.UpdateReplicationConfigurationRequest{SourceServerID: id, AssociateDefaultSecurityGroup: p(false), ReplicationServersSecurityGroupsIDs: []string{g}})
	w.must(err)
	if got := <-replication; got == nil || len(got) != 0 {
		t.Errorf("got %v", got)
	}
	<-api
	if waited := time.Since(began); waited > 15*time.Second {
		t.Errorf("it took %v", waited)
	}
	guard := w.named(APIGroup)
	w.takeBack(guard.GroupId, tcp(8443, 8443, "0.0.0.0/0", "::/0"))
	if allowed, _, err := w.APIReach(ctx, 0); err != nil || len(allowed) != 0 {
		t.Errorf("the API's group allows nobody: %v, %v", allowed, err)
	}
}

// TestSecurityGroup_Default: what it has to allow cannot be taken away, not by the
// API and not behind its back; neither can the group.
func TestSecurityGroup_Default(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	g := w.named(DefaultGroup)
	w.takeBack(g.GroupId, tcp(1500, 1500, "0.0.0.0/0"))
	check := func(when string) {
		t.Helper()
		now := w.named(DefaultGroup)
		if len(now.IpPermissions) != 1 || *now.IpPermissions[0].IpRanges[0].CidrIp != "0.0.0.0/0" || *now.IpPermissions[0].Ipv6Ranges[0].CidrIpv6 != "::/0" || now.GroupId != g.GroupId {
			t.Errorf("%s: %+v", when, now)
		}
		if got := w.reached(); got != everybody {
			t.Errorf("%s: %q may connect", when, got)
		}
	}
	check("revoked")
	_, err := w.db.writer.ExecContext(ctx, `DELETE FROM security_group_rules`)
	w.must(err)
	if got := w.reached(); got != "" {
		t.Errorf("before it is repaired %q may connect", got)
	}
	w.must(w.watch(ctx))
	check("deleted from the database")
	w.happened.mu.Lock()
	repaired := slices.IndexFunc(w.happened.all, func(e Event) bool { return e.Name == securityGroupRepaired })
	w.happened.mu.Unlock()
	if repaired < 0 {
		t.Error("nobody hears of it")
	}
	if rules := w.named(APIGroup).IpPermissions; len(rules) != 0 { // it belongs to who runs the service
		t.Errorf("the API's group is repaired, too: %+v", rules)
	}
	for _, name := range []string{DefaultGroup, APIGroup} {
		if _, err := w.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupRequest{GroupName: &name}); code(err) != "CannotDelete" {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.restart()
	check("after a restart")
}

// code is the error's, as EC2 has it.
func code(err error) string {
	if e := (*awsapi.FaultError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

// TestSecurityGroup_Refused: the errors of AWS, and that a call that is refused changes nothing.
func TestSecurityGroup_Refused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	office := w.group("office")
	w.allow(office, tcp(1500, 1500, "192.0.2.0/24"))
	other := w.group("other")
	w.allow(other, tcp(1500, 1500, office, "198.51.100.0/24"))
	server := w.register("01")
	_, err := w.UpdateReplicationConfiguration(ctx, &mgn.UpdateReplicationConfigurationRequest{SourceServerID: server, ReplicationServersSecurityGroupsIDs: []string{other}})
	w.must(err)
	otherRule := ruleOf(w, other)
	before, err := w.DescribeSecurityGroupRules(ctx, &ec2.DescribeSecurityGroupRulesRequest{})
	w.must(err)
	authorize := func(permissions []ec2.IpPermission) error {
		_, err := w.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressRequest{GroupId: &office, IpPermissions: permissions})
		return err
	}
	revoke := func(in ec2.RevokeSecurityGroupIngressRequest) error {
		_, err := w.RevokeSecurityGroupIngress(ctx, &in)
		return err
	}
	create := func(in ec2.CreateSecurityGroupRequest) error {
		_, err := w.CreateSecurityGroup(ctx, &in)
		return err
	}
	remove := func(in ec2.DeleteSecurityGroupRequest) error {
		_, err := w.DeleteSecurityGroup(ctx, &in)
		return err
	}
	modify := func(id string, to *ec2.SecurityGroupRuleRequest) error {
		_, err := w.ModifySecurityGroupRules(ctx, &ec2.ModifySecurityGroupRulesRequest{GroupId: office, SecurityGroupRules: []ec2.SecurityGroupRuleUpdate{{SecurityGroupRuleId: id, SecurityGroupRule: to}}})
		return err
	}
	for what, test := range map[string]struct {
		err  error
		want string
	}{
		"twice":                 {authorize(tcp(1500, 1500, "192.0.2.77/24")), "InvalidPermission.Duplicate"},
		"one new, one there":    {authorize(tcp(1500, 1500, "203.0.113.0/24", "192.0.2.0/24")), "InvalidPermission.Duplicate"},
		"no address":            {authorize(tcp(1500, 1500, "192.0.2.0")), "InvalidParameterValue"},
		"no network":            {authorize(tcp(1500, 1500, "192.0.2.0/33")), "InvalidParameterValue"},
		"mapped":                {authorize(tcp(1500, 1500, "::ffff:192.0.2.0/120")), "InvalidParameterValue"},
		"no source":             {authorize(tcp(1500, 1500)), "MissingParameter"},
		"nothing":               {authorize(nil), "MissingParameter"},
		"ports turned round":    {authorize(tcp(1501, 1500, "192.0.2.0/24")), "InvalidParameterValue"},
		"a port too high":       {authorize(tcp(1500, 65536, "192.0.2.0/24")), "InvalidParameterValue"},
		"no port":               {authorize([]ec2.IpPermission{{IpProtocol: p("tcp"), IpRanges: []ec2.IpRange{{CidrIp: p("192.0.2.0/24")}}}}), "InvalidParameterValue"},
		"no protocol":           {authorize([]ec2.IpPermission{{IpRanges: []ec2.IpRange{{CidrIp: p("192.0.2.0/24")}}}}), "MissingParameter"},
		"a strange protocol":    {authorize([]ec2.IpPermission{{IpProtocol: p("sctp2"), IpRanges: []ec2.IpRange{{CidrIp: p("192.0.2.0/24")}}}}), "InvalidParameterValue"},
		"a strange group":       {authorize(tcp(1500, 1500, "sg-00000000000000000")), "InvalidGroup.NotFound"},
		"a strange list":        {authorize(tcp(1500, 1500, "pl-00000000000000000")), "InvalidPrefixListID.NotFound"},
		"a strange description": {authorize([]ec2.IpPermission{{IpProtocol: p("-1"), IpRanges: []ec2.IpRange{{CidrIp: p("192.0.2.0/24"), Description: p("<script>")}}}}), "InvalidParameterValue"},
		"not there":             {revoke(ec2.RevokeSecurityGroupIngressRequest{GroupId: &office, IpPermissions: tcp(1500, 1500, "192.0.2.0/25")}), "InvalidPermission.NotFound"},
		"one there, one not":    {revoke(ec2.RevokeSecurityGroupIngressRequest{GroupId: &office, IpPermissions: tcp(1500, 1500, "192.0.2.0/24", "192.0.2.0/25")}), "InvalidPermission.NotFound"},
		"of another group":      {revoke(ec2.RevokeSecurityGroupIngressRequest{GroupId: &office, SecurityGroupRuleIds: []string{otherRule}}), "InvalidSecurityGroupRuleId.NotFound"},
		"no group":              {revoke(ec2.RevokeSecurityGroupIngressRequest{IpPermissions: tcp(1500, 1500, "192.0.2.0/24")}), "MissingParameter"},
		"both names":            {revoke(ec2.RevokeSecurityGroupIngressRequest{GroupId: &office, GroupName: p("office")}), "InvalidParameterCombination"},
		"a malformed id":        {revoke(ec2.RevokeSecurityGroupIngressRequest{GroupId: p("office")}), "InvalidGroupId.Malformed"},
		"the same name":         {create(ec2.CreateSecurityGroupRequest{GroupName: "office", Description: "x"}), "InvalidGroup.Duplicate"},
		"a name like an id":     {create(ec2.CreateSecurityGroupRequest{GroupName: "sg-1", Description: "x"}), "InvalidParameterValue"},
		"a VPC":                 {create(ec2.CreateSecurityGroupRequest{GroupName: "x", Description: "x", VpcId: p("vpc-12345678")}), "InvalidVpcID.NotFound"},
		"a dry run":             {create(ec2.CreateSecurityGroupRequest{GroupName: "x", Description: "x", DryRun: p(true)}), "DryRunOperation"},
		"named by a rule":       {remove(ec2.DeleteSecurityGroupRequest{GroupId: &office}), "DependencyViolation"},
		"used by a server":      {remove(ec2.DeleteSecurityGroupRequest{GroupName: p("other")}), "DependencyViolation"},
		"unknown":               {remove(ec2.DeleteSecurityGroupRequest{GroupName: p("nobody")}), "InvalidGroup.NotFound"},
		"modify another's":      {modify(otherRule, &ec2.SecurityGroupRuleRequest{IpProtocol: p("-1"), CidrIpv4: p("0.0.0.0/0")}), "InvalidSecurityGroupRuleId.NotFound"},
		"modify to two":         {modify(ruleOf(w, office), &ec2.SecurityGroupRuleRequest{IpProtocol: p("-1"), CidrIpv4: p("0.0.0.0/0"), CidrIpv6: p("::/0")}), "InvalidParameterCombination"},
	} {
		if got := code(test.err); got != test.want {
			t.Errorf("%s: %s, want %s", what, got, test.want)
		}
	}
	after, err := w.DescribeSecurityGroupRules(ctx, &ec2.DescribeSecurityGroupRulesRequest{})
	w.must(err)
	if fmt.Sprint(ids(after)) != fmt.Sprint(ids(before)) {
		t.Errorf("something has changed: %v, were %v", ids(after), ids(before))
	}
}

func ids(out *ec2.DescribeSecurityGroupRulesResult) (all []string) {
	for _, r := range out.SecurityGroupRules {
		all = append(all, r.SecurityGroupRuleId+r.CidrIpv4)
	}
	return all
}

// ruleOf is the id of a rule of ingress of the group.
func ruleOf(w *world, group string) string {
	w.t.Helper()
	rules, err := rulesWhere(w.t.Context(), w.db.reader, "group_id = ? AND egress = 0", group)
	w.must(err)
	return rules[0].ID
}

// TestSecurityGroup_API goes through the protocol, policies and records: a group by
// its tags, page by page, and somebody who may change only what is tagged.
func TestSecurityGroup_API(t *testing.T) {
	a := newAPIWorld(t)
	ctx := t.Context()
	admin, err := a.directory.CreateAccessKey(ctx, identity.AdminUser)
	a.must(err)
	do := func(who identity.Credentials, want, action string, pairs ...string) string {
		t.Helper()
		code, body := a.ec2(who, action, pairs...)
		if code != want {
			t.Fatalf("%s %v: got %q, want %q: %s", action, pairs, code, want, body)
		}
		return body
	}
	office := between(do(admin, "", "CreateSecurityGroup", "GroupName", "office", "GroupDescription", "an office",
		"TagSpecification.1.ResourceType", "security-group", "TagSpecification.1.Tag.1.Key", "env", "TagSpecification.1.Tag.1.Value", "dev"), "groupId")
	shop := between(do(admin, "", "CreateSecurityGroup", "GroupName", "shop", "GroupDescription", "a shop"), "groupId")
	a.audit.mu.Lock()
	record := a.audit.record
	a.audit.mu.Unlock()
	if record.EventSource != "ec2.amazonaws.com" || record.EventName != "CreateSecurityGroup" || !strings.Contains(fmt.Sprint(record.ResponseElements), shop) {
		t.Errorf("recorded as %+v", record)
	}
	rule := between(do(admin, "", "AuthorizeSecurityGroupIngress", "GroupName", "office", "IpPermissions.1.IpProtocol", "tcp", "IpPermissions.1.FromPort", "1500",
		"IpPermissions.1.ToPort", "1500", "IpPermissions.1.IpRanges.1.CidrIp", "192.0.2.0/24", "IpPermissions.1.Ipv6Ranges.1.CidrIpv6", "2001:db8::1/64"), "securityGroupRuleId")
	if body := do(admin, "", "DescribeSecurityGroups", "Filter.1.Name", "tag:env", "Filter.1.Value.1", "d*", "Filter.2.Name", "ip-permission.cidr", "Filter.2.Value.1", "192.0.2.*"); between(body, "groupId") != office ||
		between(body, "cidrIpv6") != "2001:db8::/64" || strings.Contains(body, shop) {
		t.Errorf("by filters: %s", body)
	}
	do(admin, "InvalidParameterValue", "DescribeSecurityGroups", "Filter.1.Name", "colour", "Filter.1.Value.1", "red")
	do(admin, "MissingParameter", "CreateSecurityGroup", "GroupName", "x")
	do(admin, "InvalidParameterValue", "DescribeSecurityGroups", "GroupId", office) // a list has numbers
	do(admin, "InvalidAction", "RunInstances")
	seen := map[string]bool{}
	for token := ""; ; {
		pairs := []string{"MaxResults", "5"}
		if token != "" {
			pairs = append(pairs, "NextToken", token)
		}
		body := do(admin, "", "DescribeSecurityGroupRules", pairs...)
		for _, m := range regexp.MustCompile(`<securityGroupRuleId>(.*?)</`).FindAllStringSubmatch(body, -1) {
			if seen[m[1]] {
				t.Errorf("%s is there twice", m[1])
			}
			seen[m[1]] = true
		}
		if token = between(body, "nextToken"); token == "" {
			break
		}
	}
	if len(seen) != 10 { // four of egress, the default group's two, the API's two, and those of office
		t.Errorf("%d rules", len(seen))
	}
	do(admin, "InvalidNextToken", "DescribeTags", "NextToken", "made up")
	do(admin, "", "CreateTags", "ResourceId.1", rule, "Tag.1.Key", "why", "Tag.1.Value", "because")
	if body := do(admin, "", "DescribeTags", "Filter.1.Name", "resource-type", "Filter.1.Value.1", "security-group-rule"); between(body, "value") != "because" || between(body, "resourceId") != rule {
		t.Errorf("tags: %s", body)
	}
	do(admin, "InvalidID", "CreateTags", "ResourceId.1", "i-00000000000000001", "Tag.1.Key", "a", "Tag.1.Value", "b")

	// Who may change what is tagged for development, and make nothing without a tag.
	a.must(a.directory.CreateUser(ctx, identity.User{Name: "dev", Path: "/", Inline: map[string]string{"groups": `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["ec2:AuthorizeSecurityGroupIngress","ec2:RevokeSecurityGroupIngress"],"Resource":"arn:aws:ec2:us-east-1:*:security-group/*","Condition":{"StringEquals":{"ec2:ResourceTag/env":"dev"}}},
		{"Effect":"Allow","Action":"ec2:DeleteSecurityGroup","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/env":"dev"}}},
		{"Effect":"Allow","Action":"ec2:CreateSecurityGroup","Resource":"*","Condition":{"StringEquals":{"aws:RequestTag/env":"dev"}}},
		{"Effect":"Allow","Action":"ec2:CreateTags","Resource":"*","Condition":{"StringEquals":{"ec2:CreateAction":"CreateSecurityGroup"}}}]}`}}))
	dev, err := a.directory.CreateAccessKey(ctx, "dev")
	a.must(err)
	permission := []string{"IpProtocol", "tcp", "FromPort", "1500", "ToPort", "1500", "CidrIp", "198.51.100.0/24"}
	do(dev, "DryRunOperation", "AuthorizeSecurityGroupIngress", append(permission, "GroupId", office, "DryRun", "true")...)
	do(dev, "", "AuthorizeSecurityGroupIngress", append(permission, "GroupId", office)...)
	do(dev, "", "RevokeSecurityGroupIngress", append(permission, "GroupName", "office")...)
	for _, pairs := range [][]string{{"GroupId", shop}, {"GroupName", "shop"}, {"GroupName", DefaultGroup}, {"GroupId", "sg-00000000000000000"}, {"GroupId", office, "GroupName", "shop", "DryRun", "true"}} {
		if code, body := a.ec2(dev, "AuthorizeSecurityGroupIngress", append(permission, pairs...)...); code != "UnauthorizedOperation" && code != "InvalidParameterCombination" {
			t.Errorf("%v: %s %s", pairs, code, body)
		}
	}
	do(dev, "UnauthorizedOperation", "DescribeSecurityGroups")
	do(dev, "UnauthorizedOperation", "CreateTags", "ResourceId.1", shop, "Tag.1.Key", "env", "Tag.1.Value", "dev") // no way around it
	do(dev, "UnauthorizedOperation", "CreateSecurityGroup", "GroupName", "mine", "GroupDescription", "mine")
	mine := between(do(dev, "", "CreateSecurityGroup", "GroupName", "mine", "GroupDescription", "mine",
		"TagSpecification.1.ResourceType", "security-group", "TagSpecification.1.Tag.1.Key", "env", "TagSpecification.1.Tag.1.Value", "dev"), "groupId")
	do(dev, "", "DeleteSecurityGroup", "GroupId", mine)
	id := a.register("01")
	for role, name := range map[string]string{identity.AgentRole: id, identity.ReplicationServerRole: replicatorID} {
		session, err := a.directory.AssumeRoleAsService(ctx, identity.ServiceName, identity.AssumeRole{Role: role, Session: name, SourceIdentity: name})
		a.must(err)
		do(session, "UnauthorizedOperation", "AuthorizeSecurityGroupIngress", append(permission, "GroupId", shop)...)
	}
	// An agent's calls say where it is; those of others about it do not.
	_, err = awsapi.Call(ctx, a.session(identity.AgentRole, id), formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id})
	a.must(err)
	if got := a.gauge.get(id).From; got != "127.0.0.1" && got != "::1" {
		t.Errorf("the agent calls from %q", got)
	}
}

// TestParsePrefixLists: what is no list is no list, and says in which line.
func TestParsePrefixLists(t *testing.T) {
	lists, err := ParsePrefixLists(strings.NewReader("# lists\n[pl-0123456789abcdef0 offices]\n192.0.2.9/24\tLondon  # both\n\n2001:db8::/32\n[pl-11111111]\n"))
	if err != nil || len(lists) != 2 || lists[0].Name != "offices" || fmt.Sprint(lists[0].Entries) != "[{192.0.2.0/24 London} {2001:db8::/32 }]" || lists[1].Entries != nil {
		t.Errorf("%+v, %v", lists, err)
	}
	for text, line := range map[string]string{"192.0.2.0/24": "line 1", "[pl-1 x]": "line 1", "[pl-11111111 x\n": "line 1", "[pl-11111111]\n\n192.0.2.0": "line 3",
		"[pl-11111111]\n[pl-11111111]": "line 2", "[pl-11111111]\n::ffff:192.0.2.0/120": "line 2"} {
		if _, err := ParsePrefixLists(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
