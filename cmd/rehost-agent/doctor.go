package main

import (
	"context"
	"errors"
	"os"

	"rehost/agent"
)

type doctorCommand struct {
	StateDir      string `help:"Directory of the installation, which need not be there." default:"${state}" type:"path"`
	Endpoint      string `help:"The service: host, host:port or https URL. Default: that of the installation." env:"AWS_ENDPOINT_URL_MGN,AWS_ENDPOINT_URL" placeholder:"HOST"`
	CA            string `name:"ca" help:"File with the service's certificate authority (ca.pem)." type:"existingfile" placeholder:"FILE"`
	CAFingerprint string `name:"ca-fingerprint" help:"SHA-256 of the authority." placeholder:"HEX"`
	VPNInvitation string `name:"vpn-invitation" help:"Look for the service in its VPN, as an installation with this file would. It is not used up." type:"existingfile" placeholder:"FILE"`
	BPFFS         string `name:"bpffs" help:"Where the BPF file system is mounted. Default: /sys/fs/bpf." type:"path" placeholder:"DIR"`
	JSON          bool   `name:"json" help:"Print JSON."`
}

var errDiagnosis = errors.New("what fails keeps this machine from being replicated")

// Help implements [kong.HelpProvider].
func (c *doctorCommand) Help() string {
	return "Looks for all that an agent on this machine needs, and for what is in its way, before an installation or after it. It changes nothing. Exit status 1 if something fails."
}

// Run implements the command.
func (c *doctorCommand) Run(ctx context.Context) error {
	d := agent.Diagnose(ctx, agent.DoctorOptions{StateDir: c.StateDir, Endpoint: c.Endpoint, CA: c.CA, CAFingerprint: c.CAFingerprint, VPNInvitation: c.VPNInvitation, BPFFS: c.BPFFS})
	printed := d.Print
	if c.JSON {
		printed = d.PrintJSON
	}
	if err := printed(os.Stdout); err != nil {
		return err
	}
	if d.Fails() {
		return errDiagnosis
	}
	return nil
}
