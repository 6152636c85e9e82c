package awsapi

import (
	"fmt"
	"testing"
)

// TestError_QueryCode has the codes that clients of iam and sts look for: the
// CLI and SDKs decide by them whether to repeat, and whether to renew a token.
func TestError_QueryCode(t *testing.T) {
	for name, want := range map[string]string{
		MissingAuthentication: "MissingAuthenticationToken 403",
		IncompleteSignature:   "IncompleteSignature 400",
		InvalidSignature:      "SignatureDoesNotMatch 403",
		UnrecognizedClient:    "InvalidClientTokenId 403",
		ExpiredToken:          "ExpiredToken 403",
		Throttling:            "Throttling 400",
		AccessDenied:          "AccessDenied 403",
		InternalServer:        "InternalFailure 500",
		"OfAService":          "OfAService 500",
	} {
		code, status := Errorf(name, "").QueryCode()
		if got := fmt.Sprint(code, " ", status); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}
