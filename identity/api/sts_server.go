package api

import (
	"context"
	"errors"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/identity/oidc"
)

// tokens answers the calls of AWS Security Token Service. AssumeRoleWithSAML and
// what was added for accounts of an organization are not built.
type tokens struct {
	directory *identity.Directory
	verifier  *oidc.Verifier // of web identities
}

func (s *tokens) register(server *awsapi.Server) {
	awsapi.Handle(server, sts.AssumeRole, s.assumeRole)
	awsapi.Handle(server, sts.AssumeRoleWithWebIdentity, s.assumeRoleWithWebIdentity)
	awsapi.Handle(server, sts.GetSessionToken, s.getSessionToken)
	awsapi.Handle(server, sts.GetFederationToken, s.getFederationToken)
	awsapi.Handle(server, sts.GetCallerIdentity, s.getCallerIdentity)
	awsapi.Handle(server, sts.GetAccessKeyInfo, s.getAccessKeyInfo)
	awsapi.Handle(server, sts.DecodeAuthorizationMessage, s.decodeAuthorizationMessage)
}

// sessionError is the answer to what the directory refuses. Those who are
// denied something by policies are answered by the server.
func sessionError(err error) error {
	var e *identity.RequestError
	if !errors.As(err, &e) {
		if errors.Is(err, identity.ErrUnknownKey) {
			return awsapi.Errorf(awsapi.UnrecognizedClient, "The security token included in the request is invalid.")
		}
		return err
	}
	switch e.Code {
	case identity.CodeMalformedPolicy:
		return sts.MalformedPolicyDocumentException.Errorf("%s", e.Message)
	case identity.CodePackedTooLarge:
		return sts.PackedPolicyTooLargeException.Errorf("%s", e.Message)
	case identity.CodeAccessDenied:
		return awsapi.Errorf(awsapi.AccessDenied, "%s", e.Message)
	}
	return awsapi.Errorf(awsapi.Validation, "%s", e.Message)
}

// withoutMFA refuses what would have to be checked with a device: there are none.
func withoutMFA(serial, code *string) error {
	if serial != nil || code != nil {
		return awsapi.Errorf(awsapi.Validation, "There are no MFA devices here: leave out SerialNumber and TokenCode")
	}
	return nil
}

func (s *tokens) assumeRole(ctx context.Context, in *sts.AssumeRoleRequest) (*sts.AssumeRoleResponse, error) {
	if err := withoutMFA(in.SerialNumber, in.TokenCode); err != nil {
		return nil, err
	}
	if len(in.ProvidedContexts) > 0 {
		return nil, awsapi.Errorf(awsapi.Validation, "There are no context providers here: leave out ProvidedContexts")
	}
	a := identity.AssumeRole{Role: in.RoleArn, Session: in.RoleSessionName, SourceIdentity: awsapi.Value(in.SourceIdentity), ExternalID: awsapi.Value(in.ExternalId),
		Duration: seconds(in.DurationSeconds), Policies: one(in.Policy), PolicyARNs: arns(in.PolicyArns), Tags: tags(in.Tags), Transitive: in.TransitiveTagKeys}
	session, err := s.directory.AssumeRole(ctx, awsapi.CallerOf(ctx).Principal, a, awsapi.Circumstances(ctx))
	if err != nil {
		return nil, sessionError(err)
	}
	return &sts.AssumeRoleResponse{AssumedRoleUser: &sts.AssumedRoleUser{Arn: session.ARN, AssumedRoleId: session.UserID}, Credentials: credentials(session),
		PackedPolicySize: packed(session), SourceIdentity: session.SourceIdentity}, nil
}

func (s *tokens) getSessionToken(ctx context.Context, in *sts.GetSessionTokenRequest) (*sts.GetSessionTokenResponse, error) {
	if err := withoutMFA(in.SerialNumber, in.TokenCode); err != nil {
		return nil, err
	}
	session, err := s.directory.GetSessionToken(ctx, awsapi.CallerOf(ctx).Principal, seconds(in.DurationSeconds), awsapi.Circumstances(ctx))
	if err != nil {
		return nil, sessionError(err)
	}
	return &sts.GetSessionTokenResponse{Credentials: credentials(session)}, nil
}

func (s *tokens) getFederationToken(ctx context.Context, in *sts.GetFederationTokenRequest) (*sts.GetFederationTokenResponse, error) {
	f := identity.Federation{Name: in.Name, Duration: seconds(in.DurationSeconds), Policies: one(in.Policy), PolicyARNs: arns(in.PolicyArns), Tags: tags(in.Tags)}
	session, err := s.directory.GetFederationToken(ctx, awsapi.CallerOf(ctx).Principal, f, awsapi.Circumstances(ctx))
	if err != nil {
		return nil, sessionError(err)
	}
	return &sts.GetFederationTokenResponse{FederatedUser: &sts.FederatedUser{Arn: session.ARN, FederatedUserId: session.UserID}, Credentials: credentials(session), PackedPolicySize: packed(session)}, nil
}

func (s *tokens) getCallerIdentity(ctx context.Context, _ *sts.GetCallerIdentityRequest) (*sts.GetCallerIdentityResponse, error) {
	p := awsapi.CallerOf(ctx).Principal
	return &sts.GetCallerIdentityResponse{Account: p.Account, Arn: p.ARN, UserId: p.UserID}, nil
}

func (s *tokens) getAccessKeyInfo(_ context.Context, in *sts.GetAccessKeyInfoRequest) (*sts.GetAccessKeyInfoResponse, error) {
	if !s.directory.HasAccessKey(in.AccessKeyId) {
		return nil, awsapi.Errorf(awsapi.Validation, "Access key %s is not one of this account's users", in.AccessKeyId)
	}
	return &sts.GetAccessKeyInfoResponse{Account: s.directory.Account().ID}, nil
}

func (s *tokens) decodeAuthorizationMessage(_ context.Context, in *sts.DecodeAuthorizationMessageRequest) (*sts.DecodeAuthorizationMessageResponse, error) {
	text, err := s.directory.DecodeRefusal(in.EncodedMessage)
	if err != nil {
		return nil, sts.InvalidAuthorizationMessageException.Errorf("Message is not valid")
	}
	return &sts.DecodeAuthorizationMessageResponse{DecodedMessage: text}, nil
}

func credentials(s identity.Session) *sts.Credentials {
	return &sts.Credentials{AccessKeyId: s.AccessKeyID, SecretAccessKey: sts.AccessKeySecretType(s.SecretAccessKey), SessionToken: string(s.SessionToken),
		Expiration: awsapi.Timestamp{Time: s.Expires.UTC()}}
}

// packed is absent when there is nothing to pack, as AWS has it.
func packed(s identity.Session) *int32 {
	if s.PackedSize == 0 {
		return nil
	}
	n := int32(s.PackedSize)
	return &n
}

func seconds(n *int32) time.Duration { return time.Duration(awsapi.Value(n)) * time.Second }

func one(text *string) []string {
	if text == nil {
		return nil
	}
	return []string{*text}
}

func arns(list []sts.PolicyDescriptorType) (out []string) {
	for _, p := range list {
		out = append(out, awsapi.Value(p.Arn))
	}
	return out
}

func tags(list []sts.Tag) (out []identity.Tag) {
	for _, t := range list {
		out = append(out, identity.Tag{Key: t.Key, Value: t.Value})
	}
	return out
}
