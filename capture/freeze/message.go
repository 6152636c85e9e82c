package freeze

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The layout of a message: docs/format/freezer.md.
const (
	magic   = "RHFZ"
	version = 1

	offVersion = 4
	offKind    = 5
	offLength  = 6
	offValue   = 8
	headSize   = 16
	maxLength  = 1024
	maxDisks   = 64
	diskSize   = 8
)

// A kind says what a message is.
type kind uint8

const (
	kindPrepare  kind = 1
	kindFreeze   kind = 2
	kindThaw     kind = 3
	kindPrepared kind = 129
	kindFrozen   kind = 130
	kindThawed   kind = 131
	kindRefused  kind = 255
)

// A Code says why a freezer refused something.
type Code uint64

// The codes.
const (
	Malformed  Code = 1 // not a message, or not one for now
	Stranger   Code = 2 // whoever asks may not
	Unprepared Code = 3 // FREEZE without PREPARE
	Unknown    Code = 4 // no such disk
	Nothing    Code = 5 // nothing on the disks can be frozen
	Soon       Code = 6 // the last freeze was too short a time ago
	Failed     Code = 7 // it could not be done, and nothing is frozen
)

// A RefusedError is a freezer that does not do what it was asked for.
type RefusedError struct {
	Code Code
	Text string // why, for people
}

func (e *RefusedError) Error() string { return "the freezer refuses: " + e.Text }

func refuse(code Code, format string, args ...any) *RefusedError {
	return &RefusedError{code, fmt.Sprintf(format, args...)}
}

// A message is a question or its answer.
type message struct {
	kind  kind
	value uint64
	body  []byte
}

var errMalformed = errors.New("not a message of a freezer")

// append encodes m, whose body is cut where it is too long.
func (m message) append(b []byte) []byte {
	body := m.body[:min(len(m.body), maxLength)]
	b = append(b, magic...)
	b = append(b, version, byte(m.kind))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(body)))
	b = binary.LittleEndian.AppendUint64(b, m.value)
	return append(b, body...)
}

// parseHead decodes the head of a message, and says how much follows.
func parseHead(b []byte) (m message, length int, err error) {
	length = int(binary.LittleEndian.Uint16(b[offLength:]))
	if string(b[:len(magic)]) != magic || b[offVersion] != version || length > maxLength {
		return m, 0, errMalformed
	}
	return message{kind: kind(b[offKind]), value: binary.LittleEndian.Uint64(b[offValue:])}, length, nil
}

func appendDisks(b []byte, disks []uint64) []byte {
	for _, d := range disks {
		b = binary.LittleEndian.AppendUint32(b, unix.Major(d))
		b = binary.LittleEndian.AppendUint32(b, unix.Minor(d))
	}
	return b
}

func parseDisks(b []byte) (disks []uint64, err error) {
	if n := len(b) / diskSize; n == 0 || n > maxDisks || len(b)%diskSize != 0 {
		return nil, errMalformed
	}
	for ; len(b) > 0; b = b[diskSize:] {
		disks = append(disks, unix.Mkdev(binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])))
	}
	return disks, nil
}

// now is the kernel's monotonic clock, which all processes share.
func now() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // there always is one
	return time.Duration(ts.Nano())
}
