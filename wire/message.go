package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"rehost/block"
)

// The preface and the shape of frames; see docs/format/wire.md.
const (
	Magic          = "REHOST\r\n"
	Version        = 3
	prefaceSize    = 12
	headerSize     = 12
	runHeaderSize  = 32
	commitSize     = 32
	ackSize        = 8
	retractSize    = 8
	hashesHeader   = 24
	differHeader   = 4
	hashSize       = len(block.Hash{})
	maxHello       = 256 << 10
	maxError       = 64 << 10
	MaxFrame       = runHeaderSize + block.MaxSums*hashSize + block.MaxRun*block.Size // longest body of any frame, in bytes
	MaxConnections = 16                                                               // of one session
	MaxOpenEpochs  = 2                                                                // epochs of one session with runs and no commit
	MaxHashes      = 256                                                              // chunks that one question may be about

	// HandshakeTimeout is all the time a connection has from the first byte of
	// TLS to a whole HELLO.
	HandshakeTimeout = 10 * time.Second
)

// A Type numbers a kind of message.
type Type uint8

// The types.
const (
	TypeHello     Type = 1
	TypeWelcome   Type = 2
	TypeRun       Type = 3
	TypeCommit    Type = 4
	TypeAck       Type = 5
	TypeRetract   Type = 6
	TypeRetracted Type = 7
	TypeError     Type = 8
	TypeAlive     Type = 9
	TypeHashes    Type = 10
	TypeDiffer    Type = 11
)

// kinds has, for each type, its name, the limits of its body and its decoder.
var kinds = [...]struct {
	name     string
	min, max int
	decode   func(body []byte) (Message, error)
}{
	TypeHello:     {"HELLO", 2, maxHello, decodeHello},
	TypeWelcome:   {"WELCOME", 2, maxHello, decodeWelcome},
	TypeRun:       {"RUN", runHeaderSize, MaxFrame, decodeRun},
	TypeCommit:    {"COMMIT", commitSize, commitSize, decodeCommit},
	TypeAck:       {"ACK", ackSize, ackSize, decodeAck},
	TypeRetract:   {"RETRACT", retractSize, retractSize, decodeRetract},
	TypeRetracted: {"RETRACTED", retractSize, retractSize, decodeRetracted},
	TypeError:     {"ERROR", 2, maxError, decodeError},
	TypeAlive:     {"ALIVE", 0, 0, func([]byte) (Message, error) { return Alive{}, nil }},
	TypeHashes:    {"HASHES", hashesHeader + hashSize, hashesHeader + MaxHashes*hashSize, decodeHashes},
	TypeDiffer:    {"DIFFER", differHeader + 1, differHeader + MaxHashes/8, decodeDiffer},
}

// String returns the name that the format's page uses.
func (t Type) String() string {
	if int(t) < len(kinds) && kinds[t].name != "" {
		return kinds[t].name
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ErrProtocol is wrapped by every error about bytes that break the rules of
// the format.
var ErrProtocol = errors.New("protocol violation")

// A Message is one of [Hello], [Welcome], [Run], [Commit], [Ack], [Retract],
// [Retracted], [*RefusedError], [Alive], [Hashes] and [Differ].
type Message interface {
	Type() Type
	appendBody(b []byte) ([]byte, error)
}

// Hello is an agent's first message on each connection.
type Hello struct {
	Server     string       `json:"server"`
	Session    string       `json:"session"`
	Index      int          `json:"index"`
	Count      int          `json:"count"`
	Generation uint64       `json:"generation,omitempty"`
	Disks      []block.Disk `json:"disks,omitempty"`
	Version    string       `json:"version,omitempty"`
}

var sessionForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Validate reports whether the fields are within the limits of the format.
func (h Hello) Validate() error {
	if !sessionForm.MatchString(h.Session) {
		return fmt.Errorf("%w: session %q is not 32 hexadecimal digits", ErrProtocol, h.Session)
	}
	if h.Count < 1 || h.Count > MaxConnections {
		return fmt.Errorf("%w: %d connections, want 1 to %d", ErrProtocol, h.Count, MaxConnections)
	}
	if h.Index < 0 || h.Index >= h.Count {
		return fmt.Errorf("%w: connection %d of %d", ErrProtocol, h.Index, h.Count)
	}
	return nil
}

// Welcome is the server's answer to [Hello].
type Welcome struct {
	Last       block.Point `json:"last"` // the last committed point; its Seq is 0 if there is none
	Generation uint64      `json:"generation"`
	MaxFrame   int         `json:"maxFrame"`
	Codecs     []string    `json:"codecs,omitempty"` // by name; a server that says none knows zero, raw and zstd
}

// Run is a run of an epoch. On the server its payload may be in a buffer of
// the package: [Run.Free].
type Run struct {
	Epoch   block.Seq
	Ordinal uint64
	Run     block.Run

	buffer *[]byte
}

// Commit says that an epoch is whole: so many runs, on all connections together.
type Commit struct {
	Point block.Point
	Runs  uint64
	Flags block.Flags
}

// Ack says that the epoch and all before it are durable.
type Ack struct{ Epoch block.Seq }

// Retract asks to withdraw every point after an epoch.
type Retract struct{ After block.Seq }

// Retracted says that the points after an epoch are withdrawn.
type Retracted struct{ After block.Seq }

// Alive says nothing else.
type Alive struct{}

// Type returns [TypeHello].
func (Hello) Type() Type { return TypeHello }

// Type returns [TypeWelcome].
func (Welcome) Type() Type { return TypeWelcome }

// Type returns [TypeRun].
func (Run) Type() Type { return TypeRun }

// Type returns [TypeCommit].
func (Commit) Type() Type { return TypeCommit }

// Type returns [TypeAck].
func (Ack) Type() Type { return TypeAck }

// Type returns [TypeRetract].
func (Retract) Type() Type { return TypeRetract }

// Type returns [TypeRetracted].
func (Retracted) Type() Type { return TypeRetracted }

// Type returns [TypeAlive].
func (Alive) Type() Type { return TypeAlive }

func (h Hello) appendBody(b []byte) ([]byte, error)         { return appendJSON(b, h) }
func (w Welcome) appendBody(b []byte) ([]byte, error)       { return appendJSON(b, w) }
func (e *RefusedError) appendBody(b []byte) ([]byte, error) { return appendJSON(b, e) }
func (Alive) appendBody(b []byte) ([]byte, error)           { return b, nil }

func appendJSON(b []byte, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	return append(b, text...), err
}

func decodeJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

func decodeHello(body []byte) (Message, error) {
	var h Hello
	if err := decodeJSON(body, &h); err != nil {
		return nil, err
	}
	return h, h.Validate()
}

func decodeWelcome(body []byte) (Message, error) {
	var w Welcome
	err := decodeJSON(body, &w)
	return w, err
}

func decodeError(body []byte) (Message, error) {
	e := &RefusedError{}
	return e, decodeJSON(body, e)
}

// Size returns the bytes that the frame takes on the wire. A run of zeros has
// no payload, but a size.
func (r Run) Size() int64 {
	return int64(headerSize + runHeaderSize + len(r.Run.Sums)*hashSize + len(r.Run.Payload))
}

func (r Run) appendHeader(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Epoch))
	b = binary.BigEndian.AppendUint64(b, r.Ordinal)
	b = binary.BigEndian.AppendUint64(b, r.Run.Extent.Start)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Run.Extent.Count))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Run.Extent.Disk))
	b = append(b, byte(r.Run.Codec), 0)
	for i := range r.Run.Sums {
		b = append(b, r.Run.Sums[i][:]...)
	}
	return b
}

func (r Run) appendBody(b []byte) ([]byte, error) {
	if err := r.Run.Validate(); err != nil { // its count fits 32 bits then
		return b, err
	}
	return append(r.appendHeader(b), r.Run.Payload...), nil
}

func decodeRun(body []byte) (Message, error) {
	if body[31] != 0 {
		return nil, fmt.Errorf("%w: unknown flags %#x", ErrProtocol, body[31])
	}
	r := Run{
		Epoch:   block.Seq(binary.BigEndian.Uint64(body)),
		Ordinal: binary.BigEndian.Uint64(body[8:]),
		Run: block.Run{
			Extent: block.Extent{
				Start: binary.BigEndian.Uint64(body[16:]),
				Count: uint64(binary.BigEndian.Uint32(body[24:])),
				Disk:  block.DiskID(binary.BigEndian.Uint16(body[28:])),
			},
			Codec: block.Codec(body[30]),
		},
	}
	payload := body[runHeaderSize:]
	if n := r.Run.Codec.Sums(r.Run.Extent); n > 0 {
		if n > block.MaxSums || len(payload) < n*hashSize {
			return nil, fmt.Errorf("%w: %v with %d hashes in %d bytes", ErrProtocol, r.Run.Extent, n, len(payload))
		}
		r.Run.Sums = decodeHashList(payload[:n*hashSize])
		payload = payload[n*hashSize:]
	}
	r.Run.Payload = payload
	if err := r.Run.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return r, nil
}

func (c Commit) appendBody(b []byte) ([]byte, error) {
	b = binary.BigEndian.AppendUint64(b, uint64(c.Point.Seq))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Point.Time.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, c.Runs)
	b = binary.BigEndian.AppendUint32(b, uint32(c.Flags))
	return binary.BigEndian.AppendUint32(b, 0), nil
}

func decodeCommit(body []byte) (Message, error) {
	c := Commit{
		Point: block.Point{
			Seq:  block.Seq(binary.BigEndian.Uint64(body)),
			Time: time.Unix(0, int64(binary.BigEndian.Uint64(body[8:]))).UTC(),
		},
		Runs:  binary.BigEndian.Uint64(body[16:]),
		Flags: block.Flags(binary.BigEndian.Uint32(body[24:])),
	}
	if !c.Flags.Known() {
		return nil, fmt.Errorf("%w: unknown flags %v", ErrProtocol, c.Flags)
	}
	if c.Point.Seq.IsZero() || binary.BigEndian.Uint32(body[28:]) != 0 {
		return nil, fmt.Errorf("%w: commit of epoch %v with reserved bytes %x", ErrProtocol, c.Point.Seq, body[28:])
	}
	return c, nil
}

func appendSeq(b []byte, s block.Seq) []byte { return binary.BigEndian.AppendUint64(b, uint64(s)) }
func decodeSeq(body []byte) block.Seq        { return block.Seq(binary.BigEndian.Uint64(body)) }

func (a Ack) appendBody(b []byte) ([]byte, error)       { return appendSeq(b, a.Epoch), nil }
func (r Retract) appendBody(b []byte) ([]byte, error)   { return appendSeq(b, r.After), nil }
func (r Retracted) appendBody(b []byte) ([]byte, error) { return appendSeq(b, r.After), nil }

func decodeAck(body []byte) (Message, error)       { return Ack{decodeSeq(body)}, nil }
func decodeRetract(body []byte) (Message, error)   { return Retract{decodeSeq(body)}, nil }
func decodeRetracted(body []byte) (Message, error) { return Retracted{decodeSeq(body)}, nil }
