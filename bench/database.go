package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// A database is a PostgreSQL server, as Debian's packages have it and with their
// settings, whose data is the file system of one device. It listens on a socket only.
type database struct {
	programs string // where they are
	dir      string // mounted
	parent   string
	as       *syscall.Credential
	server   *exec.Cmd
	unmount  func() error
}

// newDatabase makes a file system on a device, a database in it, and starts it. It must be stopped.
func newDatabase(ctx context.Context, device string) (_ *database, err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return nil, errors.New("there is no PostgreSQL below /usr/lib/postgresql")
	}
	d := &database{programs: filepath.Dir(slices.Max(found))}
	if d.as, err = accountOf("postgres"); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-F", device).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a file system on %s: %w: %s", device, err, out)
	}
	if d.parent, err = os.MkdirTemp("", "rehost-bench-"); err != nil { // where its user can go
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	d.dir = filepath.Join(d.parent, "mounted")
	if err := os.Chmod(d.parent, 0o711); err != nil {
		return nil, err
	}
	if d.unmount, err = mount(device, d.dir); err != nil {
		return nil, err
	}
	if err := os.Chown(d.dir, int(d.as.Uid), int(d.as.Gid)); err != nil {
		return nil, err
	}
	data := filepath.Join(d.dir, "data")
	if out, err := d.command(ctx, "initdb", "--auth=trust", "--pgdata="+data).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	server := d.command(ctx, "postgres", "-D", data, "-k", d.dir, "-c", "listen_addresses=", "-c", "log_min_messages=panic")
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGINT) } // or its children stay
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, err
	}
	d.server = server
	starting, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for d.command(starting, "pg_isready", "-q", "-h", d.dir).Run() != nil {
		if err := wait(starting, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for PostgreSQL: %w", err)
		}
	}
	if out, err := d.command(ctx, "pgbench", "-h", d.dir, "--initialize", "--quiet", "--scale=20", "postgres").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	return d, nil
}

// accountOf is a user to run programs as: PostgreSQL does not run as root.
func accountOf(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func (d *database) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.programs, program), args...)
	cmd.Dir, cmd.SysProcAttr = d.dir, &syscall.SysProcAttr{Credential: d.as}
	return cmd
}

// load is pgbench with four clients.
func (d *database) load(ctx context.Context, length time.Duration) *exec.Cmd {
	return d.command(ctx, "pgbench", "-h", d.dir, "--client=4", "--jobs=2", "--time="+strconv.Itoa(int(length.Seconds())), "postgres")
}

// stop ends the server and takes its file system away.
func (d *database) stop() (err error) {
	if d.server != nil {
		err = errors.Join(d.server.Process.Signal(syscall.SIGINT), d.server.Wait())
	}
	if d.unmount != nil {
		err = errors.Join(err, d.unmount())
	}
	return errors.Join(err, os.Remove(d.parent))
}

// databaseAge is the age of points while pgbench runs.
func (b *bench) databaseAge(ctx context.Context) (err error) {
	fmt.Println("recovery point age: pgbench on PostgreSQL on ext4 on a disk of 3 GiB,", ageWatch)
	image := filepath.Join(b.dir, "database.img")
	disk, err := attach(image, 3<<30)
	if err != nil {
		return err
	}
	defer os.Remove(image)
	defer disk.Close()
	d, err := newDatabase(ctx, disk.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	_, out, err := b.aged(ctx, "pgbench_point_age", disk.Path, d.load(ctx, ageWatch+2*time.Second))
	if err != nil {
		return err
	}
	if tps := regexp.MustCompile(`(?m)^tps = ([0-9.]+)`).FindStringSubmatch(out); tps != nil {
		if b.figures["pgbench_tps"], err = strconv.ParseFloat(tps[1], 64); err != nil {
			return err
		}
	}
	return nil
}
