package awsapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"rehost/identity"
	"rehost/identity/policy"
)

// maxAudited is how many resources an audit record names.
const maxAudited = 20

// admit decodes, validates and authorizes the call.
func (c *call) admit(in any) error {
	if err := c.decode(in); err != nil {
		return err
	}
	c.input = in
	if c.route.Unsigned || c.route.OwnPermission {
		c.decision, c.reason = allowed, "the operation itself decides"
		var err error
		c.circumstancesOf, err = c.circumstances(in)
		return err
	}
	if c.caller.Principal == nil {
		// The certificate is all that such an operation asks for.
		c.decision, c.reason = allowed, "client certificate"
		return c.ready()
	}
	c.decision = denied
	if err := c.authorize(in); err != nil {
		return err
	}
	c.decision = allowed
	return c.ready()
}

// decode fills in from body, path and query, and checks it against the model.
func (c *call) decode(in any) error {
	var check Checker
	if c.protocol.form() {
		if fields := c.decodeForm(in, &check); len(fields) > 0 {
			return invalid(fields)
		}
	} else if err := c.decodeJSON(in, &check); err != nil {
		return err
	}
	fields := check.Errors()
	if v, ok := in.(interface{ Validate() []FieldError }); ok {
		fields = append(fields, v.Validate()...)
	}
	if len(fields) > 0 {
		return invalid(fields)
	}
	return nil
}

func (c *call) decodeJSON(in any, check *Checker) error {
	body := bytes.TrimSpace(c.body)
	if c.route.HasBody && len(body) > 0 {
		if body[0] != '{' {
			return unparsable("The body is not a JSON object")
		}
		decoder := json.NewDecoder(bytes.NewReader(body))
		if err := decoder.Decode(in); err != nil {
			return unparsable("The body cannot be parsed: %s", jsonReason(err))
		}
		if _, err := decoder.Token(); err != io.EOF {
			return unparsable("Something follows the JSON object of the body")
		}
	}
	if p, ok := in.(PresenceChecker); ok {
		if len(body) == 0 {
			body = []byte("{}")
		}
		p.Presence().check(check, body)
	}
	if p, ok := in.(ParamReader); ok {
		if err := p.ReadParams(c.params); err != nil {
			return unparsable("The %s", err)
		}
	}
	return nil
}

// jsonReason says what is wrong with a JSON text, without a word of the text.
func jsonReason(err error) string {
	if e := (*json.UnmarshalTypeError)(nil); errors.As(err, &e) {
		return fmt.Sprintf("member %s must not be a JSON %s", e.Field, e.Value)
	}
	if e := (*json.SyntaxError)(nil); errors.As(err, &e) {
		return fmt.Sprintf("JSON syntax error at offset %d", e.Offset)
	}
	return "it is not the JSON that the operation takes"
}

// authorize asks whether the caller may do the operation to everything that
// the request names.
func (c *call) authorize(in any) error {
	p := c.caller.Principal
	if a, ok := in.(AccountNamer); ok && a.TargetAccount() != "" && a.TargetAccount() != p.Account {
		return Errorf(AccessDenied, "Account %s is not managed here", a.TargetAccount())
	}
	circumstances, err := c.circumstances(in)
	if err != nil {
		return err
	}
	action := c.route.service.SigningName + ":" + c.route.Name
	if len(circumstances["aws:tagkeys"]) > 0 && c.route.Creates != "" {
		// Whoever creates with tags also needs the right to tag what comes to be.
		tagging := cloneContext(circumstances)
		tagging.Set(c.route.service.SigningName+":CreateAction", c.route.Name)
		if err := c.allow(c.route.service.tagAction(), c.arn(c.route.Creates, "*"), tagging); err != nil {
			return err
		}
	}
	c.circumstancesOf = circumstances
	for _, about := range c.named(in) {
		arn, own := about.arn, cloneContext(circumstances)
		maps.Copy(own, about.keys)
		if c.server.ResourceTags != nil && arn != "*" {
			for key, value := range c.server.ResourceTags(c.request.Context(), arn) {
				own.Set("aws:ResourceTag/"+key, value)
			}
		}
		if err := c.allow(action, arn, own); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) allow(action, arn string, circumstances policy.Context) error {
	decision := c.server.Identity.Authorize(c.caller.Principal, action, arn, circumstances)
	c.reason = decision.Reason()
	if decision.Allowed {
		return nil
	}
	return c.denial(fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s", c.caller.Principal.ARN, action, arn, decision.Because()), action, arn, circumstances, decision)
}

// denial is the answer to what policies do not allow. Why is sealed: whoever
// may call DecodeAuthorizationMessage can read it, and nobody else.
func (c *call) denial(text, action, arn string, circumstances policy.Context, decision policy.Decision) error {
	var who identity.RefusalPrincipal
	if p := c.caller.Principal; p != nil {
		who = identity.RefusalPrincipal{ID: p.UserID, ARN: p.ARN}
	}
	message := c.server.Identity.EncodeRefusal(who, action, arn, circumstances, decision)
	return Errorf(AccessDenied, "%s. Encoded authorization failure message: %s", text, message)
}

// Circumstances is what conditions can ask about the request that ctx belongs
// to, apart from who makes it. It is the caller's own.
func Circumstances(ctx context.Context) policy.Context {
	if caller := CallerOf(ctx); caller != nil && caller.call != nil {
		return cloneContext(caller.call.circumstancesOf)
	}
	return policy.Context{}
}

// A subject is something that the request is about, with what conditions can
// ask about it.
type subject struct {
	arn  string
	keys policy.Context
}

// named lists what the request is about, "*" for nothing.
func (c *call) named(in any) []subject {
	var out []subject
	if l, ok := in.(ResourceLister); ok {
		describe := c.server.describers[c.route.service]
		for _, r := range l.Resources() {
			var keys policy.Context
			if describe != nil {
				r.ARN, keys = describe(&c.caller, in, r)
			} else if r.ARN == "" {
				r.ARN = c.arn(r.Type, r.ID)
			}
			out = append(out, subject{r.ARN, keys})
		}
	}
	for _, about := range out[:min(len(out), maxAudited)] {
		c.resources = append(c.resources, about.arn)
	}
	if len(out) == 0 {
		return []subject{{arn: "*"}}
	}
	return out
}

// Allowed asks whether the caller of a handler may do one thing more than the
// call itself, such as to pass a role on: an action on an ARN, with what
// conditions can ask about it. The error is the answer to the call.
func Allowed(ctx context.Context, action, arn string, keys policy.Context) error {
	caller := CallerOf(ctx)
	if caller == nil || caller.call == nil || caller.Principal == nil {
		return Errorf(AccessDenied, "Nobody is authorized to perform: %s on resource: %s", action, arn)
	}
	c := caller.call
	circumstances := cloneContext(c.circumstancesOf)
	maps.Copy(circumstances, keys)
	if err := c.allow(action, arn, circumstances); err != nil {
		c.decision = denied
		return err
	}
	return nil
}

func (c *call) arn(kind, id string) string {
	return "arn:aws:" + c.route.service.SigningName + ":" + c.server.Region + ":" + c.caller.Principal.Account + ":" + kind + "/" + id
}

// circumstances collects what conditions can ask about the request.
func (c *call) circumstances(in any) (policy.Context, error) {
	out := policy.Context{}
	out.Set("aws:RequestedRegion", c.server.Region)
	out.Set("aws:SecureTransport", fmt.Sprint(c.request.TLS != nil))
	if c.caller.SourceIP.IsValid() {
		out.Set("aws:SourceIp", c.caller.SourceIP.String())
	}
	if c.caller.UserAgent != "" {
		out.Set("aws:UserAgent", c.caller.UserAgent)
	}
	var keys []string
	if t, ok := in.(TagBringer); ok {
		for key, value := range t.RequestTags() {
			name := "aws:RequestTag/" + key
			if out[strings.ToLower(name)] != nil {
				return nil, invalid([]FieldError{{Name: "tags", Message: "Tag keys must differ in more than case"}})
			}
			out.Set(name, value)
			keys = append(keys, key)
		}
	}
	if t, ok := in.(TagKeyBringer); ok {
		keys = t.RequestTagKeys()
	}
	out.Set("aws:TagKeys", keys...)
	if k, ok := in.(KeyBringer); ok {
		for key, value := range k.ConditionKeys() {
			out.Set(key, value)
		}
	}
	return out, nil
}

func cloneContext(c policy.Context) policy.Context {
	out := make(policy.Context, len(c)+8)
	for key, values := range c {
		out[key] = values
	}
	return out
}
