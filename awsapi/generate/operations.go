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
	"CreateSecurityGroup":                    "security-group",
	"AuthorizeSecurityGroupEgress":           "security-group-rule",
	"AuthorizeSecurityGroupIngress":          "security-group-rule",
	"CreateWave":                             "wave",
	"RegisterAgentForMgn":                    "source-server",
	"StartCutover":                           "job",
	"StartExport":                            "export",
	"StartImport":                            "import",
	"StartTest":                              "job",
	"TerminateTargetInstances":               "job",
}

// naming says which members of a query service's requests name what these act
// on, of which the first that a request has counts. No kind: the member is an ARN.
var naming = map[string][]struct{ member, kind string }{
	"iam": {
		{"InstanceProfileName", "instance-profile"},
		{"GroupName", "group"},
		{"UserName", "user"},
		{"RoleName", "role"},
		{"PolicyArn", ""},
		{"PolicySourceArn", ""},
		{"Arn", ""},
		{"PolicyName", "policy"},
		{"AccessKeyId", "access-key"},
	},
	"sts": {{"RoleArn", ""}},
}

// aboutCaller names the requests that act on who makes them, and say so with no member.
var aboutCaller = map[string]string{"ChangePasswordRequest": "user"}

// ownPermission names the operations that no policy is asked about before they
// are done: whoever can sign may ask who it is.
var ownPermission = map[string]bool{
	"sts:AssumeRole":         true,
	"sts:GetCallerIdentity":  true,
	"sts:GetFederationToken": true,
	"sts:GetSessionToken":    true,
}

// operations writes the descriptions of the operations and of the service, and
// what authorization asks of a request.
func (w *writer) operations() {
	f := w.file("operations_gen.go")
	f.uses("rehost/awsapi")
	names := slices.Sorted(maps.Keys(w.model.Operations))
	meta := w.model.Metadata
	f.p("// Service is %s, API version %s, and all its operations.", meta.ServiceFullName, meta.APIVersion)
	f.p("var Service = &awsapi.Service{\n\tName: %q,\n\tSigningName: %q,\n\tVersion: %q,", w.pkg, meta.SigningName, meta.APIVersion)
	switch {
	case meta.ec2():
		f.p("\tProtocol: awsapi.EC2Query,")
	case meta.query():
		f.p("\tProtocol: awsapi.Query,")
	}
	f.p("\tOperations: []*awsapi.Operation{")
	for _, name := range names {
		f.p("\t\t&%s.Operation,", name)
	}
	f.p("\t},\n}\n")
	for _, name := range names {
		w.operation(f, w.model.Operations[name])
	}
	if meta.ec2() {
		return // the package says by hand what its requests act on
	}
	g := w.file("resources_gen.go")
	seen := map[string]bool{}
	for _, name := range names {
		op := w.model.Operations[name]
		in := w.model.Shapes[op.Input.Shape]
		switch {
		case seen[in.name]:
		case w.model.Metadata.query():
			w.queryAuthorization(g, in)
		default:
			w.authorization(g, op, in)
		}
		seen[in.name] = true
	}
}

func (w *writer) operation(f *file, op *operation) {
	doc := op.Documentation
	if doc == "" && w.model.Metadata.query() {
		doc = fmt.Sprintf("%s is the action of that name.", op.Name)
	} else if doc == "" {
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
			name := e.Shape
			if w.model.Metadata.query() {
				name, _ = w.model.Shapes[name].fault()
			}
			names = append(names, name)
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
		{"Unsigned", op.AuthType == "none"},
		{"OwnPermission", ownPermission[w.pkg+":"+op.Name]},
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

// queryAuthorization does the same for a request of the query protocol, where
// tags are lists of keys and values.
func (w *writer) queryAuthorization(f *file, in *shape) {
	f.uses("rehost/awsapi")
	if kind := aboutCaller[in.name]; kind != "" {
		f.p("// Resources implements [awsapi.ResourceLister].\nfunc (v *%s) Resources() []awsapi.Resource {\n\treturn []awsapi.Resource{{Type: %q}}\n}\n", in.name, kind)
	}
	for _, n := range naming[w.pkg] {
		if _, ok := in.Members[n.member]; !ok {
			continue
		}
		fields := fmt.Sprintf("ARN: %s", w.optional(in, n.member))
		if n.kind != "" {
			fields = fmt.Sprintf("Type: %q, ID: %s", n.kind, w.optional(in, n.member))
		}
		f.p("// Resources implements [awsapi.ResourceLister].\nfunc (v *%s) Resources() []awsapi.Resource {\n\treturn []awsapi.Resource{{%s}}\n}\n", in.name, fields)
		break
	}
	if r, ok := in.Members["Tags"]; ok {
		if element := w.model.Shapes[r.Shape].Member; element == nil || element.Shape != "Tag" {
			panic(in.name + ".Tags is not a list of Tag")
		}
		f.p("// RequestTags implements [awsapi.TagBringer].\nfunc (v *%s) RequestTags() map[string]string {\n\ttags := map[string]string{}\n"+
			"\tfor _, t := range v.Tags {\n\t\ttags[t.Key] = t.Value\n\t}\n\treturn tags\n}\n", in.name)
	}
	if _, ok := in.Members["TagKeys"]; ok {
		f.p("// RequestTagKeys implements [awsapi.TagKeyBringer].\nfunc (v *%s) RequestTagKeys() []string { return v.TagKeys }\n", in.name)
	}
}

// optional is the expression of a string member, "" where it is absent.
func (w *writer) optional(in *shape, member string) string {
	if typ, _ := w.fieldOf(in, member); typ[0] == '*' {
		return "awsapi.Value(v." + exported(member) + ")"
	}
	return "v." + exported(member)
}
