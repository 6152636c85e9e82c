package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"aead.dev/minisign"

	"rehost/ca"
	"rehost/release"
)

// installScript is /install.sh before the service fills in what it knows.
//
//go:embed install.sh
var installScript string

// settings are the lines of the script that the service fills in.
var settings = regexp.MustCompile(`(?m)^([a-z0-9_]+)=''`)

// fillScript fills the script in. A setting that the script has not, one of the
// script's that is not given, and a value that would end its quotes are errors.
func fillScript(script string, values map[string]string) (string, error) {
	var errs []error
	left := len(values)
	out := settings.ReplaceAllStringFunc(script, func(line string) string {
		name := settings.FindStringSubmatch(line)[1]
		value, ok := values[name]
		if !ok || strings.ContainsAny(value, "'\x00") {
			errs = append(errs, fmt.Errorf("install.sh: %s is not to be filled in with %q", name, value))
		}
		left--
		return name + "='" + value + "'"
	})
	if left != 0 {
		errs = append(errs, errors.New("install.sh has other settings"))
	}
	return out, errors.Join(errs...)
}

// script is /install.sh for who has reached this service at that address.
func (s *served) script(host string) (string, error) {
	values := map[string]string{"endpoint": s.endpointFor(host), "region": s.cmd.Region, "signed": "", "key": "", "own": "yes",
		"ca": strings.TrimSuffix(string(ca.EncodeCertificates(s.authority.Bundle().Roots()...)), "\n")}
	if s.outside != nil {
		values["own"] = ""
	}
	list, _, err := s.agents.list()
	if err != nil {
		return "", err
	}
	if list.signature != nil {
		values["signed"] = "yes"
		for _, k := range release.Keys() {
			if _, err := release.Open(list.sums, list.signature, []minisign.PublicKey{k}); err == nil {
				values["key"] = k.String()
			}
		}
	}
	found := false
	for _, arch := range architectures {
		sum, err := s.agents.sum(release.Agent(arch))
		switch {
		case err == nil:
			values["sum_"+arch], found = sum.String(), true
		case errors.Is(err, fs.ErrNotExist):
			values["sum_"+arch] = ""
		default:
			return "", err
		}
	}
	if !found {
		return "", fs.ErrNotExist
	}
	return fillScript(installScript, values)
}

// endpointFor is where this service is reached by who has reached it at host, a
// name or address with or without a port. What is not one of the service's
// own is not repeated to anybody.
func (s *served) endpointFor(host string) string {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), "443"
	}
	known := slices.Contains(s.hosts.names, name)
	if ip := net.ParseIP(name); ip != nil {
		known = slices.ContainsFunc(s.hosts.addresses, ip.Equal)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || !known {
		return s.url()
	}
	return "https://" + net.JoinHostPort(name, port)
}

// serveScript is the handler of /install.sh, for everyone.
func (s *served) serveScript(w http.ResponseWriter, r *http.Request) {
	text, err := s.script(r.Host)
	if err != nil {
		s.agents.tell(err)
		http.Error(w, "there is no agent here to be installed", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/x-shellscript; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte(text))
}
