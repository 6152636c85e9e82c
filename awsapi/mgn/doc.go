// Package mgn holds the shapes and operations of AWS Application Migration Service,
// generated from model.json. See awsapi/generate for how members become fields.
package mgn

//go:generate go run rehost/awsapi/generate -package mgn
