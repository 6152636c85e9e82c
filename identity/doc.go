// Package identity knows who may do what.
//
// In come an access key id and a session token, out comes the [Principal] that
// they stand for and the secret that its signature must be made with; in come
// a principal, an action, a resource and the circumstances, out comes a
// [policy.Decision] that says why.
//
// A [Directory] holds the account, its users, groups and roles, their access
// keys, passwords and policies. Policies are documents in the language of AWS
// IAM, which package [policy] reads and applies. Temporary credentials are
// sealed into their session token and need no storage; they can be revoked
// nevertheless.
package identity
