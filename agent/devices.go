package agent

import (
	"errors"
	"fmt"
	"slices"

	"rehost/awsapi/formgn"
	"rehost/block"
	"rehost/capture"
)

// A Device is a whole disk of this machine. Its ID means nothing until the
// service has given one.
type Device = block.Disk

// ErrNoRoot says that the disk with the root file system was not found.
var ErrNoRoot = errors.New("the disk that holds the root file system was not found")

// selectDevices turns what was asked for into disks, each once, the root disk
// first. No paths means all disks. With force exactly the disks listed are
// taken, a loop device among them or not, and nothing is looked for: without
// the root disk in the list the first one counts as boot disk.
func selectDevices(system capture.System, paths []string, force bool) (chosen []Device, rootless bool, err error) {
	var list []capture.Device
	if !force {
		if list, err = system.Discover(); err != nil {
			return nil, false, err
		}
		if len(list) == 0 || !list[0].Boot {
			return nil, false, ErrNoRoot
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
		if !slices.ContainsFunc(chosen, func(o Device) bool { return o.Name == d.Name }) {
			chosen = append(chosen, d.Disk)
		}
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

// A missingError is a disk under replication that this machine has no more.
type missingError struct{ disk block.Disk }

func (e *missingError) Error() string {
	return fmt.Sprintf("find disk %s (%s): it is no longer attached; attach it again, or install again without it", e.disk.Name, e.disk.Serial)
}

// locate finds where the service's disks are now: by serial where a disk has
// one, since names may change at a boot, otherwise by name. installed are the
// disks as the installation found them, which is how a loop device is known.
func locate(system capture.System, disks []block.Disk, installed []Device) ([]block.Disk, error) {
	now, err := system.Discover()
	if err != nil {
		return nil, err
	}
	for _, d := range installed { // whatever Discover leaves out
		if !slices.ContainsFunc(now, func(o capture.Device) bool { return o.Name == d.Name }) {
			if named, err := system.Resolve([]string{d.Name}); err == nil {
				now = append(now, named...)
			}
		}
	}
	var out []block.Disk
	for _, d := range disks {
		i := slices.IndexFunc(now, func(o capture.Device) bool {
			if d.Serial != "" {
				return o.Serial == d.Serial
			}
			return o.Name == d.Name
		})
		if i < 0 {
			return nil, &missingError{d}
		}
		d.Name, d.Size = now[i].Name, now[i].Size
		out = append(out, d)
	}
	return out, nil
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
