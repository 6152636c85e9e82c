package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"rehost/control"
	"rehost/identity"
)

// The first start makes an account, the administrator's key and one for
// installing agents, and writes both keys down. A secret is to be had once only,
// so until both files are known to be written, every start ends the keys that
// were made and makes new ones:
//
//	account ──> installer-credentials ──> credentials ──> setup-done

const (
	adminFile     = "credentials"
	installerFile = "installer-credentials"
	doneFile      = "setup-done"
)

// identities opens the accounts, and finishes the first start if that is not done.
func (c *ServeCmd) identities(ctx context.Context, db *control.Database, s *served, key *identity.SealingKey) (*identity.Directory, error) {
	directory, err := openDirectory(ctx, db, key, c.now)
	if err != nil {
		return nil, err
	}
	done := filepath.Join(c.Data, doneFile)
	if _, err := os.Stat(done); err == nil && directory.Account().ID != "" {
		return directory, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if s.first, err = c.firstKeys(ctx, directory); err != nil {
		return nil, fmt.Errorf("first start: %w", err)
	}
	return directory, writeFile(done, []byte("The keys of the first start have been written to the files beside this one.\n"), 0o600)
}

// firstKeys makes and writes the keys of the first start, and ends those that an
// interrupted one has made and nobody can have.
func (c *ServeCmd) firstKeys(ctx context.Context, directory *identity.Directory) (fresh bool, err error) {
	admin, err := directory.Bootstrap(ctx)
	if err != nil {
		return false, err
	}
	path := filepath.Join(c.Data, adminFile)
	if admin.AccessKeyID == "" {
		if writtenKey(path, directory.AccessKeys(identity.AdminUser)) {
			return false, nil
		}
		if err := endKeys(ctx, directory, identity.AdminUser); err != nil {
			return false, err
		}
		if admin, err = directory.CreateAccessKey(ctx, identity.AdminUser); err != nil {
			return false, err
		}
	}
	for _, name := range directory.Users() {
		if strings.HasPrefix(name, installerPrefix) {
			if err := endKeys(ctx, directory, name); err != nil {
				return false, err
			}
		}
	}
	installer, err := createInstaller(ctx, directory, installerLife, 0)
	if err != nil {
		return false, err
	}
	// The administrator's file comes last: with it the first start has its key.
	return true, errors.Join(
		writeCredentials(filepath.Join(c.Data, installerFile), installer, c.Region),
		writeCredentials(path, admin, c.Region))
}

func endKeys(ctx context.Context, directory *identity.Directory, user string) error {
	for _, k := range directory.AccessKeys(user) {
		if err := directory.DeleteAccessKey(ctx, k.ID); err != nil {
			return err
		}
	}
	return nil
}

var keyLine = regexp.MustCompile(`(?m)^aws_access_key_id = (\S+)$`)

// writtenKey is whether the credentials file holds one of the keys.
func writtenKey(path string, keys []identity.AccessKey) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	m := keyLine.FindSubmatch(text)
	return m != nil && slices.ContainsFunc(keys, func(k identity.AccessKey) bool { return k.ID == string(m[1]) })
}
