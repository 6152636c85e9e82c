package identity

import (
	"crypto/sha256"
	"embed"
	"encoding/base32"
	"fmt"
	"path"
	"strings"
	"time"

	"rehost/identity/policy"
)

//go:embed policies/*.json
var managedText embed.FS

// serviceRolePath is the path of the policies and roles that only services use.
const serviceRolePath = "/service-role/"

// Names of the roles that sessions of agents, replication servers and conversion
// servers are of. A conversion server makes a launched instance fit for where it
// runs; all it may is fetch its commands and report.
const (
	AgentRole             = "AWSApplicationMigrationAgentRole"
	ReplicationServerRole = "AWSApplicationMigrationReplicationServerRole"
	ConversionServerRole  = "AWSApplicationMigrationConversionServerRole"
)

// ServiceName is the service that starts those sessions.
const ServiceName = "mgn.amazonaws.com"

// managedPaths names the built-in policies that do not stand at the root.
var managedPaths = map[string]string{
	"AWSApplicationMigrationAgentPolicy_v2":          serviceRolePath,
	"AWSApplicationMigrationReplicationServerPolicy": serviceRolePath,
	"AWSApplicationMigrationConversionServerPolicy":  serviceRolePath,
}

// ManagedPolicy is the ARN of a built-in policy, by its name.
func ManagedPolicy(name string) string {
	dir := managedPaths[name]
	if dir == "" {
		dir = "/"
	}
	return "arn:aws:iam::aws:policy" + dir + name
}

// managed parses the built-in policies, by ARN. They are part of the program,
// so a mistake in one is a mistake of ours.
func managed() map[string]*policy.Document {
	out := map[string]*policy.Document{}
	entries, err := managedText.ReadDir("policies")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		text, err := managedText.ReadFile("policies/" + e.Name())
		if err != nil {
			panic(err)
		}
		name := strings.TrimSuffix(e.Name(), path.Ext(e.Name()))
		doc, err := policy.Parse(policy.Identity, name, string(text))
		if err != nil {
			panic(fmt.Sprintf("built-in policy %s: %v", name, err))
		}
		out[ManagedPolicy(name)] = doc
	}
	return out
}

// serviceRoles are the roles that every account begins with.
func serviceRoles() []Role {
	trust := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"Service":"` + ServiceName +
		`"},"Action":["sts:AssumeRole","sts:SetSourceIdentity"]}}`
	role := func(name, policy string) Role {
		return Role{Name: name, Path: serviceRolePath, Trust: trust, MaxDuration: 12 * time.Hour, Attached: []string{ManagedPolicy(policy)}}
	}
	return []Role{
		role(AgentRole, "AWSApplicationMigrationAgentPolicy_v2"),
		role(ReplicationServerRole, "AWSApplicationMigrationReplicationServerPolicy"),
		role(ConversionServerRole, "AWSApplicationMigrationConversionServerPolicy"),
	}
}

// managedRecords are the built-in policies as records, by ARN.
func managedRecords() map[string]Policy {
	out := map[string]Policy{}
	for arn, doc := range managed() {
		name := arn[strings.LastIndexByte(arn, '/')+1:]
		dir := strings.TrimSuffix(strings.TrimPrefix(arn, managedPrefix), name)
		out[arn] = Policy{Name: name, Path: dir, Document: doc.Text(), Created: managedSince}.complete(arn)
	}
	return out
}

// managedPrefix leads the ARNs of built-in policies, in front of their path.
const managedPrefix = "arn:aws:iam::aws:policy"

// managedSince is when the built-in policies took their present form.
var managedSince = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// IsManaged is whether the ARN is that of a built-in policy, or would be.
func IsManaged(arn string) bool { return strings.HasPrefix(arn, managedPrefix+"/") }

// complete fills in what records of older versions of the program do not have.
// A policy without an id gets one that follows from its ARN.
func (p Policy) complete(arn string) Policy {
	if p.ID == "" {
		sum := sha256.Sum256([]byte(arn))
		p.ID = "ANPA" + base32.StdEncoding.EncodeToString(sum[:])[:16]
	}
	if p.Updated.IsZero() {
		p.Updated = p.Created
	}
	if p.Default == 0 {
		p.Default, p.Last = 1, 1
	}
	if len(p.Versions) == 0 {
		p.Versions = []PolicyVersion{{Number: 1, Document: p.Document, Created: p.Created}}
	}
	return p
}
