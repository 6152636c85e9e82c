// Package api answers the calls of IAM and STS out of an [identity.Directory].
//
// In come typed requests that were verified and, but for those calls that
// decide themselves, allowed; out come answers and errors as AWS has them.
package api
