package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/capture"
)

// A Device is a whole disk of this machine. Its ID means nothing until the
// service has given one.
type Device = block.Disk

// ErrNoRoot says that the disk with the root file system was not found.
var ErrNoRoot = errors.New("the disk that holds the root file system was not found")

// allDevices are this machine's disks, the root disk first.
func allDevices(system capture.System) ([]capture.Device, error) {
	list, err := system.Discover()
	if err == nil && (len(list) == 0 || !list[0].Boot) {
		err = ErrNoRoot
	}
	return list, err
}

// selectDevices turns what was asked for into disks, each once, the root disk
// first. No paths means all disks. With force exactly the disks listed are
// taken, a loop device among them or not, and nothing is looked for: without
// the root disk in the list the first one counts as boot disk.
func selectDevices(system capture.System, paths []string, force bool) (chosen []Device, rootless bool, err error) {
	var list []capture.Device
	if !force {
		if list, err = allDevices(system); err != nil {
			return nil, false, err
		}
	}
	if len(paths) > 0 {
		named, err := system.Resolve(paths)
		if err != nil {
			return nil, false, err
		}
		if !force {
			named = append(list[:1:1], named...)
		}
		list = named
	}
	for _, d := range list {
		if slices.ContainsFunc(chosen, func(o Device) bool { return o.Name == d.Name }) {
			continue
		}
		if d.Unfit != "" {
			return nil, false, fmt.Errorf("%s: %w: %s", d.Name, capture.ErrBadDevice, d.Unfit)
		}
		for _, o := range chosen {
			if d.Serial != "" && o.Serial == d.Serial {
				return nil, false, &ambiguousError{o, []string{o.Name, d.Name}}
			}
		}
		chosen = append(chosen, d.Disk)
	}
	if len(chosen) == 0 {
		return nil, false, errors.New("no disks are listed: --force-volumes takes those of --devices and no others")
	}
	rootless = !slices.ContainsFunc(chosen, func(d Device) bool { return d.Boot })
	if rootless {
		chosen[0].Boot = true
	}
	const most = 60 // that the service takes
	if len(chosen) > most {
		return nil, false, fmt.Errorf("%d disks are selected, at most %d can be replicated: choose some with --devices", len(chosen), most)
	}
	return chosen, rootless, nil
}

// apart lists the disks that are not chosen and without which one that is makes no
// sense elsewhere, since LVM, md or device mapper join them.
func apart(system capture.System, chosen []Device) (out []string) {
	for _, d := range chosen {
		list, err := system.Resolve([]string{d.Name})
		if err != nil {
			continue
		}
		for _, name := range list[0].With {
			if !slices.ContainsFunc(chosen, func(o Device) bool { return o.Name == name }) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// A missingError is a disk under replication that this machine has no more.
type missingError struct{ disk block.Disk }

func (e *missingError) Error() string {
	return fmt.Sprintf("find disk %s: it is no longer attached", named(e.disk))
}

// A strangerError is a disk under replication in whose place there is another one.
type strangerError struct {
	disk  block.Disk
	found block.Disk // of its name
}

func (e *strangerError) Error() string {
	return fmt.Sprintf("find disk %s: %s is another disk now", named(e.disk), named(e.found))
}

// An ambiguousError is a disk that several have the identity of.
type ambiguousError struct {
	disk  block.Disk
	names []string
}

func (e *ambiguousError) Error() string {
	return fmt.Sprintf("find disk %s: its identity is that of %s alike", named(e.disk), strings.Join(e.names, " and "))
}

// named is a disk's name with its identity.
func named(d block.Disk) string {
	if d.Serial == "" {
		return d.Name + " (without an identity)"
	}
	return d.Name + " (" + d.Serial + ")"
}

// here are this machine's disks, those that only the installation named too.
func here(system capture.System, installed []Device) ([]capture.Device, error) {
	now, err := system.Discover()
	if err != nil {
		return nil, err
	}
	for _, d := range installed { // loop devices: whatever Discover leaves out
		if !slices.ContainsFunc(now, func(o capture.Device) bool { return o.Name == d.Name }) {
			if named, err := system.Resolve([]string{d.Name}); err == nil {
				now = append(now, named...)
			}
		}
	}
	return now, nil
}

// locate finds where the service's disks are now: by identity where a disk has
// one, since names may change at a boot, otherwise by name. It is sure, or it is
// an error: the contents of two disks must never be mixed. installed are the
// disks as the installation found them, which is how a loop device is known.
func locate(system capture.System, disks []block.Disk, installed []Device) ([]block.Disk, error) {
	now, err := here(system, installed)
	if err != nil {
		return nil, err
	}
	taken := map[string]block.Disk{}
	var out []block.Disk
	for _, d := range disks {
		o, err := find(now, d)
		if err != nil {
			return nil, err
		}
		if other, twice := taken[o.Name]; twice {
			return nil, &ambiguousError{o.Disk, []string{other.Name, d.Name}}
		}
		if o.Unfit != "" { // since the installation
			return nil, fmt.Errorf("find disk %s: %w: %s", named(d), capture.ErrBadDevice, o.Unfit)
		}
		taken[o.Name] = d
		if d.Name, d.Size = o.Name, o.Size; d.Serial == "" {
			d.Serial = o.Serial
		}
		out = append(out, d)
	}
	return out, nil
}

// find finds one disk. Without an identity it is the one of its name, unless
// hardware has come into it that would have told its own before.
func find(now []capture.Device, d block.Disk) (found capture.Device, err error) {
	var same []string
	var inPlace *capture.Device
	for _, o := range now {
		if o.Name == d.Name {
			inPlace = &o
		}
		if d.Serial != "" && o.Is(d.Serial) {
			found = o
			same = append(same, o.Name)
		}
	}
	switch {
	case len(same) == 1:
		return found, nil
	case len(same) > 1:
		return found, &ambiguousError{d, same}
	case inPlace == nil:
		return found, &missingError{d}
	case d.Serial == "" && inPlace.Unmarked():
		return *inPlace, nil
	}
	return found, &strangerError{d, inPlace.Disk}
}

// present finds the disks, as locate does. Those that are being tracked are the
// devices that the engine has open, whatever partition table was written to them
// since: no other device gets their numbers as long as they are open.
func (a *agent) present(disks []block.Disk) ([]block.Disk, error) {
	c, tracked := a.replication.progress()
	if !tracked {
		return locate(a.system, disks, a.config.Disks)
	}
	now, err := here(a.system, a.config.Disks)
	if err != nil {
		return nil, err
	}
	var out []block.Disk
	for _, d := range disks {
		i := slices.IndexFunc(c.Disks, func(o capture.DiskStatus) bool { return o.Disk.ID == d.ID })
		if i < 0 {
			return locate(a.system, disks, a.config.Disks)
		}
		open := c.Disks[i]
		i = slices.IndexFunc(now, func(o capture.Device) bool { return o.Major == open.Major && o.Minor == open.Minor })
		if i < 0 {
			return nil, &missingError{d}
		}
		d.Name, d.Size = now[i].Name, now[i].Size
		if d.Unmarked() && now[i].Unmarked() {
			d.Serial = now[i].Serial
		}
		out = append(out, d)
	}
	return out, nil
}

func bare(devices []capture.Device) (out []Device) {
	for _, d := range devices {
		out = append(out, d.Disk)
	}
	return out
}

func inventoryDisks(disks []Device) (out []formgn.Disk) {
	for _, d := range disks {
		w := formgn.Disk{DeviceName: d.Name, Bytes: d.Size, IsBootDisk: pointer(d.Boot)}
		if d.Serial != "" {
			w.Serial = pointer(d.Serial)
		}
		out = append(out, w)
	}
	return out
}

func replicationDisks(disks []block.Disk) (out []formgn.ReplicationDisk) {
	for _, d := range disks {
		w := formgn.ReplicationDisk{DiskID: int32(d.ID), DeviceName: d.Name, Bytes: d.Size, IsBootDisk: pointer(d.Boot)}
		if d.Serial != "" {
			w.Serial = pointer(d.Serial)
		}
		out = append(out, w)
	}
	return out
}

func blockDisks(disks []formgn.ReplicationDisk) (out []block.Disk, err error) {
	for _, d := range disks {
		if d.DiskID < 0 || d.DiskID > 1<<16-1 {
			return nil, fmt.Errorf("disk %s has the number %d", d.DeviceName, d.DiskID)
		}
		b := block.Disk{ID: block.DiskID(d.DiskID), Name: d.DeviceName, Size: d.Bytes, Boot: d.IsBootDisk != nil && *d.IsBootDisk}
		if d.Serial != nil {
			b.Serial = *d.Serial
		}
		out = append(out, b)
	}
	return out, nil
}
