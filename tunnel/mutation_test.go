package tunnel

import (
	"testing"

	"rehost/internal/fault"
)

// TestMutants: what the hub promises is found out if it does not keep it.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"TakenOutIsAnswered": {File: "hub.go", From: "h.end.wg.RemovePeer(device.NoisePublicKey(key))", To: "_ = device.NoisePublicKey(key)", Tests: "TestHub_SetPeers$"},
		"OpenOnesNotCut":     {File: "hub.go", From: "h.end.cutOff(h.allows)", To: "", Tests: "TestHub_SetPeers$"},
		"AnyPort":            {File: "hub.go", From: "return known && (h.peers[key].Ports == nil || slices.Contains(h.peers[key].Ports, port))", To: "return known && key != h.key", Tests: "TestHub_SetPeers$"},
		"AddressOfAnother":   {File: "hub.go", From: `allowed_ip=%s/128\n", key.hex(), key.Address())`, To: `allowed_ip=::/0\n", key.hex())`, Tests: "TestHub_Address$"},
		"InvitesAnyAddress":  {File: "invitation.go", From: "err != nil || p != netip.PrefixFrom(want, 128)", To: "err != nil || want.Is4() || !p.IsValid()", Tests: "TestInvitation$"},
	} {
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
