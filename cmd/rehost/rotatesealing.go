package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"rehost/audit"
	"rehost/ca"
	"rehost/control"
	"rehost/identity"
)

// The sealing key is replaced in steps, each of which is one rename or one
// transaction. After a crash between any two of them the service starts, and the
// command goes on where it was:
//
//	one key ──add──> two ──secrets, authority, audit log sealed by the new one──> two ──retire──> one
//
// Between, what the old one has sealed is opened still: the sessions that live.

// errStillNeeded says that something can be opened by an old key only.
var errStillNeeded = errors.New("an older sealing key is needed still")

// KeysRotateSealingCmd is `rehost keys rotate-sealing`.
type KeysRotateSealingCmd struct {
	Retire  bool   `help:"Take the older keys away, too: at once where they may be known to others, else 36 hours later. Sessions from before the new key end then."`
	RootKey string `help:"File with the root's key, if it was exported (rehost ca export-root): it is sealed again, too." placeholder:"FILE"`

	at func(step string) // where a test ends the process; nil
}

// Help implements [kong.HelpProvider].
func (c *KeysRotateSealingCmd) Help() string {
	return `The service must be stopped; replication by a rehost replicator goes on meanwhile. Run no rehost ca beside it. The key file must be the one that the service reads (--sealing-key) and be writable.

Secrets of access keys, the authority's keys and the audit log need the new key only, from the first run on. Session tokens that the old one has sealed are taken until --retire: without it nobody notices, with it people call STS again, and agents and replication servers make new sessions with their next call. A copy of the directory from before needs the key file from before.`
}

// Run rotates, or goes on with a rotation.
func (c *KeysRotateSealingCmd) Run(ctx context.Context, out io.Writer, cli *CLI) (err error) {
	in := &cli.Keys
	if _, err := os.Stat(filepath.Join(in.Data, "control.db")); err != nil {
		return fmt.Errorf("no service has been started in this directory: %w", err)
	}
	unlock, err := lockDir(in.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	path := in.SealingKey
	if path == "" {
		path = filepath.Join(in.Data, sealingKeyFile)
	}
	key, err := identity.AddSealingKey(path)
	if err != nil {
		return err
	}
	c.did("add")
	account, err := c.reseal(ctx, in.Data, key)
	if err != nil {
		return err
	}
	if c.Retire {
		if err := c.needless(ctx, in.Data, key); err != nil {
			return err
		}
	}
	if err := c.record(in, account, key); err != nil {
		return err
	}
	if c.Retire {
		if err := identity.RetireSealingKeys(path); err != nil {
			return err
		}
		c.did("retire")
	}
	c.say(out, key.Names())
	return nil
}

func (c *KeysRotateSealingCmd) did(step string) {
	if c.at != nil {
		c.at(step)
	}
}

func (c *KeysRotateSealingCmd) say(out io.Writer, names []string) {
	if c.Retire {
		fmt.Fprintf(out, "Sealing key %s is the only one; %s is gone.\n", names[0], strings.Join(names[1:], ", "))
		return
	}
	fmt.Fprintf(out, "Sealing key %s seals everything; %s still opens sessions from before.\n", names[0], strings.Join(names[1:], ", "))
	fmt.Fprintln(out, "After 36 hours none of them lives: stop the service again and run rehost keys rotate-sealing --retire.")
}

// reseal has everything that is kept sealed by the newest key.
func (c *KeysRotateSealingCmd) reseal(ctx context.Context, data string, key *identity.SealingKey) (account string, err error) {
	db, err := control.OpenDatabase(ctx, filepath.Join(data, "control.db"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	directory, err := openDirectory(ctx, db, key, nil) // which seals secrets again
	if err != nil {
		return "", err
	}
	c.did("secrets")
	authority, err := openAuthority(data, key)
	if err == nil {
		err = authority.Reseal(c.RootKey)
	}
	if err != nil {
		return "", err
	}
	c.did("authority")
	return directory.Account().ID, nil
}

// record has the audit log go on under the newest key, and say so.
func (c *KeysRotateSealingCmd) record(in *KeysCmd, account string, key *identity.SealingKey) error {
	log, err := openAudit(in.Data, in.SealingKey, audit.Options{Account: account, Files: math.MaxInt}) // how many are kept is the service's to say
	if err != nil {
		return err
	}
	event := "SealingKeyAdded"
	if c.Retire {
		event = "SealingKeysRetired"
	}
	if err := errors.Join(log.Append(audit.Event(event, map[string]any{"newest": key.Names()[0], "older": key.Names()[1:]})), log.Close()); err != nil {
		return err
	}
	c.did("audit")
	return nil
}

// needless makes sure that whatever can be opened with all keys can be with the newest.
func (c *KeysRotateSealingCmd) needless(ctx context.Context, data string, key *identity.SealingKey) (err error) {
	newest := key.Newest()
	db, err := control.OpenDatabase(ctx, filepath.Join(data, "control.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	before, err := identity.Unreadable(ctx, db.Identities(), key)
	if err != nil {
		return err
	}
	after, err := identity.Unreadable(ctx, db.Identities(), newest)
	if err != nil {
		return err
	}
	if len(after) > len(before) {
		return fmt.Errorf("%w: for the secrets of %d access keys", errStillNeeded, len(after)-len(before))
	}
	authority, err := ca.Open(filepath.Join(data, "ca"), ca.Options{Sealer: newest.Authority()})
	if err == nil {
		err = authority.CheckKeys(c.RootKey)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errStillNeeded, err)
	}
	return nil
}
