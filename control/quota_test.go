package control

import (
	"testing"

	"rehost/awsapi/mgn"
	"rehost/identity"
)

// TestRegisterAgent_Quota: a key for two source servers installs two, as often
// as it takes, and no third, also after one was deleted and the service restarted.
func TestRegisterAgent_Quota(t *testing.T) {
	w := newWorld(t)
	caller := Caller{ARN: installer, Quota: quotaOf(&identity.Principal{UserID: "AIDA1", Tags: map[string]string{ServerLimitTag: "2"}})}
	register := func(caller Caller, number string, want bool) string {
		t.Helper()
		out, err := w.RegisterAgent(t.Context(), caller, machine(number))
		if want != (err == nil) || !want && !is[*mgn.AccessDeniedException](err) {
			t.Fatalf("machine %s: %v", number, err)
		}
		if err != nil {
			return ""
		}
		return out.SourceServerID
	}
	first := register(caller, "01", true)
	register(caller, "02", true)
	register(caller, "01", true)
	register(caller, "03", false)
	var servers int
	if err := w.db.reader.QueryRow(`SELECT COUNT(*) FROM source_servers`).Scan(&servers); err != nil || servers != 2 {
		t.Errorf("%d source servers, %v: a refused one has left something", servers, err)
	}
	if _, err := w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: first}); err != nil {
		t.Fatal(err)
	}
	register(caller, "01", false) // it would be a new source server
	other := Caller{ARN: installer + "2", Quota: quotaOf(&identity.Principal{UserID: "AIDA2"})}
	register(other, "03", true)
	register(other, "04", true)
	register(other, "05", true)
	register(caller, "03", false) // taking over another's counts as well
	for _, text := range []string{"0", "-1", "", "many", "1e9"} {
		none := Caller{ARN: installer, Quota: quotaOf(&identity.Principal{UserID: "AIDA3", Tags: map[string]string{ServerLimitTag: text}})}
		register(none, "06", false)
	}
}
