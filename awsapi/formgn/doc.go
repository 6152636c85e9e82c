// Package formgn holds the shapes and operations of the calls of agents and replication servers,
// generated from model.json. See awsapi/generate for how members become fields.
package formgn

//go:generate go run rehost/awsapi/generate -package formgn
