package api

import (
	"context"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

// maxKeys is how many access keys a user may have: one in use and its successor.
const maxKeys = 2

func (a *api) registerKeys(s *awsapi.Server) {
	awsapi.Handle(s, iam.CreateAccessKey, a.createKey)
	awsapi.Handle(s, iam.ListAccessKeys, a.listKeys)
	awsapi.Handle(s, iam.UpdateAccessKey, a.updateKey)
	awsapi.Handle(s, iam.DeleteAccessKey, a.deleteKey)
	awsapi.Handle(s, iam.GetAccessKeyLastUsed, a.keyLastUsed)
}

// keysOf lists the keys of a user, oldest first.
func keysOf(tx *identity.Tx, user string) (out []identity.AccessKey) {
	for _, k := range tx.Keys.Each() {
		if k.User == user {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b identity.AccessKey) int {
		return 2*a.Created.Compare(b.Created) + strings.Compare(a.ID, b.ID)
	})
	return out
}

func keyStatus(k identity.AccessKey) iam.StatusType {
	if k.Active {
		return iam.StatusTypeActive
	}
	return iam.StatusTypeInactive
}

func (a *api) createKey(ctx context.Context, in *iam.CreateAccessKeyRequest) (out *iam.CreateAccessKeyResponse, err error) {
	err = a.d.Write(ctx, func(tx *identity.Tx) error {
		u, err := user(ctx, tx, awsapi.Value(in.UserName))
		if err != nil {
			return err
		}
		if len(keysOf(tx, u.Name)) >= maxKeys {
			return iam.LimitExceededException.Errorf("Cannot exceed quota for AccessKeysPerUser: %d", maxKeys)
		}
		k, secret := a.d.NewAccessKey(u.Name)
		tx.Keys.Put(k.ID, k)
		out = &iam.CreateAccessKeyResponse{AccessKey: &iam.AccessKey{UserName: u.Name, AccessKeyId: k.ID, Status: keyStatus(k),
			SecretAccessKey: iam.AccessKeySecretType(secret), CreateDate: &awsapi.Timestamp{Time: k.Created}}}
		return nil
	})
	return out, err
}

func (a *api) listKeys(ctx context.Context, in *iam.ListAccessKeysRequest) (*iam.ListAccessKeysResponse, error) {
	out := new(iam.ListAccessKeysResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		u, err := user(ctx, tx, awsapi.Value(in.UserName))
		if err != nil {
			return err
		}
		var all []iam.AccessKeyMetadata
		for _, k := range keysOf(tx, u.Name) {
			all = append(all, iam.AccessKeyMetadata{UserName: u.Name, AccessKeyId: k.ID, Status: keyStatus(k), CreateDate: &awsapi.Timestamp{Time: k.Created}})
		}
		out.AccessKeyMetadata, out.Marker, out.IsTruncated, err = page(all, in.Marker, in.MaxItems)
		return err
	})
}

// key finds a key of a user. The caller may act on a user's keys; a key of
// another is not to be had by its id. The user that authorization looked at is
// the named one, else the caller.
func key(ctx context.Context, tx *identity.Tx, userName *string, id string) (identity.AccessKey, error) {
	k, ok := tx.Keys.Get(id)
	u, err := user(ctx, tx, awsapi.Value(userName))
	if err != nil {
		return k, err
	}
	if !ok || k.User != u.Name {
		return k, iam.NoSuchEntityException.Errorf("The Access Key with id %s cannot be found.", id)
	}
	return k, nil
}

func (a *api) updateKey(ctx context.Context, in *iam.UpdateAccessKeyRequest) (*iam.UpdateAccessKeyResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		k, err := key(ctx, tx, in.UserName, in.AccessKeyId)
		if err != nil {
			return err
		}
		k.Active = in.Status == iam.StatusTypeActive
		tx.Keys.Put(k.ID, k)
		return nil
	})
}

func (a *api) deleteKey(ctx context.Context, in *iam.DeleteAccessKeyRequest) (*iam.DeleteAccessKeyResponse, error) {
	return nil, a.d.Write(ctx, func(tx *identity.Tx) error {
		k, err := key(ctx, tx, in.UserName, in.AccessKeyId)
		if err != nil {
			return err
		}
		tx.Keys.Delete(k.ID)
		return nil
	})
}

func (a *api) keyLastUsed(_ context.Context, in *iam.GetAccessKeyLastUsedRequest) (*iam.GetAccessKeyLastUsedResponse, error) {
	out := new(iam.GetAccessKeyLastUsedResponse)
	return out, a.d.Read(func(tx *identity.Tx) error {
		k, ok := tx.Keys.Get(in.AccessKeyId)
		if !ok {
			return iam.NoSuchEntityException.Errorf("The Access Key with id %s cannot be found.", in.AccessKeyId)
		}
		out.UserName, out.AccessKeyLastUsed = k.User, &iam.AccessKeyLastUsed{ServiceName: "N/A", Region: "N/A"}
		if !k.Used.Time.IsZero() {
			out.AccessKeyLastUsed = &iam.AccessKeyLastUsed{LastUsedDate: &awsapi.Timestamp{Time: k.Used.Time}, ServiceName: k.Used.Service, Region: k.Used.Region}
		}
		return nil
	})
}
