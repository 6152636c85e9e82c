package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"rehost/capture/freeze"
)

type freezerCommand struct {
	Socket string        `help:"Path of the socket to listen at. Default: the one that the service manager opened (LISTEN_FDS); with --try, where to ask, /run/rehost-agent/freezer.sock." type:"path" placeholder:"PATH"`
	User   string        `help:"User, by name or number, who may ask besides root." placeholder:"USER"`
	Most   time.Duration `help:"The longest freeze, whatever is asked for; a minute at most." default:"2s"`
	Every  time.Duration `help:"Between the begins of two freezes at least." default:"10s"`

	Try string `help:"Ask the freezer that runs to freeze what is mounted from this disk, and to thaw it at once; says how long that took." type:"path" placeholder:"DISK"`

	FD       int  `name:"fd" hidden:""` // where a connection is, instead of a socket
	Watchdog bool `hidden:""`           // be the freezer's watchdog

	UntilStdin bool `hidden:""` // end when the standard input does
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
	if c.Try != "" {
		return try(c.Try, c.Socket)
	}
	id, err := userID(c.User)
	if err != nil {
		return err
	}
	return freeze.Serve(freeze.Options{
		Socket: c.Socket, FD: c.FD, User: id, UntilStdin: c.UntilStdin, Most: c.Most, Every: c.Every,
		Watchdog: []string{"freezer", "--watchdog"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// try freezes the file systems on a disk for a moment, as the agent would that asks at a socket.
func try(disk, socket string) error {
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		return fmt.Errorf("try a freeze: %s: %w", disk, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("try a freeze: %s is no disk", disk)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := &freeze.Client{Socket: socket}
	if err := c.Prepare(ctx, []uint64{st.Rdev}); err != nil {
		return fmt.Errorf("try a freeze of %s: %w", disk, err)
	}
	if _, err := c.Freeze(ctx, time.Second); err != nil {
		return fmt.Errorf("try a freeze of %s: %w", disk, err)
	}
	took, err := c.Thaw()
	if err != nil {
		return fmt.Errorf("try a freeze of %s: %w", disk, err)
	}
	fmt.Printf("What is mounted from %s was frozen for %v, and thawed.\n", disk, took.Round(100*time.Microsecond))
	return nil
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
