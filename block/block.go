package block

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Size is the length of a block in bytes. Changes are tracked, sent, stored and
// restored in whole blocks.
const Size = 4096

// A DiskID numbers a disk within one source server. It is given once, by the
// service, and never given to another disk of that server again.
type DiskID uint16

// String returns the form used in logs and file names: d0, d1, ...
func (d DiskID) String() string { return "d" + strconv.Itoa(int(d)) }

// A Disk describes one disk of a source server as the replica knows it.
type Disk struct {
	ID   DiskID `json:"id"`
	Name string `json:"name"` // device name on the source, as MGN's deviceName: /dev/sda
	Size int64  `json:"size"` // bytes; not necessarily a multiple of [Size]
	Boot bool   `json:"boot"` // the firmware starts from this disk

	// Serial tells disks apart across reboots, when names may change: a serial
	// number, WWN or partition table id with its kind in front ("wwn:...").
	// Empty where the disk has none.
	Serial string `json:"serial,omitempty"`
}

// Unmarked reports whether nothing in the disk's hardware tells it from others: its
// Serial is the id of a partition table, which can be written anew, or empty.
func (d Disk) Unmarked() bool {
	return d.Serial == "" || strings.HasPrefix(d.Serial, "gpt:") || strings.HasPrefix(d.Serial, "mbr:")
}

// Blocks is the number of blocks that the disk covers, a partial last one included.
func (d Disk) Blocks() uint64 { return (uint64(d.Size) + Size - 1) / Size }

// A Seq is the number of an epoch of one source server. Committed epochs count
// up from 1; 0 means none. Its text form has a fixed width, so that it sorts.
type Seq uint64

// String returns s as 16 hexadecimal digits.
func (s Seq) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// IsZero reports whether s names no epoch.
func (s Seq) IsZero() bool { return s == 0 }

// ErrBadSeq is returned by [ParseSeq] for text that [Seq.String] did not write.
var ErrBadSeq = errors.New("epoch number is not 16 lower-case hexadecimal digits")

// ParseSeq is the inverse of [Seq.String]; nothing else is accepted.
func ParseSeq(text string) (Seq, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || Seq(n).String() != text {
		return 0, fmt.Errorf("parse %q: %w", text, ErrBadSeq)
	}
	return Seq(n), nil
}

// MarshalText makes Seq travel through JSON in its text form.
func (s Seq) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of [Seq.MarshalText].
func (s *Seq) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSeq(string(text))
	return err
}

// A Point is a committed epoch: for all disks of the server together, the
// replica at Seq equals what a power cut at Time would have left.
type Point struct {
	Seq  Seq       `json:"seq"`
	Time time.Time `json:"time"` // on the source server's clock
}
