package control

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"rehost/awsapi"
)

// stamp formats t as the model does; its fixed width makes stamps sort as text.
func stamp(t time.Time) string { return awsapi.DateTime(t) }

// parseStamp reads a time as the model writes it; the zero time stands for
// anything else.
func parseStamp(s string) time.Time {
	t, _ := awsapi.ParseDateTime(s)
	return t
}

// duration formats d as an ISO 8601 duration: P1DT2H3M4.5S, PT0S for nothing.
func duration(d time.Duration) string {
	d = max(0, d).Truncate(time.Millisecond)
	if d == 0 {
		return "PT0S"
	}
	var b strings.Builder
	b.WriteByte('P')
	if days := d / (24 * time.Hour); days > 0 {
		fmt.Fprintf(&b, "%dD", days)
		d -= days * 24 * time.Hour
	}
	if d == 0 {
		return b.String()
	}
	b.WriteByte('T')
	if d >= time.Hour {
		fmt.Fprintf(&b, "%dH", d/time.Hour)
		d %= time.Hour
	}
	if d >= time.Minute {
		fmt.Fprintf(&b, "%dM", d/time.Minute)
		d %= time.Minute
	}
	if d > 0 {
		seconds := fmt.Sprintf("%d.%03d", d/time.Second, d%time.Second/time.Millisecond)
		b.WriteString(strings.TrimSuffix(strings.TrimRight(seconds, "0"), ".") + "S")
	}
	return b.String()
}

// newID makes an identifier of the given prefix and 17 hexadecimal digits, as
// AWS does; chance keeps them apart.
func newID(prefix string) string {
	var b [9]byte
	rand.Read(b[:])
	return prefix + "-" + hex.EncodeToString(b[:])[:17]
}

// NewReplicatorID names a new replication server.
func NewReplicatorID() string { return newID("i") }
