package tunnel

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// maxInvitation is how long the text of an invitation may be, in bytes.
const maxInvitation = 4 << 10

// ErrInvitation is wrapped by the error of a text that is no invitation.
var ErrInvitation = errors.New("not an invitation")

// An Invitation is what somebody needs to come who is not known yet. Its text is
// a configuration file of wg-quick; see docs/format/tunnel.md.
type Invitation struct {
	Key      Key
	Hub      PublicKey
	Endpoint string    // host:port, UDP
	Until    time.Time // only said, not enforced here
}

// Text is the invitation with its private key, as it is handed over.
func (i Invitation) Text() string {
	return fmt.Sprintf(`# Rehost: for the installation of one agent, until %s
[Interface]
PrivateKey = %s
Address = %s/128
MTU = %d

[Peer]
PublicKey = %s
Endpoint = %s
AllowedIPs = %s/128
PersistentKeepalive = %d
`, i.Until.UTC().Format(time.RFC3339), i.Key.Secret(), i.Key.Public().Address(), mtu, i.Hub, i.Endpoint, i.Hub.Address(), keepAlive)
}

// ParseInvitation reads what [Invitation.Text] has written. The error does not
// show what was read, since it may be a key.
func ParseInvitation(text string) (i Invitation, err error) {
	if len(text) > maxInvitation {
		return i, fmt.Errorf("%w: it is longer than %d bytes", ErrInvitation, maxInvitation)
	}
	values, section := map[string]string{}, ""
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		name, value, is := strings.Cut(line, "=")
		switch {
		case line == "":
		case strings.HasPrefix(line, "["):
			section = line
		case !is:
			return i, fmt.Errorf("%w: a line is neither a section nor a value", ErrInvitation)
		default:
			at := section + strings.TrimSpace(name)
			if _, twice := values[at]; twice {
				return i, fmt.Errorf("%w: %s is there twice", ErrInvitation, at)
			}
			values[at] = strings.TrimSpace(value)
		}
	}
	if i.Key, err = ParseKey(values["[Interface]PrivateKey"]); err != nil {
		return i, fmt.Errorf("%w: PrivateKey: %w", ErrInvitation, err)
	}
	if i.Hub, err = ParsePublicKey(values["[Peer]PublicKey"]); err != nil {
		return i, fmt.Errorf("%w: PublicKey: %w", ErrInvitation, err)
	}
	i.Endpoint = values["[Peer]Endpoint"]
	if _, _, err := net.SplitHostPort(i.Endpoint); err != nil {
		return i, fmt.Errorf("%w: Endpoint: %w", ErrInvitation, err)
	}
	for at, want := range map[string]netip.Addr{"[Interface]Address": i.Key.Public().Address(), "[Peer]AllowedIPs": i.Hub.Address()} {
		if p, err := netip.ParsePrefix(values[at]); err != nil || p != netip.PrefixFrom(want, 128) {
			return i, fmt.Errorf("%w: %s does not follow from the key: want %s/128", ErrInvitation, at, want)
		}
	}
	return i, nil
}
