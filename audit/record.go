package audit

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"
)

// EventVersion is the version of CloudTrail's record that a [Record] has the
// shape of.
const EventVersion = "1.11"

// The event types.
const (
	APICall      = "AwsApiCall"
	ServiceEvent = "AwsServiceEvent"
)

// EventSource is the source of service events.
const EventSource = "rehost.internal"

// A Record is one event, in the shape of a CloudTrail record ("CloudTrail record
// contents for management events"). [Log.Append] fills in what is the same in all
// of them: EventVersion, EventID, ManagementEvent, EventCategory, and where they
// are empty EventTime, AWSRegion, RecipientAccountID and EventType.
type Record struct {
	EventVersion        string               `json:"eventVersion"`
	UserIdentity        UserIdentity         `json:"userIdentity"`
	EventTime           time.Time            `json:"eventTime"` // to the second
	EventSource         string               `json:"eventSource"`
	EventName           string               `json:"eventName"`
	AWSRegion           string               `json:"awsRegion"`
	SourceIPAddress     string               `json:"sourceIPAddress,omitempty"`
	UserAgent           string               `json:"userAgent,omitempty"`
	ErrorCode           string               `json:"errorCode,omitempty"`
	ErrorMessage        string               `json:"errorMessage,omitempty"`
	RequestParameters   any                  `json:"requestParameters"`
	ResponseElements    any                  `json:"responseElements"`
	AdditionalEventData *AdditionalEventData `json:"additionalEventData,omitempty"`
	RequestID           string               `json:"requestID,omitempty"`
	EventID             string               `json:"eventID"`
	ReadOnly            bool                 `json:"readOnly"`
	Resources           []Resource           `json:"resources,omitempty"`
	EventType           string               `json:"eventType"`
	ManagementEvent     bool                 `json:"managementEvent"`
	RecipientAccountID  string               `json:"recipientAccountId"`
	EventCategory       string               `json:"eventCategory"`
	ServiceEventDetails any                  `json:"serviceEventDetails,omitempty"`
	TLSDetails          *TLSDetails          `json:"tlsDetails,omitempty"`
}

// A UserIdentity is who made a call.
type UserIdentity struct {
	Type           string          `json:"type"` // IAMUser, AssumedRole, AWSService, Unknown
	PrincipalID    string          `json:"principalId,omitempty"`
	ARN            string          `json:"arn,omitempty"`
	AccountID      string          `json:"accountId,omitempty"`
	AccessKeyID    string          `json:"accessKeyId,omitempty"`
	UserName       string          `json:"userName,omitempty"`
	SessionContext *SessionContext `json:"sessionContext,omitempty"`
	InvokedBy      string          `json:"invokedBy,omitempty"`
}

// A SessionContext is the session that temporary credentials are of.
type SessionContext struct {
	SessionIssuer  *SessionIssuer    `json:"sessionIssuer,omitempty"`
	Attributes     SessionAttributes `json:"attributes"`
	SourceIdentity string            `json:"sourceIdentity,omitempty"`
}

// A SessionIssuer is whose session it is: the role's.
type SessionIssuer struct {
	Type        string `json:"type"` // Role
	PrincipalID string `json:"principalId,omitempty"`
	ARN         string `json:"arn,omitempty"`
	AccountID   string `json:"accountId,omitempty"`
	UserName    string `json:"userName,omitempty"`
}

// SessionAttributes says when a session began.
type SessionAttributes struct {
	CreationDate time.Time `json:"creationDate"`
}

// AdditionalEventData is what CloudTrail has no member for.
type AdditionalEventData struct {
	Decision         string `json:"decision,omitempty"` // allowed, denied, refused
	Reason           string `json:"reason,omitempty"`   // the statement that decided
	TookMicroseconds int64  `json:"tookMicroseconds"`
	HTTPStatus       int    `json:"httpStatus,omitempty"`
	NotRecorded      int64  `json:"notRecorded,omitempty"` // refused calls of strangers before this one

	Repeated *Repeated `json:"repeated,omitempty"` // the record stands for several calls
}

// A Resource is one thing that the call was about.
type Resource struct {
	ARN       string `json:"ARN"`
	AccountID string `json:"accountId,omitempty"`
	Type      string `json:"type,omitempty"` // AWS::MGN::SourceServer
}

// TLSDetails says how the connection was protected.
type TLSDetails struct {
	TLSVersion               string `json:"tlsVersion"`
	CipherSuite              string `json:"cipherSuite"`
	ClientProvidedHostHeader string `json:"clientProvidedHostHeader,omitempty"`
}

// maxRecord is how large a record may be, in bytes of JSON. What is larger
// goes without input and output, which are what callers can make large.
const maxRecord = 64 << 10

type omitted struct {
	Omitted int `json:"omittedBytes"`
}

// encode is the JSON of the record. There is always one: what is too large, or
// cannot be written as JSON, is left out.
func (r Record) encode() ([]byte, error) {
	text, err := json.Marshal(r)
	if err == nil && len(text) <= maxRecord {
		return text, nil
	}
	size := omitted{len(text)}
	r.RequestParameters, r.ResponseElements = size, nil
	if r.ServiceEventDetails != nil {
		r.ServiceEventDetails = size
	}
	if text, err = json.Marshal(r); err == nil && len(text) <= maxRecord {
		return text, nil
	}
	r.Resources, r.UserAgent, r.ErrorMessage = nil, "", ""
	if text, err = json.Marshal(r); err == nil && len(text) > maxRecord {
		err = fmt.Errorf("it has %d bytes without what may be left out, the most is %d", len(text), maxRecord)
	}
	if err != nil {
		return nil, fmt.Errorf("encode record of %s: %w", r.EventName, err)
	}
	return text, nil
}

// NewID makes a random UUID.
func NewID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
