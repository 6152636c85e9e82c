package api_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"

	"rehost/audit"
	"rehost/identity"
	"rehost/internal/fault"
)

// user makes a user with a key and what it may do, "" for nothing.
func (s *site) user(t *testing.T, name, document string) *sdk.Client {
	t.Helper()
	u := identity.User{Name: name}
	if document != "" {
		u.Inline = map[string]string{"p": document}
	}
	if err := s.directory.CreateUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	key, err := s.directory.CreateAccessKey(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.iam(key)
}

// report is a user's row of the credential report, by its columns.
func report(t *testing.T, c *sdk.Client, user string) map[string]string {
	t.Helper()
	got, err := c.GetCredentialReport(t.Context(), &sdk.GetCredentialReportInput{})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(got.Content)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row[0] == user {
			out := map[string]string{}
			for i, column := range rows[0] {
				out[column] = row[i]
			}
			return out
		}
	}
	t.Fatalf("%s is not in the report", user)
	return nil
}

// TestIAM_Login tells the life of a password at the API, and then looks for each
// password that was ever sent, right, wrong or refused, in the audit log, in the
// service's log and in the database.
func TestIAM_Login(t *testing.T) {
	log, auditDir := new(fault.Log), t.TempDir()
	records, err := audit.Open(auditDir, audit.Options{Keys: audit.Keys{make([]byte, 32)}, Region: region})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.log, s.audit = log, records
	s.now = s.now.Add(-2 * time.Minute) // requests are signed with the time that it is
	s.restart()
	ctx, c := t.Context(), s.iam(s.admin)
	bob := aws.String("bob")
	s.user(t, "bob", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"iam:ChangePassword","Resource":"arn:aws:iam::*:user/${aws:username}"}}`)
	s.user(t, "other", "")
	var sent []string
	password := func(text string) *string { sent = append(sent, text); return &text }

	get := func() (*sdk.GetLoginProfileOutput, error) {
		return c.GetLoginProfile(ctx, &sdk.GetLoginProfileInput{UserName: bob})
	}
	create := func(p *string, reset bool) error {
		_, err := c.CreateLoginProfile(ctx, &sdk.CreateLoginProfileInput{UserName: bob, Password: p, PasswordResetRequired: reset})
		return err
	}
	update := func(p *string, reset *bool) error {
		_, err := c.UpdateLoginProfile(ctx, &sdk.UpdateLoginProfileInput{UserName: bob, Password: p, PasswordResetRequired: reset})
		return err
	}
	change := func(c *sdk.Client, before, after *string) error {
		_, err := c.ChangePassword(ctx, &sdk.ChangePasswordInput{OldPassword: before, NewPassword: after})
		return err
	}
	_, err = get()
	want(t, "get before there is one", err, "NoSuchEntity")
	want(t, "update before there is one", update(password("Never0ne-of-bob"), nil), "NoSuchEntity")
	_, err = c.DeleteLoginProfile(ctx, &sdk.DeleteLoginProfileInput{UserName: bob})
	want(t, "delete before there is one", err, "NoSuchEntity")
	want(t, "without a password", create(nil, false), "ValidationError")
	want(t, "too weak", create(password("tooweakfor-bob"), false), "PasswordPolicyViolation")
	first := password("First0ne-of-bob")
	want(t, "create", create(first, true), "")
	want(t, "create again", create(password("Again0ne-of-bob"), false), "EntityAlreadyExists")
	got, err := get()
	if err != nil || *got.LoginProfile.UserName != "bob" || !got.LoginProfile.PasswordResetRequired || got.LoginProfile.CreateDate.Unix() != s.now.Unix() {
		t.Errorf("get: %+v, %v", got, err)
	}
	if r := report(t, c, "bob"); r["password_enabled"] != "true" || r["password_last_used"] != "no_information" || r["password_last_changed"] != s.now.UTC().Format("2006-01-02T15:04:05+00:00") || r["password_next_rotation"] != "N/A" {
		t.Errorf("report: %v", r)
	}
	if r := report(t, c, "other"); r["password_enabled"] != "false" || r["password_last_used"] != "N/A" || r["password_last_changed"] != "N/A" || r["password_next_rotation"] != "N/A" {
		t.Errorf("report of who has none: %v", r)
	}

	// The account's policy is set whole, and is not there at first.
	_, err = c.GetAccountPasswordPolicy(ctx, &sdk.GetAccountPasswordPolicyInput{})
	want(t, "no policy", err, "NoSuchEntity")
	_, err = c.DeleteAccountPasswordPolicy(ctx, &sdk.DeleteAccountPasswordPolicyInput{})
	want(t, "delete no policy", err, "NoSuchEntity")
	_, err = c.UpdateAccountPasswordPolicy(ctx, &sdk.UpdateAccountPasswordPolicyInput{MinimumPasswordLength: aws.Int32(5)})
	want(t, "too short", err, "ValidationError")
	_, err = c.UpdateAccountPasswordPolicy(ctx, &sdk.UpdateAccountPasswordPolicyInput{MinimumPasswordLength: aws.Int32(12), RequireSymbols: true})
	want(t, "set policy", err, "")
	_, err = c.UpdateAccountPasswordPolicy(ctx, &sdk.UpdateAccountPasswordPolicyInput{MaxPasswordAge: aws.Int32(90), PasswordReusePrevention: aws.Int32(2), RequireNumbers: true})
	want(t, "set another", err, "")
	s.restart()
	c, own, other := s.iam(s.admin), s.iam(keyOf(t, s, "bob")), s.iam(keyOf(t, s, "other"))
	rules, err := c.GetAccountPasswordPolicy(ctx, &sdk.GetAccountPasswordPolicyInput{})
	if err != nil {
		t.Fatal(err)
	}
	if p := rules.PasswordPolicy; *p.MinimumPasswordLength != 6 || p.RequireSymbols || !p.RequireNumbers || !p.ExpirePasswords || *p.MaxPasswordAge != 90 || *p.PasswordReusePrevention != 2 || p.AllowUsersToChangePassword {
		t.Errorf("policy: %+v", p)
	}

	// Bob changes it, and another cannot.
	s.now = s.now.Add(2 * time.Minute)
	second := password("Second0ne-of-bob")
	want(t, "with a wrong one", change(own, password("Wrong0ne-of-bob"), second), "AccessDenied")
	want(t, "without a right", change(other, first, second), "AccessDenied")
	want(t, "who has none", change(c, first, second), "NoSuchEntity")
	want(t, "weak", change(own, first, password("nonumber-of-bob")), "PasswordPolicyViolation")
	want(t, "the same", change(own, first, first), "PasswordPolicyViolation")
	want(t, "change", change(own, first, second), "")
	want(t, "reset", update(nil, aws.Bool(true)), "")
	if got, err = get(); err != nil || !got.LoginProfile.PasswordResetRequired || !got.LoginProfile.CreateDate.Before(s.now.Add(-time.Minute)) {
		t.Errorf("get: %+v, %v", got, err)
	}
	if in, err := s.directory.CheckPassword(ctx, "bob", identity.Secret(*second)); err != nil || !in.MustChange {
		t.Errorf("sign in: %+v, %v", in, err)
	}
	if r := report(t, c, "bob"); r["password_last_used"] != s.now.UTC().Format("2006-01-02T15:04:05+00:00") || r["password_next_rotation"] != s.now.UTC().AddDate(0, 0, 90).Format("2006-01-02T15:04:05+00:00") {
		t.Errorf("report: %v", r)
	}
	if u, err := c.GetUser(ctx, &sdk.GetUserInput{UserName: bob}); err != nil || u.User.PasswordLastUsed == nil || u.User.PasswordLastUsed.Unix() != s.now.Unix() {
		t.Errorf("get user: %+v, %v", u, err)
	}

	// A role has no password, and who has one is not deleted.
	role, err := s.directory.AssumeRoleAsService(ctx, identity.ServiceName, identity.AssumeRole{Role: identity.AgentRole, Session: "s-00000000000000001"})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "an agent", change(s.iam(role), first, second), "AccessDenied")
	if err := s.directory.Write(ctx, func(tx *identity.Tx) error {
		r, _ := tx.Roles.Get(identity.AgentRole)
		r.Attached = []string{identity.ManagedPolicy("AdministratorAccess")}
		tx.Roles.Put(r.Name, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want(t, "a role that may do anything", change(s.iam(role), first, second), "InvalidUserType")
	if err := errors.Join(deleteAll(ctx, c, "bob")...); code(err) != "DeleteConflict" {
		t.Errorf("delete user with a password: %v", err)
	}
	_, err = c.DeleteLoginProfile(ctx, &sdk.DeleteLoginProfileInput{UserName: bob})
	want(t, "delete", err, "")
	if _, err := s.directory.CheckPassword(ctx, "bob", identity.Secret(*second)); !errors.Is(err, identity.ErrPassword) {
		t.Errorf("sign in without a password: %v", err)
	}
	_, err = c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: bob})
	want(t, "delete user", err, "")
	_, err = c.DeleteAccountPasswordPolicy(ctx, &sdk.DeleteAccountPasswordPolicyInput{})
	want(t, "delete policy", err, "")

	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	kept := map[string][]byte{"the log": []byte(log.String())}
	for _, pattern := range []string{filepath.Join(auditDir, "*"), s.file + "*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			if kept[file], err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	if all := string(bytes.Join([][]byte{kept["the log"], readAll(kept, auditDir)}, nil)); !strings.Contains(all, "ChangePassword") || strings.Contains(all, "argon2id") {
		t.Error("the logs do not have the calls, or have hashes")
	}
	for where, text := range kept {
		for _, password := range sent {
			if bytes.Contains(text, []byte(password)) {
				t.Errorf("%s has the password %s", where, password)
			}
		}
	}
}

// keyOf makes a key anew for a user that has one.
func keyOf(t *testing.T, s *site, user string) identity.Credentials {
	t.Helper()
	key, err := s.directory.CreateAccessKey(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// deleteAll takes away all of a user but its password, and then the user.
func deleteAll(ctx context.Context, c *sdk.Client, user string) (errs []error) {
	keys, err := c.ListAccessKeys(ctx, &sdk.ListAccessKeysInput{UserName: &user})
	errs = append(errs, err)
	if err == nil {
		for _, k := range keys.AccessKeyMetadata {
			_, err := c.DeleteAccessKey(ctx, &sdk.DeleteAccessKeyInput{UserName: &user, AccessKeyId: k.AccessKeyId})
			errs = append(errs, err)
		}
	}
	_, err = c.DeleteUserPolicy(ctx, &sdk.DeleteUserPolicyInput{UserName: &user, PolicyName: aws.String("p")})
	errs = append(errs, err)
	_, err = c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: &user})
	return append(errs, err)
}

// readAll joins what is kept of the files in a folder.
func readAll(kept map[string][]byte, dir string) (out []byte) {
	for file, text := range kept {
		if filepath.Dir(file) == dir {
			out = append(out, text...)
		}
	}
	return out
}
