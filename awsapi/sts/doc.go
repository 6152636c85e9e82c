// Package sts holds the shapes and operations of AWS Security Token Service,
// generated from model.json. See awsapi/generate for how members become fields.
package sts

//go:generate go run rehost/awsapi/generate -package sts
