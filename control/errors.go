package control

import (
	"errors"
	"fmt"

	"rehost/awsapi/mgn"
)

// The answers of the service that are errors. Each operation has only some of
// these shapes in the model, so it is the operation that chooses.

func notFound(kind, id string) error {
	return &mgn.ResourceNotFoundException{Message: fmt.Sprintf("%s %s does not exist", kind, id), ResourceId: id, ResourceType: kind, Code: "NOT_FOUND"}
}

func noServer(id string) error { return notFound("SourceServer", id) }

func conflict(kind, id, message string) error {
	return &mgn.ConflictException{Message: message, ResourceId: id, ResourceType: kind, Code: "CONFLICT"}
}

// conflicts is the answer to a call on several servers, with a reason for each.
func conflicts(details []mgn.ErrorDetails) error {
	return &mgn.ConflictException{Message: details[0].Message, Code: "CONFLICT", ResourceId: details[0].ResourceId,
		ResourceType: details[0].ResourceType, Errors: details}
}

func invalid(field, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	e := &mgn.ValidationException{Message: text, Reason: "other"}
	if field != "" {
		e.Reason = "fieldValidationFailed"
		e.FieldList = []mgn.ValidationExceptionField{{Name: field, Message: text}}
	}
	return e
}

func denied(format string, args ...any) error {
	return &mgn.AccessDeniedException{Message: fmt.Sprintf(format, args...)}
}

func uninitialized() error {
	return &mgn.UninitializedAccountException{Message: "the service has not been initialized: call InitializeService first (aws mgn initialize-service)"}
}

// orNotFound turns the lookup of an unknown server into the model's error.
func orNotFound(err error, id string) error {
	if errors.Is(err, errNoServer) {
		return noServer(id)
	}
	return err
}
