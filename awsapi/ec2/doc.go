// Package ec2 holds the shapes and operations of those parts of Amazon Elastic Compute Cloud
// that say who may connect, generated from model.json. See awsapi/generate for how members
// become fields; what requests act on and how they fail is written by hand, as the model
// says neither.
package ec2

//go:generate go run rehost/awsapi/generate -package ec2
