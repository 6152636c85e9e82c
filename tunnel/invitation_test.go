package tunnel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestInvitation(t *testing.T) {
	want := Invitation{Key: NewKey(), Hub: NewKey().Public(), Endpoint: "rehost.example.com:51820", Until: time.Now()}
	text := want.Text()
	for _, form := range []string{text, strings.ReplaceAll(text, "\n", "\r\n"), strings.ReplaceAll(text, " = ", "="), text + "DNS = 192.0.2.1 # a comment\n"} {
		got, err := ParseInvitation(form)
		if err != nil || got.Key.Public() != want.Key.Public() || got.Hub != want.Hub || got.Endpoint != want.Endpoint {
			t.Errorf("read %v, %v", got, err)
		}
	}
	if s := fmt.Sprintf("%v %+v", want, want); strings.Contains(s, want.Key.Secret()) {
		t.Errorf("printing shows the key: %s", s)
	}
	for name, bad := range map[string]string{
		"nothing":         "",
		"no endpoint":     strings.Replace(text, "Endpoint", "Somewhere", 1),
		"other address":   strings.Replace(text, "Address = fd", "Address = fc", 1),
		"wider than one":  strings.Replace(text, "AllowedIPs = "+want.Hub.Address().String()+"/128", "AllowedIPs = ::/0", 1),
		"two keys":        text + "PublicKey = " + want.Hub.String() + "\n",
		"cut key":         strings.Replace(text, want.Key.Secret(), want.Key.Secret()[:30], 1),
		"something else":  "-----BEGIN CERTIFICATE-----\n",
		"very long":       text + strings.Repeat("#\n", maxInvitation),
		"swapped section": strings.NewReplacer("[Interface]", "[Peer]", "[Peer]", "[Interface]").Replace(text),
	} {
		if _, err := ParseInvitation(bad); !errors.Is(err, ErrInvitation) || strings.Contains(err.Error(), want.Key.Secret()[:20]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFormat holds docs/format/tunnel.md and the code together.
func TestFormat(t *testing.T) {
	page, err := os.ReadFile("../docs/format/tunnel.md")
	if err != nil {
		t.Fatal(err)
	}
	alice, err := ParseKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=") // RFC 7748, 6.1
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("| MTU inside | %d bytes |", mtu),
		fmt.Sprintf("| TCP port of the API, inside | %d |", APIPort),
		fmt.Sprintf("| TCP port of replication, inside | %d |", ReplicationPort),
		fmt.Sprintf("`%s` is at `%s`", alice.Public(), alice.Public().Address()),
		fmt.Sprintf("at most %d KiB", maxInvitation>>10),
		fmt.Sprintf("%q", addressText),
		fmt.Sprintf("PersistentKeepalive = %d", keepAlive),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}
