package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rehost/awsapi"
	"rehost/ca"
	"rehost/capture"
	"rehost/release"
	"rehost/tunnel"
	"rehost/wire"
)

// ErrNotRoot says that this process has not the privileges to install an agent, which
// itself needs hardly any.
var ErrNotRoot = errors.New("a user and a service for the agent are made, for which one must be root")

// Hint is what a person can do about an error of this package; "" if nothing
// comes to mind.
func Hint(err error) string {
	var connect *connectError
	var refused *wire.RefusedError
	var api *awsapi.CallError
	var unread *capture.UnreadError
	var missing *missingError
	var stranger *strangerError
	var ambiguous *ambiguousError
	var unanswered *tunnel.HandshakeError
	var room *roomError
	switch {
	case errors.As(err, &room):
		return room.hint
	case errors.As(err, &unanswered) && unanswered.Err != nil:
		return "the address of the service's VPN is not to be found: check this machine's DNS, and what the service was started with (rehost serve --vpn)"
	case errors.As(err, &unanswered):
		return "let this machine send UDP to " + unanswered.Endpoint + " and get answers; if it may, the service does not know its key: an invitation that was used, taken back or is over (rehost vpn invite makes another), an agent that was taken out, or off for longer than its certificate lasts (install again)"
	case errors.Is(err, tunnel.ErrInvitation):
		return "rehost vpn invite, where the service is, prints one: give the file as it is"
	case errors.Is(err, errNoVPN):
		return "install without --vpn, or have the service started with it (rehost serve --vpn)"
	case errors.Is(err, errNotLent):
		return "its log says why; one of a version that does not do it yet does once it was started again by a newer program (rehost-agent restart)"
	case errors.Is(err, release.ErrSignature):
		return "who has made this agent has not made what the service offers: it was not run. Its release was made with another key (then install that agent by hand), or somebody has put something else there"
	case errors.Is(err, release.ErrSum):
		return "it was changed on the way or where the service keeps it, and was not run: try again, and ask the service's operator if it stays so"
	case errors.Is(err, release.ErrNotListed):
		return "ask the service's operator to put a release there (make release; rehost serve --agent-dir)"
	case errors.Is(err, ErrNoKeys):
		return "copy the new program here and run its install: this machine stays the same source server"
	case errors.Is(err, ErrOlder):
		return "nothing was changed; --downgrade takes it nevertheless"
	case errors.Is(err, ErrUnproven):
		return "the version before runs again, and nothing is lost: see the agent's log for what the new one said"
	case errors.As(err, &unread):
		return "the kernel's log (dmesg) and smartctl -a " + unread.First.Disk + " say what is wrong with the disk; a bad sector is replaced when it is written to; points so far stay as they are"
	case errors.Is(err, capture.ErrGone), errors.As(err, &missing):
		return "attach the disk again, and replication goes on; to go on without it, install again with --devices and the disks that are left"
	case errors.As(err, &stranger):
		return "nothing is replicated, lest two disks be mixed: attach the disk again, or install again to replicate the disks that are here now"
	case errors.As(err, &ambiguous):
		return "two paths to one disk, or a copy of it: detach one; a copy is given an identity of its own with sgdisk -G (GPT) or sfdisk --disk-id (MBR)"
	case errors.Is(err, capture.ErrShrunk):
		return "install again, and the disk is replicated anew; points so far stay as they are"
	case errors.Is(err, ErrNotRoot):
		return "run it with sudo"
	case errors.Is(err, ErrCopied):
		return "on a launched copy remove the agent (rehost-agent uninstall); to replicate this machine too, uninstall and install again"
	case errors.Is(err, ErrNotInstalled):
		return "install it with: rehost-agent install"
	case errors.Is(err, ErrRunning):
		return "rehost-agent status shows what it does"
	case errors.Is(err, capture.ErrPinned):
		return "another agent of this state directory has not ended yet; if it stays so, see who uses the directory of pins that rehost-agent status names"
	case errors.Is(err, ErrNoRoot):
		return "name the disks with --devices, and with --no-prompt --force-volumes exactly these are taken"
	case errors.Is(err, ErrNoIdentity):
		return "systemd-machine-id-setup or dbus-uuidgen --ensure gives the machine one"
	case errors.As(err, &refused):
		return refused.Hint
	case errors.As(err, &api):
		return callHint(api)
	case errors.Is(err, ca.ErrFingerprint):
		return "compare --ca-fingerprint with what the service prints at its start; if it is right, someone answers in the service's place"
	}
	if h := tlsHint(err); h != "" {
		return h
	}
	return networkHint(err, errors.As(err, &connect))
}

// callHint is about what the service answered.
func callHint(e *awsapi.CallError) string {
	if e.Hint != "" {
		return e.Hint
	}
	switch e.Name {
	case awsapi.UnrecognizedClient:
		if e.Operation == "CreateSessionForMgn" {
			return "the service does not take this agent's certificate: it was revoked, or issued by another service"
		}
		return "there is no such access key: check --aws-access-key-id, and that the key is active; temporary keys (ASIA...) need their session token"
	case awsapi.InvalidSignature:
		return "the secret access key does not belong to the access key id, or --region is not the service's"
	case awsapi.ExpiredToken:
		return "the credentials have expired: make new ones"
	case awsapi.AccessDenied:
		if e.Operation == "CreateSessionForMgn" {
			return "the source server was disconnected, or its certificate revoked; to replicate this machine again, install again"
		}
		if strings.Contains(e.Message, "permissions boundary") { // as that of rehost keys create-installer
			return "the time of this access key is over, or a boundary keeps it from installing: make a new one where the service is (rehost keys create-installer), and install with that"
		}
		return "the installing user needs the policy AWSApplicationMigrationAgentInstallationPolicy"
	case awsapi.Uninitialized:
		return "initialize the service first: aws mgn initialize-service"
	}
	return ""
}

// tlsHint is about certificates: the names, dates and issuers on them.
func tlsHint(err error) string {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("a certificate is outside its dates: check this machine's clock, which says %s; an agent that was off for longer than its certificate lasts is installed again, and finds its source server", time.Now().UTC().Format(time.RFC3339))
	case errors.As(err, &unknown), errors.As(err, &invalid):
		return "the server's certificate comes from another authority than the one given with --ca: take ca.pem from this service"
	case errors.Is(err, ca.ErrRevoked):
		return "the service has taken that certificate back: ask its operator, who finds it with rehost ca ls"
	case errors.Is(err, ca.ErrName):
		return "the other side proved to be someone else: check the address, and what stands between (a proxy that breaks TLS is not allowed)"
	case errors.As(err, &record):
		return "whoever answers there does not speak TLS: check the port"
	case err != nil && strings.Contains(err.Error(), "remote error: tls:"):
		return "the other side refused this agent's certificate: it expired, was revoked, or belongs to another service"
	}
	return ""
}

func networkHint(err error, replication bool) string {
	var dns *net.DNSError
	var timeout net.Error
	open := "check the address, and that firewalls let this machine reach it (TCP 8443)"
	if replication {
		open = "open TCP 1500 from this machine to the replication server"
	}
	switch {
	case errors.As(err, &dns):
		return "the name does not resolve: check --endpoint and this machine's DNS"
	case errors.Is(err, unix.ECONNREFUSED):
		return "nothing listens there: " + open
	case errors.Is(err, unix.ECONNRESET):
		return "it was reset at once: a security group of the service may not let this address in (on its side, aws ec2 describe-security-groups); or else " + open
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer: " + open
	case errors.Is(err, capture.ErrBadDevice):
		return "lsblk lists the disks of this machine"
	case replication:
		return open
	}
	return ""
}
