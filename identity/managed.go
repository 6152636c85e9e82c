package identity

import (
	"embed"
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

// Names of the roles that sessions of agents and replication servers are of.
const (
	AgentRole             = "AWSApplicationMigrationAgentRole"
	ReplicationServerRole = "AWSApplicationMigrationReplicationServerRole"
)

// ServiceName is the service that starts those sessions.
const ServiceName = "mgn.amazonaws.com"

// managedPaths names the built-in policies that do not stand at the root.
var managedPaths = map[string]string{
	"AWSApplicationMigrationAgentPolicy_v2":          serviceRolePath,
	"AWSApplicationMigrationReplicationServerPolicy": serviceRolePath,
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
	}
}
