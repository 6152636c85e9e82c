package awsapi

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
)

// succeedEC2 writes
//
//	<NameResponse><requestId>…</requestId>…
//
// with the members of the result, or <return>true</return> if the model has none.
func (c *call) succeedEC2(w http.ResponseWriter, out any) error {
	x := &xmlWriter{ec2: true}
	x.open(c.route.Name+"Response", "http://ec2.amazonaws.com/doc/"+c.route.service.Version+"/")
	x.text("requestId", c.caller.RequestID)
	if v := reflect.Indirect(reflect.ValueOf(out)); v.NumField() > 0 {
		x.members(v)
	} else {
		x.text("return", "true")
	}
	x.close(c.route.Name + "Response")
	if x.err != nil {
		return fmt.Errorf("encode answer: %w", x.err)
	}
	x.send(w, http.StatusOK)
	return nil
}

// failEC2 writes an error and returns its status.
func (c *call) failEC2(w http.ResponseWriter, e Exception) int {
	code, status := e.ErrorName(), e.HTTPStatus()
	if ours, ok := e.(*Error); ok {
		code, status = ours.ec2Code()
	}
	x := new(xmlWriter)
	x.open("Response", "")
	x.open("Errors", "")
	x.open("Error", "")
	x.text("Code", code)
	x.text("Message", strings.TrimPrefix(e.Error(), e.ErrorName()+": "))
	x.close("Error")
	x.close("Errors")
	x.text("RequestID", c.caller.RequestID)
	x.close("Response")
	x.send(w, status)
	return status
}

// ec2Code is the error's code and HTTP status where EC2 has others than IAM and STS.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
func (e *Error) ec2Code() (code string, status int) {
	switch e.Name {
	case AccessDenied:
		return "UnauthorizedOperation", http.StatusForbidden
	case Throttling:
		return "RequestLimitExceeded", http.StatusServiceUnavailable
	case InternalServer:
		return "InternalError", http.StatusInternalServerError
	case Validation:
		for _, f := range e.Fields {
			if f.Message == missing {
				return "MissingParameter", http.StatusBadRequest
			}
		}
		return "InvalidParameterValue", http.StatusBadRequest
	}
	return e.QueryCode()
}
