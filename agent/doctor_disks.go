package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"rehost/capture"
)

// disks looks at each that is or would be replicated.
func (d *doctor) disks() {
	all, err := allDevices(d.System)
	if errors.Is(err, ErrNoRoot) && (d.installed || len(all) > 0) {
		d.note(Warning, "disks", "name the disks with --devices; in a container, with --no-prompt --force-volumes", "%v", err)
	} else if err != nil {
		d.fails("disks", err, "")
	}
	if d.installed {
		d.chosen(all)
		return
	}
	for _, o := range all {
		d.disk(o)
	}
}

// chosen looks at those of the installation, wherever they are now.
func (d *doctor) chosen(all []capture.Device) {
	placed, err := locate(d.System, d.config.Disks, d.config.Disks)
	if err != nil {
		d.fails("disks", err, "")
		return
	}
	now, err := here(d.System, d.config.Disks)
	if err != nil {
		d.fails("disks", err, "")
		return
	}
	for _, o := range now {
		if slices.ContainsFunc(placed, func(p Device) bool { return p.Name == o.Name }) {
			d.disk(o)
		}
	}
	for _, o := range all {
		if !slices.ContainsFunc(placed, func(p Device) bool { return p.Name == o.Name }) {
			d.ok("disk "+o.Name, "%s, not replicated", humanBytes(o.Size))
		}
	}
}

func (d *doctor) disk(o capture.Device) {
	name := "disk " + o.Name
	switch {
	case o.Unfit != "":
		d.note(Fails, name, "detach it, or leave it out: list the others with --devices", "%s, cannot be replicated: %s", humanBytes(o.Size), o.Unfit)
		return
	case o.Size%512 != 0 || o.Size == 0:
		d.note(Fails, name, "leave it out: list the others with --devices", "its size is %d bytes, which is no disk's", o.Size)
		return
	}
	if err := readable(o.Name, o.Size); err != nil {
		if errors.Is(err, os.ErrPermission) {
			d.note(Fails, name, "root may, and in a container whoever was given the device (--device, or a devices cgroup that allows it)", "%s, may not be read by this process: %v", humanBytes(o.Size), err)
			return
		}
		d.note(Fails, name, "the kernel's log (dmesg) and smartctl -a "+o.Name+" say what is wrong with the disk", "%v", err)
		return
	}
	if o.Unmarked() {
		d.note(Warning, name, "give it a partition table, or its virtual hardware a serial number: names may change places at a reboot", "%s, known by nothing but its name", humanBytes(o.Size))
		return
	}
	d.ok(name, "%s, known by %s", humanBytes(o.Size), o.Serial)
}

// readable reads a little of a disk's begin, middle and end.
func readable(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for _, off := range []int64{0, size / 2 &^ 4095, max(0, size-int64(len(buf)))} {
		if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read at %d: %w", off, err)
		}
	}
	return nil
}
