package control_test

import (
	"testing"

	"rehost/internal/fault"
)

// TestMutants_Tunnel: who may come through the tunnel is found out if it is somebody else.
func TestMutants_Tunnel(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package several times")
	}
	for name, m := range map[string]fault.Mutant{
		"EndedKeepsItsKey":     {From: "if !s.leaving(revoked, c.now()) {", To: "if false {", Tests: "TestTunnel_Ends$"},
		"EndedReplicates":      {From: "p.peer.Ports = apiOnly\n\t\tcase p.server", To: "case p.server", Tests: "TestTunnel_Ends$"},
		"RevokedCounts":        {From: `case revoked != "":`, To: "case false:", Tests: "TestTunnel_Keys$"},
		"OutlivesCertificate":  {From: "tunnel_key <> '' AND not_after > ?1\n", To: "tunnel_key <> '' AND ?1 <> ''\n", Tests: "TestTunnel_Keys$"},
		"InvitedTwice":         {From: "SET not_after = ?1 WHERE", To: "SET not_after = not_after WHERE", Tests: "TestTunnel_Invitation$"},
		"InvitedToReplication": {From: "case p.server == \"\":\n\t\t\tp.peer.Ports = apiOnly", To: "case p.server == \"\":", Tests: "TestTunnel_Invitation$"},
		"TakenBackLater":       {From: "in.TunnelKey)\n\t})\n\tif err == nil {\n\t\terr = c.letIn(ctx)", To: "in.TunnelKey)\n\t})\n\tif err == nil {", Tests: "TestTunnel_TakenBack$"},
		"EndedLater":           {From: "c.changes.wait(wait, revision)", To: "_ = revision\n\t\t<-wait.Done()", Tests: "TestTunnel_AtOnce$"},
	} {
		m.File = "tunnel.go"
		t.Run(name, func(t *testing.T) { fault.Caught(t, m) })
	}
}
