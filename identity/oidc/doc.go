// Package oidc verifies tokens of identity providers that speak OpenID Connect.
//
// In come a token and the [identity.Provider] that it says it is from, out
// comes the [identity.WebIdentity] that it stands for. The provider's keys are
// fetched from its own address over HTTPS and kept for a while; what a provider
// answers is believed no further than its tokens reach.
package oidc
