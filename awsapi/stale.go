package awsapi

import "errors"

// IsStale reports whether err is the service's answer to the operation that the
// session which signed the call is not taken (any more): a new session may be.
func IsStale(err error, operation string) bool {
	e := (*CallError)(nil)
	if !errors.As(err, &e) || e.Operation != operation {
		return false
	}
	switch e.Name {
	case UnrecognizedClient, InvalidSignature, ExpiredToken:
		return true
	}
	return false
}
