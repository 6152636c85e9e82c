package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"rehost/audit"
	"rehost/control"
	"rehost/identity"
)

// installerLife is how long the installation key of the first start works.
const installerLife = 7 * 24 * time.Hour

// installerPrefix begins the names of the users that installation keys are of.
const installerPrefix = "installer-"

// KeysCmd is `rehost keys`.
type KeysCmd struct {
	Data       string `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	SealingKey string `help:"File with the sealing key; by default sealing.key in the directory." placeholder:"FILE"`

	Ls              KeysLsCmd              `cmd:"" help:"List the access keys with age, last use and end; also beside a running service. Exit status 1 if one wants to be looked at."`
	CreateInstaller KeysCreateInstallerCmd `cmd:"" help:"Make a key that can install agents, and nothing else, and that ends by itself."`
	RotateSealing   KeysRotateSealingCmd   `cmd:"" help:"Replace the sealing key, while the service is stopped."`
}

// KeysCreateInstallerCmd is `rehost keys create-installer`.
type KeysCreateInstallerCmd struct {
	Expires     time.Duration `help:"How long the key works." default:"24h"`
	ServerLimit int           `help:"How many source servers the key can install agents of; 0 is any number." placeholder:"N"`
	EndpointURL string        `help:"Where the running service is reached; by default the directory says it." placeholder:"URL"`
}

// Help implements [kong.HelpProvider].
func (c *KeysCreateInstallerCmd) Help() string {
	return `Where the service runs the key is made by its API (IAM), which the audit log tells: as who is named by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE and AWS_SHARED_CREDENTIALS_FILE, or else as the administrator whose key is in the directory. Where it is stopped the key is made in its database.`
}

// Run makes the key and prints it as the two variables that the installer reads.
func (c *KeysCreateInstallerCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	if c.Expires <= 0 || c.ServerLimit < 0 {
		return fmt.Errorf("%w: --expires must be in the future, and --server-limit a number of source servers", errUsage)
	}
	key, err := c.create(ctx, &cli.Keys)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY=%s\n", key.AccessKeyID, string(key.SecretAccessKey))
	return nil
}

func (c *KeysCreateInstallerCmd) create(ctx context.Context, in *KeysCmd) (identity.Credentials, error) {
	if c.EndpointURL != "" {
		return c.beside(ctx, in)
	}
	unlock, err := lockDir(in.Data)
	if errors.Is(err, errInUse) {
		return c.beside(ctx, in)
	}
	if err != nil {
		return identity.Credentials{}, err
	}
	key, err := c.alone(ctx, in)
	return key, errors.Join(err, unlock())
}

// beside makes the key by the API of the service that runs.
func (c *KeysCreateInstallerCmd) beside(ctx context.Context, in *KeysCmd) (identity.Credentials, error) {
	service, done, err := openBeside(in.Data, c.EndpointURL)
	if err != nil {
		return identity.Credentials{}, fmt.Errorf("the service runs in %s, and would have to be asked: %w", in.Data, err)
	}
	defer done()
	return createInstaller(ctx, service, c.Expires, c.ServerLimit)
}

// alone makes the key in the database, while no service runs.
func (c *KeysCreateInstallerCmd) alone(ctx context.Context, in *KeysCmd) (key identity.Credentials, err error) {
	db, err := control.OpenDatabase(ctx, filepath.Join(in.Data, "control.db"))
	if err != nil {
		return key, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	directory, err := openSealed(ctx, in.Data, in.SealingKey, db)
	if err != nil {
		return key, err
	}
	if directory.Account().ID == "" {
		return key, errors.New("the service has not been started in this directory yet: its first start makes an installation key itself")
	}
	log, err := openAudit(in.Data, in.SealingKey, audit.Options{Account: directory.Account().ID, Files: math.MaxInt}) // how many are kept is the service's to say
	if err != nil {
		return key, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if key, err = createInstaller(ctx, directory, c.Expires, c.ServerLimit); err != nil {
		return key, err
	}
	if err := log.Append(audit.Event("InstallerKeyCreated", map[string]any{"accessKeyId": key.AccessKeyID, "expires": time.Now().Add(c.Expires).UTC()})); err != nil {
		return key, errors.Join(err, directory.DeleteAccessKey(ctx, key.AccessKeyID)) // nobody has it
	}
	return key, nil
}

// createInstaller makes a user of its own for the key, who may install agents
// under a boundary that ends with the key's life, of so many source servers if
// that is not 0.
func createInstaller(ctx context.Context, in accounts, life time.Duration, servers int) (identity.Credentials, error) {
	now := time.Now().UTC()
	name := installerPrefix + now.Format("20060102T150405.000")
	boundary, err := in.CreatePolicy(ctx, identity.Policy{Name: name, Document: fmt.Sprintf(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":%q}}}]}`,
		now.Add(life).Format(time.RFC3339))})
	if err != nil {
		return identity.Credentials{}, fmt.Errorf("make the boundary of %s: %w", name, err)
	}
	policy := identity.ManagedPolicy("AWSApplicationMigrationAgentInstallationPolicy")
	var tags map[string]string
	if servers > 0 {
		tags = map[string]string{control.ServerLimitTag: strconv.Itoa(servers)}
	}
	if err := in.CreateUser(ctx, identity.User{Name: name, Attached: []string{policy}, Boundary: boundary, Tags: tags}); err != nil {
		return identity.Credentials{}, fmt.Errorf("make user %s: %w", name, err)
	}
	return in.CreateAccessKey(ctx, name)
}
