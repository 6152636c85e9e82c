package api

import (
	"context"
	"errors"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/sts"
	"rehost/identity"
	"rehost/identity/oidc"
)

// assumeRoleWithWebIdentity is a call that nobody has signed. Whoever makes it
// learns which of its token's parts is wrong, and of the role only whether it
// is for the token.
func (s *tokens) assumeRoleWithWebIdentity(ctx context.Context, in *sts.AssumeRoleWithWebIdentityRequest) (*sts.AssumeRoleWithWebIdentityResponse, error) {
	if in.ProviderId != nil {
		return nil, awsapi.Errorf(awsapi.Validation, "ProviderId is for OAuth 2.0 access tokens, which are not taken: bring an OpenID Connect ID token without it")
	}
	token := string(in.WebIdentityToken)
	issuer, err := oidc.Issuer(token)
	if err != nil {
		return nil, webError(err)
	}
	provider, err := s.directory.ProviderOf(issuer)
	if err != nil {
		return nil, sts.InvalidIdentityTokenException.Errorf("No OpenIDConnect provider found in your account for %.255s", issuer)
	}
	web, err := s.verifier.Verify(ctx, provider, token)
	if err != nil {
		return nil, webError(err)
	}
	a := identity.AssumeRole{Role: in.RoleArn, Session: in.RoleSessionName, Duration: seconds(in.DurationSeconds), Policies: one(in.Policy), PolicyARNs: arns(in.PolicyArns)}
	session, err := s.directory.AssumeRoleWithWebIdentity(ctx, web, a, awsapi.Circumstances(ctx))
	if err != nil {
		return nil, sessionError(err)
	}
	return &sts.AssumeRoleWithWebIdentityResponse{AssumedRoleUser: &sts.AssumedRoleUser{Arn: session.ARN, AssumedRoleId: session.UserID}, Credentials: credentials(session),
		PackedPolicySize: packed(session), SourceIdentity: session.SourceIdentity, Audience: web.Audience, SubjectFromWebIdentityToken: web.Subject,
		Provider: strings.TrimPrefix(provider.URL, "https://")}, nil
}

// webError is the answer to a token that is not taken. What the provider has
// answered to us is for the audit log.
func webError(err error) error {
	switch {
	case errors.Is(err, oidc.ErrExpired):
		return sts.ExpiredTokenException.Errorf("Token expired: bring a new one")
	case errors.Is(err, oidc.ErrRejected):
		return sts.IDPRejectedClaimException.Errorf("%s", err)
	case errors.Is(err, oidc.ErrUnreachable):
		return awsapi.WithReason(sts.IDPCommunicationErrorException.Errorf("The identity provider cannot be asked for its keys: try again later"), err.Error())
	}
	return awsapi.WithReason(sts.InvalidIdentityTokenException.Errorf("The token is not signed by its issuer, or not of a form that is taken: RS256 or ES256"), err.Error())
}
