// Package awsapi speaks the protocols of AWS on both sides of a connection.
//
// In comes an HTTP request; it is bounded, its signature is verified, it is
// routed, decoded, validated and authorized, and out goes a typed call to a
// registered function, whose result or error becomes the answer. [Client] is
// the way back: a typed call becomes a signed request.
//
// The shapes of each service live in a package of their own (awsapi/mgn,
// awsapi/formgn) that awsapi/generate writes from the service's model.
package awsapi
