// Package iam holds the shapes and operations of AWS Identity and Access Management,
// generated from model.json. See awsapi/generate for how members become fields.
package iam

//go:generate go run rehost/awsapi/generate -package iam
