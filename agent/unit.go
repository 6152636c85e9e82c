package agent

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"rehost/privilege"
)

// units are those that packages ship.
//
//go:embed units
var units embed.FS

const (
	unitName      = "rehost-agent.service"
	freezerSocket = "rehost-agent-freezer.socket"
	freezerUnit   = "rehost-agent-freezer.service"
	upgradeUnit   = "rehost-agent-upgrade.service"
	unitProgram   = "/usr/local/lib/rehost-agent/rehost-agent" // in the units
)

// unit is a unit of the installation in a directory. With the defaults it is the one
// that packages ship.
func unit(name, program string, dir stateDir, c Config) (string, error) {
	text, err := units.ReadFile("units/" + name)
	if err != nil {
		return "", err
	}
	path, err := filepath.Abs(string(dir))
	if err != nil {
		return "", err
	}
	pins := filepath.Dir(dir.pins(c))
	for _, p := range []string{program, path, pins} { // the last one is the agent's word, and a line of a unit is root's
		if strings.ContainsFunc(p, unicode.IsControl) {
			return "", fmt.Errorf("make unit %s: %q is no path that can stand in it", name, p)
		}
	}
	var changes []string
	if program != unitProgram {
		changes = append(changes, unitProgram, systemdQuote(program))
	}
	if path != DefaultStateDir { // systemd makes only those in its own places
		changes = append(changes, "StateDirectory="+filepath.Base(DefaultStateDir)+"\n", "ReadWritePaths="+systemdQuote(path)+"\n",
			"ConditionPathExists="+DefaultStateDir, "ConditionPathExists="+strings.ReplaceAll(path, "%", "%%"), // which knows no quotes
			DefaultStateDir, systemdQuote(path))
	}
	if filepath.Dir(pins) != defaultBPFFS {
		changes = append(changes, " finish ", " finish --bpffs "+systemdQuote(filepath.Dir(pins))+" ", "BindPaths=-"+filepath.Join(defaultBPFFS, "rehost-agent")+":", "BindPaths=-"+systemdQuote(pins)+":")
	}
	if _, ok := (privilege.Accounts{}).Group(diskGroup); !ok {
		changes = append(changes, "SupplementaryGroups="+diskGroup+"\n", "")
	}
	return strings.NewReplacer(changes...).Replace(string(text)), nil
}

func systemdQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(s) + `"`
}

// unitDirs are where systemd looks for units.
type unitDirs struct {
	own      string // of this machine; what is in it comes first
	packaged string
}

var machineUnits = unitDirs{own: "/etc/systemd/system", packaged: "/usr/lib/systemd/system"}

// dropInFile is where in a unit's directory of drop-ins ours is.
const dropInFile = "rehost-agent.conf"

func (u unitDirs) file(name string) string   { return filepath.Join(u.own, name) }
func (u unitDirs) dropIn(name string) string { return filepath.Join(u.own, name+".d", dropInFile) }

// has is whether there is a unit of that name, by a package or an installation.
func (u unitDirs) has(name string) bool {
	for _, dir := range []string{u.own, u.packaged} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// put makes a unit say text: where a package has brought one, by a drop-in for what
// differs, which the versions of the two may too.
func (u unitDirs) put(ctx context.Context, name, text string) error {
	packaged, err := os.ReadFile(filepath.Join(u.packaged, name))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(u.removeDropIn(name), os.WriteFile(u.file(name), []byte(text), 0o644)) //nolint:gosec // everyone may read units
	}
	if err != nil {
		return err
	}
	if _, err := os.Lstat(u.file(name)); err == nil { // the package has come after the installation
		if err := errors.Join(systemctl(ctx, "disable", name), os.Remove(u.file(name))); err != nil { // the links lead to that file
			return err
		}
	}
	differs := dropIn(string(packaged), text)
	if differs == "" {
		return u.removeDropIn(name)
	}
	path := u.dropIn(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(differs), 0o644) //nolint:gosec // likewise
}

// remove takes away what put has written.
func (u unitDirs) remove(name string) error {
	return errors.Join(gone(u.file(name)), u.removeDropIn(name))
}

// removeDropIn leaves other drop-ins, which are somebody else's.
func (u unitDirs) removeDropIn(name string) error {
	err := gone(u.dropIn(name))
	_ = os.Remove(filepath.Dir(u.dropIn(name)))
	return err
}

// dropIn is what has to be said beside the unit base for it to say the same as want; ""
// is nothing. Each setting that differs is emptied first: lists grow otherwise. What
// comes of enabling, in [Install], is not looked at in drop-ins.
func dropIn(base, want string) string {
	is, order := settings(base)
	shall, wanted := settings(want)
	for _, s := range wanted {
		if _, ok := is[s]; !ok {
			order = append(order, s)
		}
	}
	var out strings.Builder
	section := ""
	for _, name := range []string{"Unit", "Service", "Socket"} {
		for _, s := range order {
			if s.section != name || slices.Equal(is[s], shall[s]) {
				continue
			}
			if section != name {
				section = name
				out.WriteString("[" + name + "]\n")
			}
			for _, value := range append([]string{""}, shall[s]...) {
				out.WriteString(s.name + "=" + value + "\n")
			}
		}
	}
	return out.String()
}

// A setting of a unit.
type setting struct{ section, name string }

// settings are what a unit says, and in which order the settings come first. Lines that
// go on in the next one there are none in units of ours.
func settings(text string) (values map[setting][]string, order []setting) {
	values = map[setting][]string{}
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		s := setting{section, name}
		if _, ok := values[s]; !ok {
			order = append(order, s)
		}
		values[s] = append(values[s], value)
	}
	return values, order
}
