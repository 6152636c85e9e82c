package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
)

// A model is a service description in the form that botocore publishes
// (service-2.json), restricted to the protocols rest-json, query and ec2.
type model struct {
	Metadata   metadata
	Operations map[string]*operation
	Shapes     map[string]*shape
	Pagination map[string]json.RawMessage
}

type metadata struct {
	APIVersion      string
	Protocol        string
	ServiceID       string `json:"serviceId"`
	ServiceFullName string
	EndpointPrefix  string
	SigningName     string
}

// query is whether calls come as forms.
func (m metadata) query() bool { return m.Protocol == "query" || m.ec2() }

func (m metadata) ec2() bool { return m.Protocol == "ec2" }

type operation struct {
	Name string
	HTTP struct {
		Method       string
		RequestURI   string `json:"requestUri"`
		ResponseCode int
	}
	Input, Output *ref
	Errors        []ref
	AuthType      string
	ReadOnly      bool
	Idempotent    bool
	Documentation string
}

type ref struct {
	Shape            string
	Location         string
	LocationName     string
	IdempotencyToken bool
}

type shape struct {
	Type       string
	Required   []string
	Members    map[string]ref
	Member     *ref
	Key, Value *ref
	Enum       []string
	Pattern    string
	Min, Max   *float64
	Sensitive  bool
	Union      bool
	Exception  bool
	Error      struct {
		Code           string // of the query protocol
		HTTPStatusCode int    `json:"httpStatusCode"`
	}

	name string
	// sent is whether a request can hold the shape. Only such shapes are
	// validated, and only in them an absent string differs from an empty one.
	sent bool
}

func readModel(path string) (*model, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := new(model)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	if m.Metadata.Protocol != "rest-json" && !m.Metadata.query() {
		return nil, fmt.Errorf("%s: protocol is %q, want rest-json, query or ec2", path, m.Metadata.Protocol)
	}
	if m.Metadata.SigningName == "" {
		m.Metadata.SigningName = m.Metadata.EndpointPrefix
	}
	for name, s := range m.Shapes {
		s.name = exported(name)
	}
	for _, op := range m.Operations {
		if op.Input == nil {
			m.Shapes[op.Name+"Request"] = &shape{name: op.Name + "Request", Type: "structure"}
			op.Input = &ref{Shape: op.Name + "Request"}
		}
		if op.Output == nil {
			m.Shapes[op.Name+"Response"] = &shape{name: op.Name + "Response", Type: "structure"}
			op.Output = &ref{Shape: op.Name + "Response"}
		}
		if m.Shapes[op.Name] != nil {
			return nil, fmt.Errorf("%s: operation and shape are both called %s", path, op.Name)
		}
	}
	if m.Metadata.ec2() {
		m.renameResources()
	}
	for _, op := range m.Operations {
		if err := m.markSent(op.Input.Shape); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, op.Name, err)
		}
	}
	return m, nil
}

// renameResources gives another name to members that have that of the method of
// an awsapi.ResourceLister. They travel under their locationName.
func (m *model) renameResources() {
	for _, op := range m.Operations {
		in := m.Shapes[op.Input.Shape]
		r, ok := in.Members["Resources"]
		if !ok {
			continue
		}
		in.Members["ResourceIds"] = r
		delete(in.Members, "Resources")
		if i := slices.Index(in.Required, "Resources"); i >= 0 {
			in.Required[i] = "ResourceIds"
		}
	}
}

// markSent marks name and all that it holds as part of a request.
func (m *model) markSent(name string) error {
	s := m.Shapes[name]
	if s == nil {
		return fmt.Errorf("no shape %s", name)
	}
	if s.sent {
		return nil
	}
	s.sent = true
	for _, r := range s.refs() {
		if err := m.markSent(r.Shape); err != nil {
			return err
		}
	}
	return nil
}

func (s *shape) refs() []ref {
	refs := slices.Collect(maps.Values(s.Members))
	for _, r := range []*ref{s.Member, s.Key, s.Value} {
		if r != nil {
			refs = append(refs, *r)
		}
	}
	return refs
}

// fault is the code and the HTTP status of a query service's error; those that
// the model says nothing about have their own name.
func (s *shape) fault() (code string, status int) {
	if s.Error.Code == "" {
		return s.name, 400
	}
	return s.Error.Code, s.Error.HTTPStatusCode
}

func (s *shape) scalar() bool {
	switch s.Type {
	case "structure", "list", "map", "blob":
		return false
	}
	return true
}

func (s *shape) requires(member string) bool { return slices.Contains(s.Required, member) }

// members lists the member names in a stable order.
func (s *shape) members() []string { return slices.Sorted(maps.Keys(s.Members)) }

// kinds names the operations' inputs and outputs that are nothing else, so that
// each can stand in the file where a reader looks for it.
func (m *model) kinds() (requests, responses map[string]string) {
	requests, responses = map[string]string{}, map[string]string{}
	for _, op := range m.Operations {
		if op.Input.Shape == op.Name+"Request" {
			requests[op.Input.Shape] = op.Name
		}
		if op.Output.Shape == op.Name+"Response" || op.Output.Shape == op.Name+"Result" {
			responses[op.Output.Shape] = op.Name
		}
	}
	return requests, responses
}
