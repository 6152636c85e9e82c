package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rehost/awsapi/formgn"
)

// A Machine is where the agent asks who and what it runs on.
type Machine struct {
	// Root is the directory under which /proc, /sys and /etc are read; "" is /.
	Root string
}

// sysDMI is where the kernel shows what the firmware says of the machine.
const sysDMI = "/sys/class/dmi/id"

// ErrNoIdentity says that a machine has nothing to tell it from its copies.
var ErrNoIdentity = errors.New("this machine has neither a DMI product UUID nor an /etc/machine-id")

// Boards of vendors who gave all of them the same UUID, or none.
var emptyUUIDs = []string{
	"00000000-0000-0000-0000-000000000000",
	"ffffffff-ffff-ffff-ffff-ffffffffffff",
	"03000200-0400-0500-0006-000700080009",
	"00020003-0004-0005-0006-000700080009",
	"12345678-1234-5678-90ab-cddeefaabbcc",
	"fefefefe-fefe-fefe-fefe-fefefefefefe",
}

func (m Machine) read(path string) string {
	text, err := os.ReadFile(filepath.Join("/", m.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// ID is what a machine has for itself and a copy of its disks, started
// elsewhere, has not: the UUID that its firmware reports (dmi:...), or where
// there is none the id of its operating system (machine-id:...), which a copy
// shares until it is given another.
func (m Machine) ID() (string, error) {
	uuid, err := m.productUUID()
	if err != nil {
		return "", err
	}
	if len(uuid) == 36 && !slices.Contains(emptyUUIDs, uuid) {
		return "dmi:" + uuid, nil
	}
	if id := m.read("etc/machine-id"); len(id) >= 32 {
		return "machine-id:" + strings.ToLower(id), nil
	}
	return "", ErrNoIdentity
}

// productUUID is "" where the firmware reports none.
func (m Machine) productUUID() (string, error) {
	text, err := os.ReadFile(filepath.Join("/", m.Root, sysDMI, uuidFile))
	if errors.Is(err, fs.ErrPermission) { // root left it where the agent can read it
		if text, err = os.ReadFile(filepath.Join("/", m.Root, runDir, uuidFile)); err != nil {
			return "", fmt.Errorf("identify this machine: only root may ask its firmware: %w", err)
		}
	}
	return strings.ToLower(strings.TrimSpace(string(text))), nil
}

// Properties is the inventory of the machine, without its disks.
func (m Machine) Properties() (*formgn.SourceProperties, error) {
	id, err := m.ID()
	if err != nil {
		return nil, err
	}
	p := &formgn.SourceProperties{
		MachineID: &id,
		OsString:  pointer(m.osString()),
		BootMode:  formgn.BootModeLegacyBios,
		RamBytes:  pointer(m.memory()),
		Cpus:      m.cpus(),
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	p.Kernel = pointer(unix.ByteSliceToString(uts.Release[:]))
	hostname := unix.ByteSliceToString(uts.Nodename[:])
	p.Hostname, p.Fqdn = &hostname, pointer(m.fqdn(hostname))
	if _, err := os.Stat(filepath.Join("/", m.Root, "sys/firmware/efi")); err == nil {
		p.BootMode = formgn.BootModeUefi
	}
	if p.NetworkInterfaces, err = m.interfaces(); err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	return p, nil
}

// osString is the PRETTY_NAME of os-release(5).
func (m Machine) osString() string {
	for _, path := range []string{"etc/os-release", "usr/lib/os-release"} {
		for line := range strings.Lines(m.read(path)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(name, `"'`)
			}
		}
	}
	return "Linux"
}

// fqdn is the first dotted name for the host in hosts(5); nobody is asked over
// the network.
func (m Machine) fqdn(hostname string) string {
	if strings.Contains(hostname, ".") {
		return hostname
	}
	for line := range strings.Lines(m.read("etc/hosts")) {
		line, _, _ = strings.Cut(line, "#")
		if names := strings.Fields(line); len(names) > 1 && slices.Contains(names[1:], hostname) {
			for _, name := range names[1:] {
				if strings.HasPrefix(name, hostname+".") {
					return name
				}
			}
		}
	}
	return hostname
}

func (m Machine) memory() (bytes int64) {
	for line := range strings.Lines(m.read("proc/meminfo")) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(words[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// cpus counts logical processors by model.
func (m Machine) cpus() []formgn.CPU {
	var models []string
	count := map[string]int64{}
	add := func(model string) {
		if count[model] == 0 {
			models = append(models, model)
		}
		count[model]++
	}
	processors, scan := 0, bufio.NewScanner(strings.NewReader(m.read("proc/cpuinfo")))
	for scan.Scan() {
		name, value, _ := strings.Cut(scan.Text(), ":")
		switch strings.TrimSpace(name) {
		case "processor":
			processors++
		case "model name":
			add(strings.TrimSpace(value))
		}
	}
	if len(models) == 0 && processors > 0 { // some architectures name no model
		models, count["unknown"] = []string{"unknown"}, int64(processors)
	}
	var out []formgn.CPU
	for _, model := range models {
		out = append(out, formgn.CPU{ModelName: &model, Cores: pointer(count[model])})
	}
	return out
}

// interfaces lists those that have an address of their own. The primary one is
// that of the default route with the lowest metric.
func (m Machine) interfaces() ([]formgn.NetworkInterface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	primary := m.defaultRoute()
	var out []formgn.NetworkInterface
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) == 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		n := formgn.NetworkInterface{MacAddress: pointer(i.HardwareAddr.String()), IsPrimary: pointer(i.Name == primary)}
		for _, a := range addresses {
			if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLinkLocalUnicast() {
				n.Ips = append(n.Ips, ip.IP.String())
			}
		}
		if out = append(out, n); len(out) == 32 {
			break // the most that the service takes
		}
	}
	return out, nil
}

// defaultRoute reads /proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric ...
func (m Machine) defaultRoute() (name string) {
	best := -1
	for line := range strings.Lines(m.read("proc/net/route")) {
		w := strings.Fields(line)
		if len(w) < 7 || w[1] != "00000000" {
			continue
		}
		if metric, err := strconv.Atoi(w[6]); err == nil && (best < 0 || metric < best) {
			name, best = w[0], metric
		}
	}
	return name
}

func pointer[T any](v T) *T { return &v }
