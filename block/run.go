package block

import (
	"errors"
	"fmt"
	"math"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// MaxRun is the most blocks that a run with content may cover (1 MiB). A run of
// zeros may cover up to [math.MaxUint32] blocks, since it has no payload.
const MaxRun = 256

// MaxSums is how many hashes a run has at most.
const MaxSums = MaxRun / ChunkBlocks

// A Codec says how a run's payload stands for its blocks. The numbers are part
// of the wire and segment formats and never change their meaning.
type Codec uint8

// The codecs.
const (
	Zero Codec = 0 // every byte is zero; no payload
	Raw  Codec = 1 // the bytes themselves
	Zstd Codec = 2 // one Zstandard frame (RFC 8878) of the bytes
	S2   Codec = 3 // one S2 block of the bytes: Snappy's block format with repeats, as github.com/klauspost/compress/s2 writes it
)

// Codecs are all that there are.
var Codecs = []Codec{Zero, Raw, Zstd, S2}

// String returns the codec's name.
func (c Codec) String() string {
	switch c {
	case Zero:
		return "zero"
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Sums is how many hashes a run of this codec has for its extent, or more than
// [MaxSums] where no run may be so long.
func (c Codec) Sums(e Extent) int {
	if c == Zero {
		return 0
	}
	_, n := e.Chunks()
	return int(min(n, MaxSums+1)) // one too many is as wrong as a million
}

// A Run is the content of one extent, encoded once at the source: its payload
// travels and is stored as it is. Whoever holds a Run owns its payload.
type Run struct {
	Extent  Extent
	Codec   Codec
	Payload []byte

	// Sums are the hashes of the content of [Extent.Chunks]; zeros have none. They
	// are made at the source, so that whoever has the run can tell which chunks
	// another disk has, and prove the content, without what came in between.
	Sums []Hash
}

// ErrBadRun is wrapped by every error about a run that breaks the rules of
// [Run.Validate] or whose payload does not decode.
var ErrBadRun = errors.New("bad run")

// Validate reports whether the run obeys the limits of its codec. It does not
// look inside the payload.
func (r Run) Validate() error {
	if err := r.validatePayload(); err != nil {
		return err
	}
	if want := r.Codec.Sums(r.Extent); len(r.Sums) != want {
		return fmt.Errorf("%w: %v has %d hashes, want %d", ErrBadRun, r.Extent, len(r.Sums), want)
	}
	return nil
}

func (r Run) validatePayload() error {
	e, n := r.Extent, uint64(len(r.Payload))
	switch {
	case e.Count == 0:
		return fmt.Errorf("%w: %v is empty", ErrBadRun, e)
	case e.Count > math.MaxUint32 || e.Start > math.MaxInt64/Size-e.Count:
		return fmt.Errorf("%w: %v is out of range", ErrBadRun, e)
	case r.Codec == Zero && n != 0:
		return fmt.Errorf("%w: %v of zeros has a payload of %d bytes", ErrBadRun, e, n)
	case r.Codec == Zero:
		return nil
	case e.Count > MaxRun:
		return fmt.Errorf("%w: %v has more than %d blocks", ErrBadRun, e, MaxRun)
	case r.Codec == Raw && n != e.Count*Size:
		return fmt.Errorf("%w: %v has %d raw bytes", ErrBadRun, e, n)
	case r.Codec > Raw && (n == 0 || n >= e.Count*Size):
		return fmt.Errorf("%w: %v has %d compressed bytes", ErrBadRun, e, n)
	case r.Codec > S2:
		return fmt.Errorf("%w: %v has unknown %v", ErrBadRun, e, r.Codec)
	}
	return nil
}

// A Level is how much is spent on making content smaller. Of files of a system one
// core does some 700, 260 and 190 MB/s, and 0.37, 0.28 and 0.26 of them are left.
type Level uint8

// The levels.
const (
	Plain  Level = iota // nothing
	Quick               // S2
	Light               // Zstandard's fastest
	Strong              // Zstandard's default
)

// String returns the level's name.
func (l Level) String() string {
	return [...]string{"none", "s2", "zstd, fastest", "zstd, default"}[min(l, Strong)]
}

// Stateless coders, safe for concurrent use: EncodeAll and DecodeAll only.
var (
	light   = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)))
	strong  = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxRun*Size), zstd.WithDecodeAllCapLimit(true)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// Encode makes the run of extent e with content data, which must be e.Bytes()
// long and at most [MaxRun] blocks. Zeros get no payload; with compress, data
// that shrinks by at least an eighth is compressed, at level [Light]. The payload
// may alias data.
func Encode(e Extent, data []byte, compress bool) Run {
	level := Plain
	if compress {
		level = Light
	}
	return EncodeAt(level, e, data, nil)
}

// EncodeAt is [Encode] at a level. The payload may alias data or scratch, which is
// used where it has room and may be nil.
func EncodeAt(level Level, e Extent, data, scratch []byte) Run {
	if int64(len(data)) != e.Bytes() || e.Count == 0 || e.Count > MaxRun {
		panic(fmt.Sprintf("block: encode %v with %d bytes", e, len(data)))
	}
	if IsZero(data) {
		return Run{Extent: e, Codec: Zero}
	}
	run := Run{Extent: e, Codec: Raw, Payload: data, Sums: sums(e, data)}
	codec, p := Zstd, []byte(nil)
	switch level {
	case Plain:
		return run
	case Quick:
		codec, p = S2, s2.Encode(scratch[:cap(scratch)], data)
	case Light:
		p = light.EncodeAll(data, scratch[:0])
	default:
		p = strong.EncodeAll(data, scratch[:0])
	}
	if len(p) < len(data)-len(data)/8 {
		run.Codec, run.Payload = codec, p
	}
	return run
}

// sums are the hashes of the chunks that lie wholly within e, whose content is data.
func sums(e Extent, data []byte) []Hash {
	first, n := e.Chunks()
	if n == 0 {
		return nil
	}
	data = data[(first*ChunkBlocks-e.Start)*Size:][:n*ChunkBlocks*Size]
	return AppendHashes(make([]Hash, 0, n), data, ChunkBlocks)
}

// CheckSums compares the content of a run with its hashes. An error wraps
// [ErrBadRun] and names the first chunk that differs.
func (r Run) CheckSums(content []byte) error {
	if len(r.Sums) == 0 {
		return nil
	}
	first, _ := r.Extent.Chunks()
	for i, got := range sums(r.Extent, content) {
		if got != r.Sums[i] {
			return fmt.Errorf("%w: chunk %d of %v is not what its hash was made of", ErrBadRun, first+uint64(i), r.Extent.Disk)
		}
	}
	return nil
}

// MaxEncoded is what [EncodeAt] needs of scratch for a whole run.
var MaxEncoded = max(s2.MaxEncodedLen(MaxRun*Size), light.MaxEncodedSize(MaxRun*Size))

// Decode writes the run's content to dst, which must be r.Extent.Bytes() long.
// Errors wrap [ErrBadRun]. The hashes are not looked at: [Run.CheckSums] does.
func (r Run) Decode(dst []byte) error {
	if err := r.validatePayload(); err != nil {
		return err
	}
	if int64(len(dst)) != r.Extent.Bytes() {
		return fmt.Errorf("%w: %v decoded into %d bytes", ErrBadRun, r.Extent, len(dst))
	}
	switch r.Codec {
	case Zero:
		clear(dst)
	case Raw:
		copy(dst, r.Payload)
	case Zstd:
		out, err := decoder.DecodeAll(r.Payload, dst[:0:len(dst)])
		if err != nil {
			return fmt.Errorf("%w: decode %v: %w", ErrBadRun, r.Extent, err)
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%w: %v decodes to %d bytes", ErrBadRun, r.Extent, len(out))
		}
	case S2: // what it says of its length is compared before anything is decoded
		n, err := s2.DecodedLen(r.Payload)
		if err == nil && n != len(dst) {
			return fmt.Errorf("%w: %v decodes to %d bytes", ErrBadRun, r.Extent, n)
		}
		if err == nil {
			_, err = s2.Decode(dst, r.Payload)
		}
		if err != nil {
			return fmt.Errorf("%w: decode %v: %w", ErrBadRun, r.Extent, err)
		}
	}
	return nil
}

// zeros is compared with, a piece at a time: bytes.Equal runs at memory speed.
var zeros [64 << 10]byte

// IsZero reports whether every byte of b is zero.
func IsZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if string(b[:n]) != string(zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
