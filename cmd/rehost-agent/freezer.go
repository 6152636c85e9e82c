package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"time"

	"rehost/capture/freeze"
)

type freezerCommand struct {
	Socket string        `help:"Path of the socket to listen at. Default: the one that the service manager opened (LISTEN_FDS)." type:"path" placeholder:"PATH"`
	User   string        `help:"User, by name or number, who may ask besides root." placeholder:"USER"`
	Most   time.Duration `help:"The longest freeze, whatever is asked for; a minute at most." default:"2s"`
	Every  time.Duration `help:"Between the begins of two freezes at least." default:"10s"`

	FD       int  `name:"fd" hidden:""` // where a connection is, instead of a socket
	Watchdog bool `hidden:""`           // be the freezer's watchdog
}

// Help implements [kong.HelpProvider].
func (c *freezerCommand) Help() string {
	return "Freezes the file systems on replicated disks for a moment where programs write faster than the agent can read, and thaws them. " +
		"The agent asks for it; a second process thaws whatever happens to the agent and this one."
}

// Run implements the command.
func (c *freezerCommand) Run() error {
	if c.Watchdog {
		return freeze.Watch()
	}
	id, err := userID(c.User)
	if err != nil {
		return err
	}
	return freeze.Serve(freeze.Options{
		Socket: c.Socket, FD: c.FD, User: id, Most: c.Most, Every: c.Every,
		Watchdog: []string{"freezer", "--watchdog"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// ownFreezer is this program as a freezer of one connection.
func ownFreezer() []string {
	return []string{"/proc/self/exe", "freezer", "--fd", strconv.Itoa(freeze.ChildFD)}
}

func userID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	if id, err := strconv.Atoi(name); err == nil && id >= 0 {
		return id, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("--user: %w", err)
	}
	return strconv.Atoi(u.Uid)
}
