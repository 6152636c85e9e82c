package awsapi

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// A Service is one API: all operations that its model describes.
type Service struct {
	Name        string // of the generated package: "mgn", "formgn"
	SigningName string // in the credential scope, and before the colon of an action: "mgn"
	Version     string // of the API: "2020-02-26"
	Protocol    Protocol
	Operations  []*Operation
}

// tagAction is what whoever creates something with tags must be allowed besides.
func (s *Service) tagAction() string {
	if s.Protocol == EC2Query {
		return s.SigningName + ":CreateTags"
	}
	return s.SigningName + ":TagResource"
}

// An Operation is what the model says of one call. It is never changed.
type Operation struct {
	SigningName string   // of its service
	Name        string   // "StartTest"
	Method      string   // of HTTP
	URI         string   // path template: "/tags/{resourceArn}"
	Success     int      // HTTP status of a good answer
	Errors      []string // names of the errors that the model allows
	ReadOnly    bool
	Idempotent  bool // may be sent twice
	Paginated   bool // takes nextToken and maxResults, gives items and nextToken
	MutualTLS   bool // authenticated by the client certificate, not by a signature
	HasBody     bool // some member of the input travels in the body
	Unsigned    bool // proves who calls by what it brings, so that anyone may send it
	// OwnPermission is whether signing it is enough for the operation to be
	// done, or to decide by itself whether it is: no policy is asked before.
	OwnPermission bool
	Creates       string // kind of resource it makes, if tags can be given to it
}

// Models is whether the model lists the error for the operation.
func (o *Operation) Models(errorName string) bool { return slices.Contains(o.Errors, errorName) }

// An Op is an operation together with the types of its input and output.
type Op[In, Out any] struct{ Operation }

// An Exception is an error in the form in which a service's model describes
// it. It is encoded as the JSON body of the answer.
type Exception interface {
	error
	ErrorName() string       // "ConflictException"
	HTTPStatus() int         // 409
	WriteHeader(http.Header) // sets the headers that belong to the error, such as Retry-After
}

// Params are the parts of a call outside its body.
type Params struct {
	Labels map[string]string // of the path, decoded
	Query  url.Values
}

// Integer reads a number from the query.
func (p Params) Integer(name string) (int64, error) {
	n, err := strconv.ParseInt(p.Query.Get(name), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("query parameter %s is not a number", name)
	}
	return n, nil
}

// SetInteger writes a number to the query.
func (p Params) SetInteger(name string, n int64) { p.Query.Set(name, strconv.FormatInt(n, 10)) }

// A ParamReader is an input with members in the path or the query.
type ParamReader interface{ ReadParams(Params) error }

// A ParamWriter is the client's side of [ParamReader].
type ParamWriter interface{ WriteParams(Params) }

// A Resource is one thing that a call acts on: a kind and an id of the
// caller's account, or a whole ARN that the request names.
type Resource struct {
	Type, ID string
	ARN      string
}

// A ResourceLister is an input that names what it acts on. All resources must
// be allowed. Inputs that name none act on "*".
type ResourceLister interface{ Resources() []Resource }

// A TagBringer is an input that puts tags on something.
type TagBringer interface{ RequestTags() map[string]string }

// A KeyBringer is an input that conditions can ask about by keys of its service's own.
type KeyBringer interface{ ConditionKeys() map[string]string }

// A TagKeyBringer is an input that takes tags away.
type TagKeyBringer interface{ RequestTagKeys() []string }

// An AccountNamer is an input that can name the account it acts on; "" is the
// caller's own.
type AccountNamer interface{ TargetAccount() string }
