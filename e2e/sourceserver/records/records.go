// Package records is the evidence that the test source server writes and that a
// replica is judged by: numbered, checksummed records, made durable on disk A
// first and on disk B afterwards. In any crash-consistent copy of both disks,
// no number is missing, and B is never ahead of A.
//
// A log is a ring of [Slots] slots of [SlotSize] bytes; record n lies in slot n
// mod Slots. A record is
//
//	offset  size  field
//	     0     8  magic "RHRECOR1"
//	     8    16  run: random, one per start of the writer
//	    24     8  number, from 1
//	    32     4  length of the whole record, 512 to 4096
//	    36    32  SHA-256 of the bytes 0-35 and 68-length
//	    68        payload, whose bytes depend on run and number
//
// with integers in little-endian order.
package records

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
)

// Sizes of a log.
const (
	SlotSize   = 4096
	Slots      = 8192
	minRecord  = 512
	headerSize = 68
)

var magic = []byte("RHRECOR1")

// A Record is one entry of a log.
type Record struct {
	Run    [16]byte
	Number uint64
	data   []byte // encoded
}

// New makes the record of a number; equal arguments give equal bytes.
func New(run [16]byte, number uint64) Record {
	var seed [32]byte
	copy(seed[:], run[:])
	binary.LittleEndian.PutUint64(seed[16:], number)
	r := rand.NewChaCha8(seed)
	length := minRecord + int(r.Uint64()%(SlotSize-minRecord+1))
	b := make([]byte, length)
	copy(b, magic)
	copy(b[8:], run[:])
	binary.LittleEndian.PutUint64(b[24:], number)
	binary.LittleEndian.PutUint32(b[32:], uint32(length))
	_, _ = r.Read(b[headerSize:]) // never fails
	sum := checksum(b)
	copy(b[36:], sum[:])
	return Record{run, number, b}
}

func checksum(b []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(b[:36])
	h.Write(b[headerSize:])
	h.Sum(sum[:0])
	return sum
}

// ErrBad is returned for bytes that are no whole record.
var ErrBad = errors.New("bad record")

// Parse reads the record at the start of a slot.
func Parse(slot []byte) (Record, error) {
	if len(slot) < minRecord || !bytes.Equal(slot[:8], magic) {
		return Record{}, fmt.Errorf("%w: no magic", ErrBad)
	}
	length := binary.LittleEndian.Uint32(slot[32:])
	if length < minRecord || length > SlotSize || int(length) > len(slot) {
		return Record{}, fmt.Errorf("%w: length %d", ErrBad, length)
	}
	b := bytes.Clone(slot[:length])
	if sum := checksum(b); !bytes.Equal(sum[:], b[36:headerSize]) {
		return Record{}, fmt.Errorf("%w: checksum", ErrBad)
	}
	return Record{[16]byte(b[8:24]), binary.LittleEndian.Uint64(b[24:]), b}, nil
}

// Offset is where the record lies in its log.
func (r Record) Offset() int64 { return int64(r.Number%Slots) * SlotSize }

// WriteTo stores the record in its slot. It is not durable before a sync.
func (r Record) WriteTo(w io.WriterAt) error {
	_, err := w.WriteAt(r.data, r.Offset())
	return err
}

// A Report is what a log holds.
type Report struct {
	Run   string `json:"run"`   // of the last record
	First uint64 `json:"first"` // oldest number that the ring still holds; 0: none
	Last  uint64 `json:"last"`
	Count int    `json:"count"`
	Gaps  uint64 `json:"gaps"` // numbers that should be there and are not
	Bad   int    `json:"bad"`  // slots that hold something that is no record, or another slot's

	// Torn: the slot behind Last holds a write that was cut short, which is what a
	// power cut may leave. It is not counted under Bad.
	Torn bool `json:"torn"`
}

// OK reports whether the log is what a correct disk must hold.
func (r Report) OK() bool { return r.Gaps == 0 && r.Bad == 0 }

// Verify reads a log, the bytes of the file, from begin to end.
func Verify(log io.Reader) (Report, error) {
	var (
		rep  Report
		good []Record
		bad  []int
		slot = make([]byte, SlotSize)
	)
	for i := 0; ; i++ {
		clear(slot)
		n, err := io.ReadFull(log, slot)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return rep, fmt.Errorf("read slot %d: %w", i, err)
		}
		if n == 0 {
			break
		}
		if r, err := Parse(slot); err == nil && int(r.Number%Slots) == i {
			r.data = nil
			good = append(good, r)
		} else if len(bytes.Trim(slot, "\x00")) != 0 {
			bad = append(bad, i)
		}
	}
	rep.judge(good, bad)
	return rep, nil
}

func (rep *Report) judge(good []Record, bad []int) {
	slices.SortFunc(good, func(a, b Record) int {
		if a.Number < b.Number {
			return -1
		}
		return 1
	})
	if n := len(good); n > 0 {
		rep.First, rep.Last, rep.Count = good[0].Number, good[n-1].Number, n
		rep.Run = fmt.Sprintf("%x", good[n-1].Run)
		// Nothing may be missing up to the beginning, or to the ring's length.
		expected := uint64(1)
		if rep.Last > Slots {
			expected = rep.Last - Slots + 1
		}
		held := uint64(0)
		for _, r := range good {
			if r.Number >= expected {
				held++
			} else {
				rep.Bad++ // a record that must have been written over long ago
			}
		}
		rep.Gaps = rep.Last - expected + 1 - held
	}
	for _, i := range bad {
		if uint64(i) == (rep.Last+1)%Slots {
			rep.Torn = true
			continue
		}
		rep.Bad++
	}
	if rep.Torn && rep.Last >= Slots && rep.Gaps > 0 && rep.First == rep.Last-Slots+2 {
		rep.Gaps-- // the torn write took the place of the oldest record
	}
}

// A Verdict is about both logs of one server.
type Verdict struct {
	A      Report `json:"a"`
	B      Report `json:"b"`
	Ahead  bool   `json:"bAheadOfA"`  // B holds a record that A does not: impossible on a correct pair of disks
	Behind uint64 `json:"bBehindBy"`  // records that A holds and B does not
	OK     bool   `json:"consistent"` // both logs are OK, B is at most one record behind and not ahead
}

// Judge verifies the logs of disk A and disk B as they were at one instant.
func Judge(a, b io.Reader) (v Verdict, err error) {
	if v.A, err = Verify(a); err != nil {
		return v, fmt.Errorf("log A: %w", err)
	}
	if v.B, err = Verify(b); err != nil {
		return v, fmt.Errorf("log B: %w", err)
	}
	v.Ahead = v.B.Last > v.A.Last
	if !v.Ahead {
		v.Behind = v.A.Last - v.B.Last
	}
	v.OK = v.A.OK() && v.B.OK() && !v.Ahead && v.Behind <= 1
	return v, nil
}
