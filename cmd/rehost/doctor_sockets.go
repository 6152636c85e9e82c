package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A socket is one that a process listens on.
type socket struct {
	network string // "tcp" or "udp"
	address netip.AddrPort
	pid     int
	program string
}

// processesIn are those that have a file in a directory open: the service, the
// replication server, and the machines that they have launched.
func processesIn(dir string) (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		links, err := openFiles(pid)
		if err != nil {
			continue // it has ended, or is somebody else's
		}
		if slices.ContainsFunc(links, func(l string) bool { return strings.HasPrefix(l, dir+"/") }) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// openFiles are what the descriptors of a process are of.
func openFiles(pid int) (links []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			links = append(links, link)
		}
	}
	return links, nil
}

// listening are the sockets that a process listens on. Of UDP, where nothing
// listens, they are those that take from anybody; a launched machine's are ends of
// its own connections and not among them.
func listening(pid int) (out []socket, err error) {
	links, err := openFiles(pid)
	if err != nil {
		return nil, nil // it has ended
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return nil, nil // it has ended
	}
	program := strings.TrimSpace(string(name))
	for _, table := range []struct{ file, network, state string }{{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}, {"udp", "udp", "07"}, {"udp6", "udp", "07"}} {
		if table.network == "udp" && strings.HasPrefix(program, "qemu") {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table.file)) // of its own network namespace
		if errors.Is(err, fs.ErrNotExist) {
			continue // without IPv6
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			w := strings.Fields(line) // sl local rem st queues timer retrnsmt uid timeout inode ...
			if len(w) < 10 || w[3] != table.state || !slices.Contains(links, "socket:["+w[9]+"]") {
				continue
			}
			address, err := parseSocketAddress(w[1])
			if err != nil {
				return nil, fmt.Errorf("read /proc/%d/net/%s: %w", pid, table.file, err)
			}
			out = append(out, socket{table.network, address, pid, program})
		}
	}
	return out, nil
}

// parseSocketAddress reads an address as /proc/net has it: words of 32 bits in the
// machine's byte order, a colon, the port.
func parseSocketAddress(text string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || !ok || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	address, ok := netip.AddrFromSlice(raw)
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(address.Unmap(), uint16(number)), nil
}
