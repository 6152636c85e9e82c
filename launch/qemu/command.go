package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"rehost/launch"
)

func nodeName(i int) string { return "disk" + strconv.Itoa(i) }

func overlay(dir string, d launch.Disk) string { return filepath.Join(dir, d.Name+".qcow2") }

// arguments is QEMU's command line for the machine in dir. Paths of sockets and
// the pid file are relative: the process starts in dir.
func (t *Target) arguments(dir string, r record) []string {
	spec := r.Spec
	machine := "q35,graphics=off" // SeaBIOS and boot loaders then speak on the serial console
	var firmware []string
	if spec.BootMode == launch.UEFI {
		machine += ",pflash0=efi-code,pflash1=efi-vars"
		firmware = []string{
			"-blockdev", encode(map[string]any{"driver": "raw", "node-name": "efi-code", "read-only": true,
				"file": map[string]any{"driver": "file", "filename": t.opts.OVMFCode}}),
			"-blockdev", encode(map[string]any{"driver": "raw", "node-name": "efi-vars",
				"file": map[string]any{"driver": "file", "filename": filepath.Join(dir, varsFile)}}),
		}
	}
	accel := r.Accel
	if accel == TCG {
		accel = "tcg,tb-size=64"
	}
	args := []string{
		"-uuid", r.UUID, "-name", "rehost-" + spec.ID,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile", pidFile, "-S", // stopped until the record says that it is launched
		"-machine", machine, "-accel", accel, "-cpu", "max",
		"-smp", strconv.Itoa(spec.CPUs), "-m", strconv.Itoa(spec.MemoryMiB) + "M", "-rtc", "base=utc",
		"-chardev", "file,id=console,path=" + consoleFile + ",append=on", "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,path=" + qmpSocket + ",server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
	}
	args = append(args, firmware...)
	for i, d := range spec.Disks {
		args = append(args, t.blockdevs(dir, i, d)...)
		args = append(args, "-device", diskDevice(i, d, spec.DiskBus))
	}
	return append(args, "-netdev", netdev(spec.Network), "-device", "virtio-net-pci,netdev=net,romfile=,mac="+r.MAC) // no network boot
}

// blockdevs describes an overlay and, as a node of its own, the NBD export below
// it. While the server of the export is away, requests wait for it instead of
// failing.
func (t *Target) blockdevs(dir string, i int, d launch.Disk) []string {
	source := "source" + strconv.Itoa(i)
	return []string{
		"-blockdev", encode(map[string]any{
			"driver": "nbd", "node-name": source, "read-only": true, "export": d.Export,
			"server":          map[string]any{"type": "unix", "path": d.Socket},
			"reconnect-delay": int(t.opts.ReconnectDelay / time.Second),
		}),
		"-blockdev", encode(map[string]any{
			"driver": "qcow2", "node-name": nodeName(i), "backing": source, "discard": "unmap",
			"file": map[string]any{"driver": "file", "filename": overlay(dir, d), "discard": "unmap"},
		}),
	}
}

func diskDevice(i int, d launch.Disk, bus launch.DiskBus) string {
	dev := map[string]any{"driver": "virtio-blk-pci", "drive": nodeName(i), "serial": fmt.Sprintf("%.20s", d.Name),
		"rerror": "stop", "werror": "stop"} // the machine pauses; its file systems never see an error of ours
	if bus == launch.NVMe {
		dev["driver"] = "nvme"
		delete(dev, "rerror")
		delete(dev, "werror")
	}
	if d.Boot {
		dev["bootindex"] = 1
	}
	return encode(dev)
}

func netdev(n launch.Network) string {
	out := "user,id=net"
	if n.Mode != launch.Outbound {
		out += ",restrict=on"
	}
	for _, f := range n.Forwards {
		out += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", f.HostPort, f.GuestPort)
	}
	return out
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings, numbers and booleans
	}
	return string(b)
}

// createOverlays makes an empty overlay per disk. The disks are not opened.
func (t *Target) createOverlays(ctx context.Context, dir string, spec launch.Spec) error {
	for _, d := range spec.Disks {
		source := url.URL{Scheme: "nbd+unix", Path: "/" + d.Export, RawQuery: url.Values{"socket": {d.Socket}}.Encode()}
		if err := command(ctx, dir, t.opts.QEMUImg, "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", source.String(),
			overlay(dir, d), strconv.FormatInt(d.Size, 10)); err != nil {
			return fmt.Errorf("create overlay of disk %s: %w", d.Name, err)
		}
	}
	if spec.BootMode != launch.UEFI {
		return nil
	}
	vars, err := os.ReadFile(t.opts.OVMFVars)
	if err != nil {
		return fmt.Errorf("copy firmware variables (install ovmf): %w", err)
	}
	return os.WriteFile(filepath.Join(dir, varsFile), vars, 0o600)
}

// command runs a program to its end; an error carries what it said.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(fmt.Sprintf("%.2000s", said.String())))
	}
	return nil
}

var forwardLine = regexp.MustCompile(`(?m)^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)`)

// forwards asks QEMU which host ports it listens on.
func forwards(m *monitor) ([]launch.Forward, error) {
	var text string
	if err := m.do("human-monitor-command", map[string]any{"command-line": "info usernet"}, &text); err != nil {
		return nil, err
	}
	var list []launch.Forward
	for _, match := range forwardLine.FindAllStringSubmatch(text, -1) {
		host, _ := strconv.Atoi(match[1])
		guest, _ := strconv.Atoi(match[2])
		list = append(list, launch.Forward{HostPort: host, GuestPort: guest})
	}
	return list, nil
}
