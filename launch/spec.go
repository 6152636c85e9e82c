package launch

import (
	"fmt"
	"path/filepath"
	"regexp"
	"time"
)

// BootMode is the firmware interface that the disks were installed for, in the
// words of MGN's bootMode.
type BootMode string

// The boot modes.
const (
	LegacyBIOS BootMode = "LEGACY_BIOS"
	UEFI       BootMode = "UEFI"
)

// DiskBus is how disks are attached.
type DiskBus string

// The disk buses. The zero value means [Virtio].
const (
	Virtio DiskBus = "virtio"
	NVMe   DiskBus = "nvme"
)

// A Disk is served read-only over NBD; what the machine writes goes to a layer
// of its own.
type Disk struct {
	Name   string `json:"name"`   // unique within the spec; becomes part of file names
	Socket string `json:"socket"` // absolute path of the NBD server's unix socket
	Export string `json:"export"` // export name on that server
	Size   int64  `json:"size"`   // bytes, a multiple of 512
	Boot   bool   `json:"boot"`   // exactly one disk of a spec
}

// NetworkMode is what an instance can reach.
type NetworkMode string

// The network modes. The zero value means [Isolated].
const (
	Isolated NetworkMode = "isolated" // nothing; only the forwarded ports lead in
	Outbound NetworkMode = "outbound" // whatever the host can reach, by address translation
)

// A Forward leads a TCP port on the host's 127.0.0.1 to one of the instance.
type Forward struct {
	HostPort  int `json:"hostPort"` // 0 lets the target choose; see Instance.Forwards
	GuestPort int `json:"guestPort"`
}

// Network is the network of an instance.
type Network struct {
	Mode     NetworkMode `json:"mode,omitempty"`
	Forwards []Forward   `json:"forwards,omitempty"`
}

// FirstBootCheck is how the first boot is judged by the serial console.
type FirstBootCheck struct {
	// Success and Failure are regular expressions that are looked for besides the
	// target's own, line by line. Empty means none.
	Success string `json:"success,omitempty"`
	Failure string `json:"failure,omitempty"`
	// Timeout ends the waiting with UNKNOWN; 0 means the target's default.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// A Spec says what to launch.
type Spec struct {
	ID           string         `json:"id"`   // unique at the target; letters, digits, '.', '_' and '-'
	Name         string         `json:"name"` // for people; not interpreted
	BootMode     BootMode       `json:"bootMode"`
	CPUs         int            `json:"cpus"`
	MemoryMiB    int            `json:"memoryMiB"`
	Disks        []Disk         `json:"disks"`
	DiskBus      DiskBus        `json:"diskBus,omitempty"`
	Network      Network        `json:"network"`
	HydrateDisks bool           `json:"hydrateDisks"` // copy the disks in the background until the instance stands alone
	FirstBoot    FirstBootCheck `json:"firstBoot"`
}

// Limits of a spec.
const (
	MaxDisks     = 24 // slots on the machine's root bus, less those of other devices
	MaxCPUs      = 256
	MinMemoryMiB = 64
	MaxMemoryMiB = 4 << 20
	MaxForwards  = 64
)

var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ValidID reports whether id may name an instance or a disk: it begins with a
// letter or digit, has at most 63 characters and is safe as a file name.
func ValidID(id string) bool { return identifier.MatchString(id) }

// Validate lists the rules of a spec; every error wraps [ErrBadSpec].
func (s Spec) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrBadSpec, fmt.Sprintf(format, args...))
	}
	switch {
	case !ValidID(s.ID):
		return bad("id %q", s.ID)
	case len(s.Name) > 256:
		return bad("name of %d bytes", len(s.Name))
	case s.BootMode != LegacyBIOS && s.BootMode != UEFI:
		return bad("boot mode %q", s.BootMode)
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return bad("%d CPUs", s.CPUs)
	case s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB:
		return bad("%d MiB of memory", s.MemoryMiB)
	case s.DiskBus != "" && s.DiskBus != Virtio && s.DiskBus != NVMe:
		return bad("disk bus %q", s.DiskBus)
	case len(s.Disks) == 0 || len(s.Disks) > MaxDisks:
		return bad("%d disks, where 1 to %d are allowed", len(s.Disks), MaxDisks)
	case s.FirstBoot.Timeout < 0:
		return bad("first boot timeout %v", s.FirstBoot.Timeout)
	}
	names, boot := map[string]bool{}, 0
	for _, d := range s.Disks {
		if err := d.validate(); err != nil {
			return bad("%v", err)
		}
		if names[d.Name] {
			return bad("two disks named %s", d.Name)
		}
		names[d.Name] = true
		if d.Boot {
			boot++
		}
	}
	if boot != 1 {
		return bad("%d boot disks, where there must be one", boot)
	}
	for what, expr := range map[string]string{"success": s.FirstBoot.Success, "failure": s.FirstBoot.Failure} {
		if _, err := regexp.Compile(expr); err != nil {
			return bad("first boot %s pattern: %v", what, err)
		}
	}
	return s.Network.validate(bad)
}

func (d Disk) validate() error {
	switch {
	case !ValidID(d.Name):
		return fmt.Errorf("disk name %q", d.Name)
	case len(d.Socket) > 107:
		return fmt.Errorf("disk %s: path of the socket has %d bytes, where the system allows 107", d.Name, len(d.Socket))
	case !filepath.IsAbs(d.Socket):
		return fmt.Errorf("disk %s: socket %q is not an absolute path", d.Name, d.Socket)
	case len(d.Export) > 4096:
		return fmt.Errorf("disk %s: export name of %d bytes", d.Name, len(d.Export))
	case d.Size <= 0 || d.Size%512 != 0:
		return fmt.Errorf("disk %s: size %d is not a positive multiple of 512", d.Name, d.Size)
	}
	return nil
}

func (n Network) validate(bad func(string, ...any) error) error {
	if n.Mode != "" && n.Mode != Isolated && n.Mode != Outbound {
		return bad("network mode %q", n.Mode)
	}
	if len(n.Forwards) > MaxForwards {
		return bad("%d forwarded ports", len(n.Forwards))
	}
	guest, host := map[int]bool{}, map[int]bool{}
	for _, f := range n.Forwards {
		if f.GuestPort < 1 || f.GuestPort > 65535 || f.HostPort < 0 || f.HostPort > 65535 {
			return bad("forward of port %d to %d", f.HostPort, f.GuestPort)
		}
		if guest[f.GuestPort] || f.HostPort != 0 && host[f.HostPort] {
			return bad("port %d or %d is forwarded twice", f.HostPort, f.GuestPort)
		}
		guest[f.GuestPort], host[f.HostPort] = true, true
	}
	return nil
}
