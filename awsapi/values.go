package awsapi

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// Redacted is what a sensitive value prints as.
const Redacted = "**redacted**"

// A Timestamp is a time that travels as a JSON number: seconds since 1970,
// with milliseconds as a fraction. Members that are called …DateTime in the
// MGN model are strings instead, see [DateTime].
type Timestamp struct{ time.Time }

// MarshalJSON implements [json.Marshaler].
func (t Timestamp) MarshalJSON() ([]byte, error) {
	ms := t.UnixMilli()
	return json.Marshal(float64(ms) / 1000)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (t *Timestamp) UnmarshalJSON(text []byte) error {
	var seconds float64
	if err := json.Unmarshal(text, &seconds); err != nil {
		return err
	}
	if math.Abs(seconds) > 1e12 {
		return fmt.Errorf("timestamp %v is out of range", seconds)
	}
	t.Time = time.UnixMilli(int64(math.Round(seconds * 1000))).UTC()
	return nil
}

// dateTime is ISO 8601 in UTC with microseconds, as MGN answers.
const dateTime = "2006-01-02T15:04:05.000000Z"

// DateTime is the text of an ISO8601DatetimeString member. The zero time is
// "", which an optional member leaves out.
func DateTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(dateTime)
}

// ParseDateTime reads such a text, with or without a fraction.
func ParseDateTime(s string) (time.Time, error) {
	t, err := time.Parse("2006-01-02T15:04:05Z", s)
	if err != nil {
		return time.Time{}, fmt.Errorf("date and time %.40q: want the form 2006-01-02T15:04:05Z", s)
	}
	return t.UTC(), nil
}

// Value is what an optional member holds, the zero value if it is absent.
func Value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
