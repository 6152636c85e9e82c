package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"rehost/control"
	"rehost/identity"
)

// errKeys says that there are keys that somebody should look at.
var errKeys = errors.New("access keys want to be looked at")

// KeysLsCmd is `rehost keys ls`. Its exit status is that of an error where a key
// wants to be looked at, so that a timer can call it.
type KeysLsCmd struct {
	OlderThan time.Duration `help:"A key that does not end by itself wants to be replaced after so long." default:"2160h"`
	Unused    time.Duration `help:"A key that does not end by itself wants to be deleted when it was not used for so long." default:"720h"`
	JSON      bool          `help:"As a JSON list."`
}

// A keyEntry is a key as it is listed.
type keyEntry struct {
	Key      string     `json:"accessKeyId"`
	User     string     `json:"user"`
	Status   string     `json:"status"` // Active, Inactive, Ended
	Created  time.Time  `json:"created"`
	LastUsed *time.Time `json:"lastUsed,omitempty"`
	Ends     *time.Time `json:"ends,omitempty"`
	Note     string     `json:"note,omitempty"`
}

// Run lists the keys.
func (c *KeysLsCmd) Run(ctx context.Context, out io.Writer, cli *CLI) error {
	lines, err := c.lines(ctx, cli.Keys.Data)
	if err != nil {
		return err
	}
	if err := c.print(out, lines); err != nil {
		return err
	}
	noted := 0
	for _, l := range lines {
		if l.Note != "" {
			noted++
		}
	}
	if noted > 0 {
		return fmt.Errorf("%w: %d of %d", errKeys, noted, len(lines))
	}
	return nil
}

// lines are the keys of the service in a directory.
func (c *KeysLsCmd) lines(ctx context.Context, data string) (lines []keyEntry, err error) {
	db, err := openDatabase(ctx, data)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	keys, err := identity.KeyStates(ctx, db.Identities())
	if err != nil {
		return nil, err
	}
	lines = []keyEntry{}
	for _, k := range keys {
		lines = append(lines, c.line(k, time.Now()))
	}
	return lines, nil
}

// openDatabase opens the database of a service, which may be running.
func openDatabase(ctx context.Context, data string) (*control.Database, error) {
	path := filepath.Join(data, "control.db")
	if _, err := os.Stat(path); err != nil {
		return nil, err // opening would make one
	}
	return control.OpenDatabase(ctx, path)
}

func (c *KeysLsCmd) line(k identity.KeyState, now time.Time) keyEntry {
	line := keyEntry{Key: k.ID, User: k.User, Status: "Inactive", Created: k.Created}
	if k.Active {
		line.Status = "Active"
	}
	seen := k.Created
	if !k.Used.Time.IsZero() {
		line.LastUsed, seen = &k.Used.Time, k.Used.Time
	}
	if !k.Ends.IsZero() {
		if line.Ends = &k.Ends; !now.Before(k.Ends) {
			line.Status = "Ended"
		}
		return line
	}
	var notes []string
	if age := now.Sub(k.Created); age > c.OlderThan {
		notes = append(notes, fmt.Sprintf("%d days old: replace it", int(age.Hours()/24)))
	}
	if idle := now.Sub(seen); idle > c.Unused {
		notes = append(notes, fmt.Sprintf("not used for %d days: delete it", int(idle.Hours()/24)))
	}
	line.Note = strings.Join(notes, "; ")
	return line
}

func (c *KeysLsCmd) print(out io.Writer, lines []keyEntry) error {
	if c.JSON {
		return json.NewEncoder(out).Encode(lines)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tUSER\tSTATUS\tCREATED\tLAST USED\tENDS\tNOTE")
	when := func(at *time.Time, none string) string {
		if at == nil {
			return none
		}
		return stamp(*at)
	}
	for _, l := range lines {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Key, l.User, l.Status, stamp(l.Created), when(l.LastUsed, "never"), when(l.Ends, "never"), l.Note)
	}
	return t.Flush()
}
