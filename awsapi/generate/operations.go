package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// resourceTypes says which member of a request names which kind of resource;
// the kind is the first part of the ARN's last field.
var resourceTypes = map[string]string{
	"sourceServerID":                     "source-server",
	"sourceServerIDs":                    "source-server",
	"jobID":                              "job",
	"replicationConfigurationTemplateID": "replication-configuration-template",
	"launchConfigurationTemplateID":      "launch-configuration-template",
	"applicationID":                      "application",
	"applicationIDs":                     "application",
	"waveID":                             "wave",
	"importID":                           "import",
	"exportID":                           "export",
	"connectorID":                        "connector",
	"vcenterClientID":                    "vcenter-client",
	"networkMigrationDefinitionID":       "network-migration-definition",
	"replicatorID":                       "replication-server",
}

// creates says what kind of resource an operation makes that accepts tags for it.
var creates = map[string]string{
	"CreateApplication":                      "application",
	"CreateConnector":                        "connector",
	"CreateLaunchConfigurationTemplate":      "launch-configuration-template",
	"CreateNetworkMigrationDefinition":       "network-migration-definition",
	"CreateReplicationConfigurationTemplate": "replication-configuration-template",
	"CreateWave":                             "wave",
	"RegisterAgentForMgn":                    "source-server",
	"StartCutover":                           "job",
	"StartExport":                            "export",
	"StartImport":                            "import",
	"StartTest":                              "job",
	"TerminateTargetInstances":               "job",
}

// operations writes the descriptions of the operations and of the service, and
// what authorization asks of a request.
func (w *writer) operations() {
	f := w.file("operations_gen.go")
	f.uses("rehost/awsapi")
	names := slices.Sorted(maps.Keys(w.model.Operations))
	meta := w.model.Metadata
	f.p("// Service is %s, API version %s, and all its operations.", meta.ServiceFullName, meta.APIVersion)
	f.p("var Service = &awsapi.Service{\n\tName: %q,\n\tSigningName: %q,\n\tVersion: %q,\n\tOperations: []*awsapi.Operation{", w.pkg, meta.SigningName, meta.APIVersion)
	for _, name := range names {
		f.p("\t\t&%s.Operation,", name)
	}
	f.p("\t},\n}\n")
	for _, name := range names {
		w.operation(f, w.model.Operations[name])
	}
	g := w.file("resources_gen.go")
	seen := map[string]bool{}
	for _, name := range names {
		op := w.model.Operations[name]
		if !seen[op.Input.Shape] {
			seen[op.Input.Shape] = true
			w.authorization(g, op, w.model.Shapes[op.Input.Shape])
		}
	}
}

func (w *writer) operation(f *file, op *operation) {
	doc := op.Documentation
	if doc == "" {
		doc = fmt.Sprintf("%s is %s %s, answered with status %d.", op.Name, op.HTTP.Method, op.HTTP.RequestURI, w.status(op))
	} else {
		doc = op.Name + ": " + doc
	}
	f.p("// %s", doc)
	f.p("var %s = &awsapi.Op[%s, %s]{Operation: awsapi.Operation{", op.Name, op.Input.Shape, op.Output.Shape)
	f.p("\tSigningName: %q,\n\tName: %q,\n\tMethod: %q,\n\tURI: %q,\n\tSuccess: %d,", w.model.Metadata.SigningName, op.Name, op.HTTP.Method, op.HTTP.RequestURI, w.status(op))
	if len(op.Errors) > 0 {
		var names []string
		for _, e := range op.Errors {
			names = append(names, e.Shape)
		}
		f.p("\tErrors: %#v,", names)
	}
	for _, flag := range []struct {
		name string
		set  bool
	}{
		{"ReadOnly", w.readOnly(op)},
		{"Idempotent", op.Idempotent},
		{"Paginated", w.model.Pagination[op.Name] != nil},
		{"MutualTLS", op.AuthType == "mutualTLS"},
		{"HasBody", w.hasBody(op)},
	} {
		if flag.set {
			f.p("\t%s: true,", flag.name)
		}
	}
	if kind := creates[op.Name]; kind != "" {
		f.p("\tCreates: %q,", kind)
	}
	f.p("}}\n")
}

func (w *writer) status(op *operation) int {
	if op.HTTP.ResponseCode == 0 {
		return 200
	}
	return op.HTTP.ResponseCode
}

// readOnly follows the model, and the verb where the model is silent.
func (w *writer) readOnly(op *operation) bool {
	for _, verb := range []string{"Get", "Describe", "List", "Verify"} {
		if strings.HasPrefix(op.Name, verb) {
			return true
		}
	}
	return op.ReadOnly
}

// hasBody is whether a member of the input travels in the body.
func (w *writer) hasBody(op *operation) bool {
	for _, r := range w.model.Shapes[op.Input.Shape].Members {
		if r.Location == "" {
			return true
		}
	}
	return false
}

// authorization writes what a request acts on and which tags it brings.
func (w *writer) authorization(f *file, op *operation, in *shape) {
	var inner file
	for _, member := range in.members() {
		s := w.model.Shapes[in.Members[member].Shape]
		kind := resourceTypes[member]
		switch {
		case member == "resourceArn":
			inner.p("\tr = append(r, awsapi.Resource{ARN: v.ResourceArn})")
		case kind == "":
		case s.Type == "list" && !w.readOnly(op):
			inner.p("\tfor _, id := range v.%s {\n\t\tr = append(r, awsapi.Resource{Type: %q, ID: id})\n\t}", exported(member), kind)
		case s.Type == "string" && in.requires(member):
			inner.p("\tr = append(r, awsapi.Resource{Type: %q, ID: v.%s})", kind, exported(member))
		}
	}
	if inner.body.Len() > 0 {
		f.uses("rehost/awsapi")
		f.p("// Resources implements [awsapi.ResourceLister].\nfunc (v *%s) Resources() (r []awsapi.Resource) {\n%s\treturn r\n}\n", in.name, inner.body.String())
	}
	if r, ok := in.Members["tags"]; ok {
		f.p("// RequestTags implements [awsapi.TagBringer].\nfunc (v *%s) RequestTags() map[string]string { return v.Tags }\n", in.name)
		if w.model.Shapes[r.Shape].Type != "map" {
			panic(in.name + ".tags is not a map")
		}
	}
	if _, ok := in.Members["tagKeys"]; ok {
		f.p("// RequestTagKeys implements [awsapi.TagKeyBringer].\nfunc (v *%s) RequestTagKeys() []string { return v.TagKeys }\n", in.name)
	}
	if _, ok := in.Members["accountID"]; ok {
		f.p("// TargetAccount implements [awsapi.AccountNamer].\nfunc (v *%s) TargetAccount() string {\n\tif v.AccountID == nil {\n\t\treturn \"\"\n\t}\n\treturn *v.AccountID\n}\n", in.name)
	}
}
