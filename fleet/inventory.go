package fleet

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Host is a line of an inventory.
type Host struct {
	Name string // host name or address, and the name in what is printed
	Port int    // of its SSH server; 22 unless given
	User string // to log in as; "" for the one of all
	Key  string // file with the private key; "" for those of all

	Devices        []string // as rehost-agent install takes them
	Tags           []string // KEY=VALUE
	UserProvidedID string
	Options        []string // more flags of rehost-agent install
}

// Address is where the host's SSH server is.
func (h Host) Address() string { return net.JoinHostPort(h.Name, strconv.Itoa(h.Port)) }

// ErrInventory is wrapped by every error about what an inventory says.
var ErrInventory = errors.New("bad inventory")

// columns are those an inventory may have. Lists are separated by spaces.
var columns = map[string]func(h *Host, value string) error{
	"host": func(h *Host, v string) error { h.Name = v; return nil },
	"port": func(h *Host, v string) (err error) {
		if h.Port, err = strconv.Atoi(v); err != nil || h.Port < 1 || h.Port > 65535 {
			return fmt.Errorf("port %q is no number from 1 to 65535", v)
		}
		return nil
	},
	"user":             func(h *Host, v string) error { h.User = v; return nil },
	"key":              func(h *Host, v string) error { h.Key = v; return nil },
	"devices":          func(h *Host, v string) error { h.Devices = strings.Fields(v); return nil },
	"user_provided_id": func(h *Host, v string) error { h.UserProvidedID = v; return nil },
	"options":          func(h *Host, v string) error { h.Options = strings.Fields(v); return nil },
	"tags": func(h *Host, v string) error {
		for _, tag := range strings.Fields(v) {
			if k, _, ok := strings.Cut(tag, "="); !ok || k == "" {
				return fmt.Errorf("tag %q is not KEY=VALUE", tag)
			}
			h.Tags = append(h.Tags, tag)
		}
		return nil
	},
}

var hostForm = regexp.MustCompile(`^[0-9A-Za-z_]([0-9A-Za-z_.:%-]*[0-9A-Za-z])?$`)

// ReadInventory reads CSV whose first line names the columns: host, and what is
// needed of port, user, key, devices, tags, user_provided_id and options. Lines
// that begin with # are comments. No host may be there twice.
func ReadInventory(r io.Reader) ([]Host, error) {
	lines := csv.NewReader(r)
	lines.Comment, lines.TrimLeadingSpace = '#', true
	names, err := lines.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is empty; the first line names the columns: host,user,devices", ErrInventory)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInventory, err)
	}
	for i, name := range names {
		names[i] = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))
		if columns[names[i]] == nil {
			return nil, fmt.Errorf("%w: unknown column %q; there are host, port, user, key, devices, tags, user_provided_id, options", ErrInventory, name)
		}
	}
	if !slices.Contains(names, "host") {
		return nil, fmt.Errorf("%w: its first line names no column host", ErrInventory)
	}
	var hosts []Host
	seen := map[string]int{}
	for {
		fields, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return hosts, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInventory, err)
		}
		line, _ := lines.FieldPos(0)
		h := Host{Port: 22}
		for i, value := range fields {
			if value = strings.TrimSpace(value); value == "" {
				continue
			}
			if err := columns[names[i]](&h, value); err != nil {
				return nil, fmt.Errorf("%w: line %d: %w", ErrInventory, line, err)
			}
		}
		if !hostForm.MatchString(h.Name) {
			return nil, fmt.Errorf("%w: line %d: %q is no host name or address", ErrInventory, line, h.Name)
		}
		if before, there := seen[h.Address()]; there {
			return nil, fmt.Errorf("%w: line %d: %s is on line %d already", ErrInventory, line, h.Address(), before)
		}
		seen[h.Address()] = line
		hosts = append(hosts, h)
	}
}
