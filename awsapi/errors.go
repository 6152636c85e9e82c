package awsapi

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// An Error is an answer other than success, for those errors that are the same
// in every service and for those who build several services. It implements
// [Exception], as the generated error types do.
type Error struct {
	Name       string        `json:"-"`
	Message    string        `json:"message"`
	Code       string        `json:"code,omitempty"`
	Reason     string        `json:"reason,omitempty"`    // of a ValidationException
	Fields     []FieldError  `json:"fieldList,omitempty"` // of a ValidationException
	ResourceID string        `json:"resourceId,omitempty"`
	Resource   string        `json:"resourceType,omitempty"`
	RetryAfter time.Duration `json:"-"`
}

func (e *Error) Error() string { return e.Name + ": " + e.Message }

// ErrorName implements [Exception].
func (e *Error) ErrorName() string { return e.Name }

// HTTPStatus implements [Exception].
func (e *Error) HTTPStatus() int {
	if k, ok := kinds[e.Name]; ok {
		return k.status
	}
	return http.StatusInternalServerError
}

// QueryCode is the error's code and HTTP status in the query protocol, which
// iam and sts speak.
func (e *Error) QueryCode() (code string, status int) {
	if k, ok := kinds[e.Name]; ok {
		return k.query, k.queryStatus
	}
	return e.Name, e.HTTPStatus()
}

// WriteHeader implements [Exception].
func (e *Error) WriteHeader(h http.Header) {
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
}

// Names of errors, as services that speak JSON have them.
const (
	AccessDenied          = "AccessDeniedException"
	Conflict              = "ConflictException"
	InternalServer        = "InternalServerException"
	NotFound              = "ResourceNotFoundException"
	QuotaExceeded         = "ServiceQuotaExceededException"
	Throttling            = "ThrottlingException"
	Uninitialized         = "UninitializedAccountException"
	Validation            = "ValidationException"
	UnknownOperation      = "UnknownOperationException"
	NotImplemented        = "NotImplementedException"
	TooLarge              = "RequestEntityTooLargeException"
	MissingAuthentication = "MissingAuthenticationTokenException"
	IncompleteSignature   = "IncompleteSignatureException"
	InvalidSignature      = "InvalidSignatureException"
	UnrecognizedClient    = "UnrecognizedClientException"
	ExpiredToken          = "ExpiredTokenException"
)

// A kind is how one error is answered, by the protocol of its service.
type kind struct {
	status      int    // of HTTP, beside the name, in JSON
	query       string // code in the query protocol
	queryStatus int
}

// kinds has both forms of each error. Those of the query protocol are the
// common errors of IAM and STS.
// https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html
var kinds = map[string]kind{
	AccessDenied:     {http.StatusForbidden, "AccessDenied", http.StatusForbidden},
	Conflict:         {http.StatusConflict, "EntityAlreadyExists", http.StatusConflict},
	InternalServer:   {http.StatusInternalServerError, "InternalFailure", http.StatusInternalServerError},
	NotFound:         {http.StatusNotFound, "NoSuchEntity", http.StatusNotFound},
	QuotaExceeded:    {http.StatusPaymentRequired, "LimitExceeded", http.StatusConflict}, // 402: so has MGN's model
	Throttling:       {http.StatusTooManyRequests, "Throttling", http.StatusBadRequest},
	Uninitialized:    {http.StatusBadRequest, "OptInRequired", http.StatusForbidden},
	Validation:       {http.StatusBadRequest, "ValidationError", http.StatusBadRequest},
	UnknownOperation: {http.StatusNotFound, "InvalidAction", http.StatusBadRequest},
	// The SDKs repeat a 500, which would be in vain; they do not repeat a 501.
	NotImplemented:        {http.StatusNotImplemented, "NotImplemented", http.StatusNotImplemented},
	TooLarge:              {http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", http.StatusRequestEntityTooLarge},
	MissingAuthentication: {http.StatusForbidden, "MissingAuthenticationToken", http.StatusForbidden},
	IncompleteSignature:   {http.StatusForbidden, "IncompleteSignature", http.StatusBadRequest},
	InvalidSignature:      {http.StatusForbidden, "SignatureDoesNotMatch", http.StatusForbidden},
	UnrecognizedClient:    {http.StatusForbidden, "InvalidClientTokenId", http.StatusForbidden},
	ExpiredToken:          {http.StatusForbidden, "ExpiredToken", http.StatusForbidden},
}

// Errorf makes an error of a name, which is one of the constants above.
func Errorf(name, format string, args ...any) *Error {
	return &Error{Name: name, Message: fmt.Sprintf(format, args...)}
}

// Reasons of a ValidationException.
const (
	reasonUnknownOperation = "unknownOperation"
	reasonCannotParse      = "cannotParse"
	reasonFields           = "fieldValidationFailed"
)

// invalid is the answer to a request that the model does not allow.
func invalid(fields []FieldError) *Error {
	message := fmt.Sprintf("%d validation errors detected", len(fields))
	if len(fields) == 1 {
		message = "1 validation error detected"
	}
	for i, f := range fields {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		message += fmt.Sprintf("%sValue at '%s' failed to satisfy constraint: %s", sep, f.Name, f.Message)
	}
	return &Error{Name: Validation, Message: message, Reason: reasonFields, Fields: fields}
}

func unparsable(format string, args ...any) *Error {
	e := Errorf(Validation, format, args...)
	e.Reason = reasonCannotParse
	return e
}
