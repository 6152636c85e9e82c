package api

import (
	"bytes"
	"context"
	"encoding/csv"
	"slices"
	"strconv"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

func (a *api) registerAccount(s *awsapi.Server) {
	awsapi.Handle(s, iam.GetAccountSummary, a.summary)
	awsapi.Handle(s, iam.GetAccountAuthorizationDetails, a.details)
	awsapi.Handle(s, iam.GenerateCredentialReport, a.generateReport)
	awsapi.Handle(s, iam.GetCredentialReport, a.getReport)
	awsapi.Handle(s, iam.CreateAccountAlias, a.createAlias)
	awsapi.Handle(s, iam.DeleteAccountAlias, a.deleteAlias)
	awsapi.Handle(s, iam.ListAccountAliases, a.listAliases)
}

func (a *api) summary(context.Context, *iam.GetAccountSummaryRequest) (*iam.GetAccountSummaryResponse, error) {
	out := new(iam.GetAccountSummaryResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		own, inUse := 0, int32(0)
		for _, arn := range tx.Policies.Names() {
			if !identity.IsManaged(arn) {
				own++
			}
			attached, _ := usesOf(tx, arn)
			inUse += min(1, attached.count())
		}
		out.SummaryMap = map[iam.SummaryKeyType]int32{
			iam.SummaryKeyTypeUsers: int32(len(tx.Users.Names())), iam.SummaryKeyTypeGroups: int32(len(tx.Groups.Names())),
			iam.SummaryKeyTypeAccessKeysPerUserQuota: maxKeys, iam.SummaryKeyTypeGroupsPerUserQuota: maxGroups,
			iam.SummaryKeyTypePolicies: int32(own), iam.SummaryKeyTypePolicyVersionsInUse: inUse, iam.SummaryKeyTypeVersionsPerPolicyQuota: maxVersions,
			iam.SummaryKeyTypeAttachedPoliciesPerUserQuota: maxAttached, iam.SummaryKeyTypeAttachedPoliciesPerGroupQuota: maxAttached, iam.SummaryKeyTypeAttachedPoliciesPerRoleQuota: maxAttached,
			"Roles": int32(len(tx.Roles.Names())), "InstanceProfiles": int32(len(tx.Profiles.Names())),
		}
		return nil
	})
}

// A detail is one entry of the four lists of GetAccountAuthorizationDetails,
// which are paged as if they were one.
type detail struct {
	user   *iam.UserDetail
	group  *iam.GroupDetail
	role   *iam.RoleDetail
	policy *iam.ManagedPolicyDetail
}

func (a *api) details(_ context.Context, in *iam.GetAccountAuthorizationDetailsRequest) (*iam.GetAccountAuthorizationDetailsResponse, error) {
	out := &iam.GetAccountAuthorizationDetailsResponse{UserDetailList: []iam.UserDetail{}, GroupDetailList: []iam.GroupDetail{}, RoleDetailList: []iam.RoleDetail{}, Policies: []iam.ManagedPolicyDetail{}}
	return out, a.d.Read(func(tx *identity.Tx) (err error) {
		var items []detail
		items, out.Marker, out.IsTruncated, err = page(allDetails(tx, in.Filter), in.Marker, in.MaxItems)
		for _, d := range items {
			switch {
			case d.user != nil:
				out.UserDetailList = append(out.UserDetailList, *d.user)
			case d.group != nil:
				out.GroupDetailList = append(out.GroupDetailList, *d.group)
			case d.role != nil:
				out.RoleDetailList = append(out.RoleDetailList, *d.role)
			default:
				out.Policies = append(out.Policies, *d.policy)
			}
		}
		return err
	})
}

func allDetails(tx *identity.Tx, filter []iam.EntityType) (out []detail) {
	wants := func(t iam.EntityType) bool { return len(filter) == 0 || slices.Contains(filter, t) }
	for _, u := range tx.Users.All() {
		if wants(iam.EntityTypeUser) {
			out = append(out, detail{user: &iam.UserDetail{UserName: u.Name, UserId: u.ID, Path: u.Path, Arn: arn(tx, "user", u.Path, u.Name), CreateDate: &awsapi.Timestamp{Time: u.Created},
				GroupList: append([]string{}, u.Groups...), UserPolicyList: inlineList(u.Inline), AttachedManagedPolicies: attachedList(tx, u.Attached, nil),
				Tags: tagList(u.Tags), PermissionsBoundary: boundaryShape(u.Boundary)}})
		}
	}
	for _, g := range tx.Groups.All() {
		if wants(iam.EntityTypeGroup) {
			out = append(out, detail{group: &iam.GroupDetail{GroupName: g.Name, GroupId: g.ID, Path: g.Path, Arn: arn(tx, "group", g.Path, g.Name), CreateDate: &awsapi.Timestamp{Time: g.Created},
				GroupPolicyList: inlineList(g.Inline), AttachedManagedPolicies: attachedList(tx, g.Attached, nil)}})
		}
	}
	for _, r := range tx.Roles.All() {
		if wants(iam.EntityTypeRole) {
			out = append(out, detail{role: &iam.RoleDetail{RoleName: r.Name, RoleId: r.ID, Path: r.Path, Arn: arn(tx, "role", r.Path, r.Name), CreateDate: &awsapi.Timestamp{Time: r.Created},
				AssumeRolePolicyDocument: encoded(tx.Trust(r)), InstanceProfileList: append([]iam.InstanceProfile{}, profilesOf(tx, r.Name)...), RolePolicyList: inlineList(r.Inline),
				AttachedManagedPolicies: attachedList(tx, r.Attached, nil), Tags: tagList(r.Tags), PermissionsBoundary: boundaryShape(r.Boundary)}})
		}
	}
	for _, arn := range tx.Policies.Names() {
		if identity.IsManaged(arn) && wants(iam.EntityTypeAWSManagedPolicy) || !identity.IsManaged(arn) && wants(iam.EntityTypeLocalManagedPolicy) {
			p, _ := tx.Policies.Get(arn)
			out = append(out, detail{policy: policyDetail(tx, arn, p)})
		}
	}
	return out
}

func policyDetail(tx *identity.Tx, arn string, p identity.Policy) *iam.ManagedPolicyDetail {
	s := policyShape(tx, arn, p)
	out := &iam.ManagedPolicyDetail{Arn: s.Arn, PolicyName: s.PolicyName, PolicyId: s.PolicyId, Path: s.Path, Description: s.Description, IsAttachable: s.IsAttachable,
		AttachmentCount: s.AttachmentCount, PermissionsBoundaryUsageCount: s.PermissionsBoundaryUsageCount, DefaultVersionId: s.DefaultVersionId, CreateDate: s.CreateDate, UpdateDate: s.UpdateDate}
	for _, v := range p.Versions {
		out.PolicyVersionList = append(out.PolicyVersionList, versionShape(p, v, true))
	}
	return out
}

// generateReport has nothing to do: the report is made when it is fetched.
func (a *api) generateReport(context.Context, *iam.GenerateCredentialReportRequest) (*iam.GenerateCredentialReportResponse, error) {
	return &iam.GenerateCredentialReportResponse{State: iam.ReportStateTypeComplete}, nil
}

// reportColumns are those of AWS.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_getting-report.html
var reportColumns = []string{"user", "arn", "user_creation_time", "password_enabled", "password_last_used", "password_last_changed", "password_next_rotation", "mfa_active",
	"access_key_1_active", "access_key_1_last_rotated", "access_key_1_last_used_date", "access_key_1_last_used_region", "access_key_1_last_used_service",
	"access_key_2_active", "access_key_2_last_rotated", "access_key_2_last_used_date", "access_key_2_last_used_region", "access_key_2_last_used_service",
	"cert_1_active", "cert_1_last_rotated", "cert_2_active", "cert_2_last_rotated"}

func (a *api) getReport(context.Context, *iam.GetCredentialReportRequest) (*iam.GetCredentialReportResponse, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	err := a.d.Read(func(tx *identity.Tx) error {
		rows := [][]string{reportColumns}
		for _, u := range tx.Users.All() {
			rows = append(rows, reportRow(tx, u))
		}
		return w.WriteAll(rows)
	})
	return &iam.GetCredentialReportResponse{Content: b.Bytes(), ReportFormat: iam.ReportFormatTypeTextCsv, GeneratedTime: &awsapi.Timestamp{Time: a.d.Now()}}, err
}

func reportRow(tx *identity.Tx, u identity.User) []string {
	row := append([]string{u.Name, arn(tx, "user", u.Path, u.Name), reportTime(u.Created)}, reportPassword(tx, u)...)
	row = append(row, "false")
	keys := keysOf(tx, u.Name)
	for i := range maxKeys {
		if i >= len(keys) {
			row = append(row, "false", "N/A", "N/A", "N/A", "N/A")
			continue
		}
		k := keys[i]
		row = append(row, strconv.FormatBool(k.Active), reportTime(k.Created))
		if k.Used.Time.IsZero() {
			row = append(row, "N/A", "N/A", "N/A")
		} else {
			row = append(row, reportTime(k.Used.Time), k.Used.Region, k.Used.Service)
		}
	}
	return append(row, "false", "N/A", "false", "N/A")
}

// reportPassword is whether there is a password, when it was used and set, and
// when it has to be set again.
func reportPassword(tx *identity.Tx, u identity.User) []string {
	row := []string{"false", "N/A", "N/A", "N/A"}
	if u.Login == nil {
		return row
	}
	row[0], row[1], row[2] = "true", "no_information", reportTime(u.Login.Changed)
	if !u.PasswordUsed.IsZero() {
		row[1] = reportTime(u.PasswordUsed)
	}
	if ends := tx.Account.Passwords.Ends(u.Login.Changed); !ends.IsZero() {
		row[3] = reportTime(ends)
	}
	return row
}

func reportTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05+00:00") }

func (a *api) createAlias(ctx context.Context, in *iam.CreateAccountAliasRequest) (*iam.CreateAccountAliasResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		tx.Account.Alias = in.AccountAlias
		return nil
	})
}

func (a *api) deleteAlias(ctx context.Context, in *iam.DeleteAccountAliasRequest) (*iam.DeleteAccountAliasResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		if tx.Account.Alias != in.AccountAlias {
			return iam.NoSuchEntityException.Errorf("The account alias %s does not exist.", in.AccountAlias)
		}
		tx.Account.Alias = ""
		return nil
	})
}

func (a *api) listAliases(context.Context, *iam.ListAccountAliasesRequest) (*iam.ListAccountAliasesResponse, error) {
	out := &iam.ListAccountAliasesResponse{AccountAliases: []string{}, IsTruncated: new(false)}
	if alias := a.d.Account().Alias; alias != "" {
		out.AccountAliases = append(out.AccountAliases, alias)
	}
	return out, nil
}
