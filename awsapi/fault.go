package awsapi

import (
	"fmt"
	"net/http"
)

// A Fault is a kind of error that the model of a query service describes; the
// generated packages have one for each.
type Fault struct {
	Code   string // "NoSuchEntity"
	Status int    // of HTTP: 404
}

// Errorf is the answer to a call that failed so.
func (f *Fault) Errorf(format string, args ...any) error {
	return &FaultError{Fault: f, Message: fmt.Sprintf(format, args...)}
}

// A FaultError is one such failure. It implements [Exception].
type FaultError struct {
	*Fault
	Message string
}

func (e *FaultError) Error() string { return e.Code + ": " + e.Message }

// ErrorName implements [Exception].
func (e *FaultError) ErrorName() string { return e.Code }

// HTTPStatus implements [Exception].
func (e *FaultError) HTTPStatus() int { return e.Status }

// WriteHeader implements [Exception].
func (e *FaultError) WriteHeader(http.Header) {}

// QueryCode is the error's code and HTTP status in the query protocol.
func (e *FaultError) QueryCode() (code string, status int) { return e.Code, e.Status }
