package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"
	"github.com/alecthomas/kong"

	"rehost/release"
)

// nfpm makes the packages. It is a program of its own, which nothing here is
// linked with.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

type command struct {
	Version string   `help:"Version of the release, like 1.2.3." required:""`
	Out     string   `help:"Directory of the release; it is made anew." required:"" placeholder:"DIR"`
	Arch    []string `help:"Architectures, as Go names them." default:"amd64,arm64"`
	Key     string   `help:"Secret key of minisign that signs the release; one that is not there is made, without a password. $MINISIGN_PASSWORD opens one that has one." placeholder:"FILE"`
	Believe []string `help:"Public keys that the programs believe besides: those of releases to come." placeholder:"KEY"`
	Only    []string `help:"Programs to make, of rehost and rehost-agent." default:"rehost-agent,rehost" placeholder:"NAME"`
	Package []string `help:"Kinds of packages to make of them." default:"deb,rpm" placeholder:"KIND"`

	believed string // public keys, with spaces between
	epoch    time.Time
}

func main() {
	var c command
	k := kong.Parse(&c, kong.Description("Makes a release of Rehost."))
	k.FatalIfErrorf(c.Run(context.Background()))
}

// Run makes the release.
func (c *command) Run(ctx context.Context) error {
	version, err := release.ParseVersion(c.Version)
	if err != nil {
		return err
	}
	private, err := c.keys()
	if err != nil {
		return err
	}
	if c.epoch, err = epoch(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Out); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	for _, arch := range c.Arch {
		if err := c.programs(ctx, arch); err != nil {
			return err
		}
	}
	if len(c.Package) > 0 {
		if err := c.packages(ctx, private, version); err != nil {
			return err
		}
	}
	return c.sign(c.Out, private, version)
}

// keys reads the secret key, or makes it, and says whom the programs believe.
func (c *command) keys() (private *minisign.PrivateKey, err error) {
	believed := c.Believe
	if c.Key != "" {
		k, err := loadKey(c.Key, os.Getenv("MINISIGN_PASSWORD"))
		if err != nil {
			return nil, err
		}
		private, believed = &k, append([]string{k.Public().(minisign.PublicKey).String()}, believed...)
	}
	c.believed = strings.Join(believed, " ")
	_, err = release.ParseKeys(c.believed)
	return private, err
}

// loadKey reads a secret key; where there is none it makes one.
func loadKey(path, password string) (k minisign.PrivateKey, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, k, err = minisign.GenerateKey(nil); err != nil {
			return k, err
		}
		if text, err = k.MarshalText(); err != nil {
			return k, err
		}
		public := []byte(k.Public().(minisign.PublicKey).String() + "\n")
		return k, errors.Join(os.WriteFile(path, text, 0o600), os.WriteFile(path+".pub", public, 0o644))
	}
	if err != nil {
		return k, err
	}
	if minisign.IsEncrypted(text) {
		k, err = minisign.DecryptKey(password, text)
	} else {
		err = k.UnmarshalText(text)
	}
	if err != nil {
		err = fmt.Errorf("read key %s: %w", path, err)
	}
	return k, err
}

// epoch is when what is built was made, for all that it can be said of:
// SOURCE_DATE_EPOCH, or else when the sources were committed.
func epoch(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("when were these sources made? Set SOURCE_DATE_EPOCH: %w", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// programs builds the agent and the service for an architecture, static.
func (c *command) programs(ctx context.Context, arch string) error {
	for name, file := range map[string]string{"rehost-agent": release.Agent(arch), "rehost": "rehost-linux-" + arch} {
		if !slices.Contains(c.Only, name) {
			continue
		}
		flags := fmt.Sprintf("-s -w -X rehost/agent.Version=%s -X 'rehost/release.keys=%s'", c.Version, c.believed)
		if err := run(ctx, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch},
			"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", filepath.Join(c.Out, file), "./cmd/"+name); err != nil {
			return fmt.Errorf("build %s: %w", file, err)
		}
	}
	return nil
}

// packages makes those of each program. That of the service has the agents of all
// architectures in it, if they are made, with a list and a signature of their own.
func (c *command) packages(ctx context.Context, private *minisign.PrivateKey, version release.Version) error {
	stage, err := os.MkdirTemp("", "rehost-packaging-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	agents := filepath.Join(stage, "agents")
	if err := os.Mkdir(agents, 0o755); err != nil {
		return err
	}
	for _, arch := range c.Arch {
		if !slices.Contains(c.Only, "rehost-agent") {
			break
		}
		if err := copyFile(filepath.Join(agents, release.Agent(arch)), filepath.Join(c.Out, release.Agent(arch))); err != nil {
			return err
		}
	}
	if err := c.sign(agents, private, version); err != nil {
		return err
	}
	for _, arch := range c.Arch {
		for _, name := range c.Only {
			for _, format := range c.Package {
				if err := c.pack(ctx, name, arch, format, stage); err != nil {
					return fmt.Errorf("make the %s of %s for %s: %w", format, name, arch, err)
				}
			}
		}
	}
	return nil
}

// pack makes one package. What goes into it besides stands in stage already.
func (c *command) pack(ctx context.Context, name, arch, format, stage string) error {
	program := map[string]string{"rehost-agent": release.Agent(arch), "rehost": "rehost-linux-" + arch}[name]
	for to, from := range map[string]string{name: filepath.Join(c.Out, program), "LICENSE": "LICENSE", "NOTICE": "NOTICE"} {
		if err := errors.Join(os.RemoveAll(filepath.Join(stage, to)), copyFile(filepath.Join(stage, to), from)); err != nil {
			return err
		}
	}
	units, err := filepath.Glob(map[string]string{"rehost-agent": "agent/units/*", "rehost": "cmd/rehost/units/*"}[name])
	if err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(stage, "units")), os.Mkdir(filepath.Join(stage, "units"), 0o755)); err != nil {
		return err
	}
	for _, unit := range units {
		if err := copyFile(filepath.Join(stage, "units", filepath.Base(unit)), unit); err != nil {
			return err
		}
	}
	// What is packed is as old as the sources, and so the same whenever it is packed.
	err = filepath.WalkDir(stage, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, c.epoch, c.epoch)) //nolint:gosec // nobody else can enter it
	})
	if err != nil {
		return err
	}
	env := []string{"ARCH=" + arch, "VERSION=" + c.Version, "STAGE=" + stage, "SOURCE_DATE_EPOCH=" + strconv.FormatInt(c.epoch.Unix(), 10)}
	return run(ctx, env, "go", "run", nfpm, "package", "--config", "packaging/"+name+".yaml", "--packager", format, "--target", c.Out)
}

// sign writes the list of the sums of a directory's files, and its signature.
func (c *command) sign(dir string, private *minisign.PrivateKey, version release.Version) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var list []byte
	for _, e := range entries {
		sum, err := sumOf(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		list = fmt.Appendf(list, "%s  %s\n", sum, e.Name())
	}
	if err := os.WriteFile(filepath.Join(dir, release.SumsFile), list, 0o644); err != nil {
		return err
	}
	if private == nil {
		return nil
	}
	signature := release.Sign(*private, version, list)
	if _, err := release.Open(list, signature, []minisign.PublicKey{private.Public().(minisign.PublicKey)}); err != nil {
		return err // what nobody will take is not written
	}
	return os.WriteFile(filepath.Join(dir, release.SignatureFile), signature, 0o644)
}

func sumOf(path string) (release.Sum, error) {
	f, err := os.Open(path)
	if err != nil {
		return release.Sum{}, err
	}
	defer f.Close()
	return release.SumOf(f)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// run runs a program in this environment with more in it.
func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = slices.Concat(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}
