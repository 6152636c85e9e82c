package api

import (
	"context"
	"errors"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

func (a *api) registerLogins(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateLoginProfile, a.createLogin)
	awsapi.Handle(s, iam.GetLoginProfile, a.getLogin)
	awsapi.Handle(s, iam.UpdateLoginProfile, a.updateLogin)
	awsapi.Handle(s, iam.DeleteLoginProfile, a.deleteLogin)
	awsapi.Handle(s, iam.ChangePassword, a.changePassword)
	awsapi.Handle(s, iam.GetAccountPasswordPolicy, a.getPasswordPolicy)
	awsapi.Handle(s, iam.UpdateAccountPasswordPolicy, a.updatePasswordPolicy)
	awsapi.Handle(s, iam.DeleteAccountPasswordPolicy, a.deletePasswordPolicy)
}

// loginError is the answer to what the directory refuses.
func loginError(user string, err error) error {
	var e *identity.RequestError
	switch {
	case errors.As(err, &e):
		return iam.PasswordPolicyViolationException.Errorf("%s", e.Message)
	case errors.Is(err, identity.ErrNotFound):
		return noUser(user)
	case errors.Is(err, identity.ErrNoLogin):
		return noLogin(user)
	case errors.Is(err, identity.ErrExists):
		return iam.EntityAlreadyExistsException.Errorf("Login Profile for user %s already exists.", user)
	case errors.Is(err, identity.ErrPassword):
		return awsapi.Errorf(awsapi.AccessDenied, "The old password was incorrect.")
	case errors.Is(err, identity.ErrChanged):
		return iam.EntityTemporarilyUnmodifiableException.Errorf("Login Profile for User %s cannot be modified while login profile is being changed.", user)
	}
	return err
}

func noLogin(user string) error {
	return iam.NoSuchEntityException.Errorf("Login Profile for User %s cannot be found.", user)
}

func loginShape(user string, l *identity.Login) *iam.LoginProfile {
	return &iam.LoginProfile{UserName: user, CreateDate: awsapi.Timestamp{Time: l.Created}, PasswordResetRequired: &l.Reset}
}

// namedUser is the name of the user of a call, the caller's where it has none.
func (a *api) namedUser(ctx context.Context, name *string) (u identity.User, err error) {
	err = a.d.Read(func(tx *identity.Tx) error {
		u, err = user(ctx, tx, awsapi.Value(name))
		return err
	})
	return u, err
}

func (a *api) createLogin(ctx context.Context, in *iam.CreateLoginProfileRequest) (*iam.CreateLoginProfileResponse, error) {
	u, err := a.namedUser(ctx, in.UserName)
	if err != nil {
		return nil, err
	}
	if in.Password == nil { // optional in the model for root users of members of an organization
		return nil, awsapi.Errorf(awsapi.Validation, "Must specify password when creating a login profile")
	}
	login, err := a.d.CreateLogin(ctx, u.Name, identity.Secret(*in.Password), awsapi.Value(in.PasswordResetRequired))
	if err != nil {
		return nil, loginError(u.Name, err)
	}
	return &iam.CreateLoginProfileResponse{LoginProfile: loginShape(u.Name, &login)}, nil
}

func (a *api) getLogin(ctx context.Context, in *iam.GetLoginProfileRequest) (*iam.GetLoginProfileResponse, error) {
	u, err := a.namedUser(ctx, in.UserName)
	switch {
	case err != nil:
		return nil, err
	case u.Login == nil:
		return nil, noLogin(u.Name)
	}
	return &iam.GetLoginProfileResponse{LoginProfile: loginShape(u.Name, u.Login)}, nil
}

func (a *api) updateLogin(ctx context.Context, in *iam.UpdateLoginProfileRequest) (*iam.UpdateLoginProfileResponse, error) {
	if err := a.d.UpdateLogin(ctx, in.UserName, (*identity.Secret)(in.Password), in.PasswordResetRequired); err != nil {
		return nil, loginError(in.UserName, err)
	}
	return nil, nil
}

func (a *api) deleteLogin(ctx context.Context, in *iam.DeleteLoginProfileRequest) (*iam.DeleteLoginProfileResponse, error) {
	return nil, a.changeUser(ctx, awsapi.Value(in.UserName), func(_ *identity.Tx, u *identity.User) error {
		if u.Login == nil {
			return noLogin(u.Name)
		}
		u.Login = nil
		return nil
	})
}

// changePassword is for users only: nobody else has a password to change.
func (a *api) changePassword(ctx context.Context, in *iam.ChangePasswordRequest) (*iam.ChangePasswordResponse, error) {
	name := ownName(awsapi.CallerOf(ctx), "")
	if name == "" {
		return nil, iam.InvalidUserTypeException.Errorf("Only IAM Users can change their own password")
	}
	if err := a.d.ChangePassword(ctx, name, identity.Secret(in.OldPassword), identity.Secret(in.NewPassword)); err != nil {
		return nil, loginError(name, err)
	}
	return nil, nil
}

// noPasswordPolicy is what IAM says: the domain is the account.
func noPasswordPolicy(account string) error {
	return iam.NoSuchEntityException.Errorf("The Password Policy with domain name %s cannot be found.", account)
}

func (a *api) getPasswordPolicy(context.Context, *iam.GetAccountPasswordPolicyRequest) (*iam.GetAccountPasswordPolicyResponse, error) {
	account := a.d.Account()
	p := account.Passwords
	if p == nil {
		return nil, noPasswordPolicy(account.ID)
	}
	positive := func(n int) *int32 {
		if n == 0 {
			return nil
		}
		return new(int32(n))
	}
	return &iam.GetAccountPasswordPolicyResponse{PasswordPolicy: &iam.PasswordPolicy{MinimumPasswordLength: new(int32(p.MinLength)), RequireLowercaseCharacters: &p.Lower,
		RequireUppercaseCharacters: &p.Upper, RequireNumbers: &p.Number, RequireSymbols: &p.Symbol, AllowUsersToChangePassword: &p.UsersChange, ExpirePasswords: new(p.MaxAge > 0),
		MaxPasswordAge: positive(p.MaxAge), HardExpiry: &p.HardExpiry, PasswordReusePrevention: positive(p.Reuse)}}, nil
}

// minPassword is how long a password is if a policy does not say.
const minPassword = 6

// updatePasswordPolicy sets the whole policy: what a call leaves out goes back
// to what it was at first.
func (a *api) updatePasswordPolicy(ctx context.Context, in *iam.UpdateAccountPasswordPolicyRequest) (*iam.UpdateAccountPasswordPolicyResponse, error) {
	p := &identity.PasswordPolicy{MinLength: minPassword, Lower: awsapi.Value(in.RequireLowercaseCharacters), Upper: awsapi.Value(in.RequireUppercaseCharacters),
		Number: awsapi.Value(in.RequireNumbers), Symbol: awsapi.Value(in.RequireSymbols), MaxAge: int(awsapi.Value(in.MaxPasswordAge)), HardExpiry: awsapi.Value(in.HardExpiry),
		Reuse: int(awsapi.Value(in.PasswordReusePrevention)), UsersChange: awsapi.Value(in.AllowUsersToChangePassword)}
	if in.MinimumPasswordLength != nil {
		p.MinLength = int(*in.MinimumPasswordLength)
	}
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		tx.Account.Passwords = p
		return nil
	})
}

func (a *api) deletePasswordPolicy(ctx context.Context, _ *iam.DeleteAccountPasswordPolicyRequest) (*iam.DeleteAccountPasswordPolicyResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		if tx.Account.Passwords == nil {
			return noPasswordPolicy(tx.Account.ID)
		}
		tx.Account.Passwords = nil
		return nil
	})
}
