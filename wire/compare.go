package wire

import (
	"encoding/binary"
	"fmt"

	"rehost/block"
)

// Hashes asks which chunks of an extent have another content at a point that
// the server has: chunks of [block.ChunkBlocks], but the last, which may be
// shorter.
type Hashes struct {
	Point    block.Seq
	Extent   block.Extent
	Question uint16 // any number that no open question of the session has
	Hashes   []block.Hash
}

// Differ answers [Hashes].
type Differ struct {
	Question uint16
	Differ   []bool // for each chunk
}

// Type returns [TypeHashes].
func (Hashes) Type() Type { return TypeHashes }

// Type returns [TypeDiffer].
func (Differ) Type() Type { return TypeDiffer }

// chunks is how many chunks an extent has.
func chunks(e block.Extent) uint64 { return (e.Count + block.ChunkBlocks - 1) / block.ChunkBlocks }

// Validate reports whether the question is within the limits of the format.
func (h Hashes) Validate() error {
	e := h.Extent
	if h.Point.IsZero() {
		return fmt.Errorf("%w: hashes compared with no point", ErrProtocol)
	}
	if e.Count == 0 || e.Count > MaxHashes*block.ChunkBlocks || e.Start > 1<<52 || chunks(e) != uint64(len(h.Hashes)) {
		return fmt.Errorf("%w: %d hashes of %v", ErrProtocol, len(h.Hashes), e)
	}
	return nil
}

func (h Hashes) appendBody(b []byte) ([]byte, error) {
	if err := h.Validate(); err != nil {
		return b, err
	}
	b = appendSeq(b, h.Point)
	b = binary.BigEndian.AppendUint64(b, h.Extent.Start)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Extent.Count))
	b = binary.BigEndian.AppendUint16(b, uint16(h.Extent.Disk))
	b = binary.BigEndian.AppendUint16(b, h.Question)
	for i := range h.Hashes {
		b = append(b, h.Hashes[i][:]...)
	}
	return b, nil
}

func decodeHashes(body []byte) (Message, error) {
	h := Hashes{
		Point: decodeSeq(body),
		Extent: block.Extent{
			Start: binary.BigEndian.Uint64(body[8:]),
			Count: uint64(binary.BigEndian.Uint32(body[16:])),
			Disk:  block.DiskID(binary.BigEndian.Uint16(body[20:])),
		},
		Question: binary.BigEndian.Uint16(body[22:]),
	}
	rest := body[hashesHeader:]
	if len(rest)%hashSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes of hashes", ErrProtocol, len(rest))
	}
	h.Hashes = decodeHashList(rest)
	return h, h.Validate()
}

// decodeHashList cuts b into hashes.
func decodeHashList(b []byte) []block.Hash {
	list := make([]block.Hash, len(b)/hashSize)
	for i := range list {
		list[i] = block.Hash(b[i*hashSize:])
	}
	return list
}

func (d Differ) appendBody(b []byte) ([]byte, error) {
	b = binary.BigEndian.AppendUint16(b, d.Question)
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.Differ)))
	bits := make([]byte, (len(d.Differ)+7)/8)
	for i, differs := range d.Differ {
		if differs {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return append(b, bits...), nil
}

func decodeDiffer(body []byte) (Message, error) {
	d := Differ{Question: binary.BigEndian.Uint16(body)}
	n, bits := int(binary.BigEndian.Uint16(body[2:])), body[differHeader:]
	if n == 0 || n > MaxHashes || len(bits) != (n+7)/8 || n%8 != 0 && bits[len(bits)-1]>>(n%8) != 0 {
		return nil, fmt.Errorf("%w: %d answers in %d bytes", ErrProtocol, n, len(bits))
	}
	d.Differ = make([]bool, n)
	for i := range d.Differ {
		d.Differ[i] = bits[i/8]>>(i%8)&1 != 0
	}
	return d, nil
}
