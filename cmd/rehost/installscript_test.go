package main

import (
	"net"
	"strings"
	"testing"

	"rehost/fence"
)

// TestFillScript: what is filled in cannot end its quotes, and every setting is.
func TestFillScript(t *testing.T) {
	script := "#!/bin/sh\na='' # one\nb=''\n\tc='' # of a function\n"
	got, err := fillScript(script, map[string]string{"a": "x $(y) \"z\"\nw", "b": ""})
	if err != nil || got != "#!/bin/sh\na='x $(y) \"z\"\nw' # one\nb=''\n\tc='' # of a function\n" {
		t.Errorf("%q, %v", got, err)
	}
	for name, values := range map[string]map[string]string{
		"Quote":   {"a": "x'; reboot; '", "b": ""},
		"Missing": {"a": ""},
		"Unknown": {"a": "", "b": "", "d": ""},
	} {
		if _, err := fillScript(script, values); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestEndpointFor: the script repeats the address that it was fetched from, if that
// is the service's own and nothing that somebody made up.
func TestEndpointFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, err := findHosts([]string{"rehost.test", "2001:db8::1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{hosts: h, listener: fence.New(l, fence.Options{})}
	own := "https://" + l.Addr().String()
	for host, want := range map[string]string{
		"rehost.test:9443":    "https://rehost.test:9443",
		"rehost.test":         "https://rehost.test:443",
		"[2001:db8::1]:8443":  "https://[2001:db8::1]:8443",
		"127.0.0.1:8443":      "https://127.0.0.1:8443",
		"evil.test:8443":      own,
		"rehost.test:x":       own,
		"rehost.test:99999":   own,
		"rehost.test':8443":   own,
		"$(reboot):8443":      own,
		"":                    own,
		"rehost.test:1:2":     own,
		"REHOST.TEST\n:8443 ": own,
	} {
		if got := s.endpointFor(host); got != want {
			t.Errorf("%q: %s, want %s", host, got, want)
		}
	}
	if text, err := fillScript(installScript, map[string]string{"endpoint": own, "region": "r", "signed": "", "key": "", "own": "yes", "ca": "PEM", "sum_amd64": "1", "sum_arm64": ""}); err != nil || !strings.Contains(text, "\nendpoint='"+own+"'\n") {
		t.Errorf("install.sh: %v", err)
	}
}
