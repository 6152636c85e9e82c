package store

import (
	"cmp"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"rehost/block"
)

// The segment format, version 2: docs/format/segment.md, whose tables a test
// compares with these constants. All numbers are little-endian.
const (
	segmentMagic   = "REHOSTSG"
	trailerMagic   = "REHOSTTR"
	segmentVersion = 2
	oldestVersion  = 1 // that is read: its runs have no sums

	align   = 4096 // headers, batches, index and trailer begin at a multiple of it
	tagSize = 16   // of AES-GCM

	headerSize     = 104 // the rest of the first block is zero
	recordSize     = 48  // a record's header, before encryption
	trailerSize    = 104 // the rest of the last block is zero, but for the second magic
	indexEntrySize = 48
	indexMarkSize  = 40
	sumSize        = len(block.Hash{})

	maxPayload = block.MaxRun * block.Size
	maxSegment = 1 << 36 // bytes
	maxIndex   = 1 << 31 // bytes
)

// Offsets of the segment header's fields.
const (
	hdrMagic      = 0
	hdrVersion    = 8
	hdrLevel      = 10
	hdrFlags      = 11
	hdrBlockSize  = 12
	hdrReplica    = 16
	hdrSegment    = 32
	hdrNumber     = 48
	hdrSession    = 56
	hdrGeneration = 64
	hdrFirst      = 72
	hdrLast       = 80
	hdrTag        = 88
)

// Offsets of a record header's fields.
const (
	recKind    = 0
	recCodec   = 1
	recDisk    = 2
	recCount   = 4
	recEpoch   = 8
	recOrdinal = 16
	recStart   = 24
	recLength  = 32
	recFlags   = 36
	recDurable = 40
)

// Offsets of the trailer's fields.
const (
	trlMagic       = 0
	trlVersion     = 8
	trlFlags       = 10
	trlReserved    = 12
	trlSalt        = 16
	trlEnd         = 32
	trlIndex       = 40
	trlLength      = 48
	trlEntries     = 56
	trlMarks       = 64
	trlFirst       = 72
	trlLast        = 80
	trlTag         = 88
	trlSecondMagic = align - 8
)

// Offsets of an index entry's fields.
const (
	entDisk     = 0
	entCodec    = 2
	entReserved = 3
	entCount    = 4
	entStart    = 8
	entEpoch    = 16
	entOrdinal  = 24
	entOffset   = 32
	entLength   = 40
	entZero     = 44
)

// Offsets of an index mark's fields.
const (
	mrkKind     = 0
	mrkReserved = 1
	mrkFlags    = 4
	mrkEpoch    = 8
	mrkRuns     = 16
	mrkTime     = 24
	mrkOffset   = 32
)

// A recordKind says what a record is.
type recordKind uint8

const (
	kindRun     recordKind = 1
	kindCommit  recordKind = 2
	kindRetract recordKind = 3
	kindPad     recordKind = 4
)

// What a nonce is for: its first byte, so that no two uses of a key meet.
const (
	nonceRecord  = 0
	noncePayload = 1
	nonceHeader  = 2
	nonceTrailer = 3
	nonceIndex   = 4
	nonceSums    = 5
)

var (
	errAuth    = errors.New("authentication failed")
	errZero    = errors.New("bytes that must be zero are not")
	errVersion = errors.New("unknown format version")
	errLayout  = errors.New("fields contradict each other")
)

var le = binary.LittleEndian

func alignUp(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }

// segmentHeader is the first block of a segment.
type segmentHeader struct {
	version     uint16 // 0: the newest
	level       uint8
	replica, id [16]byte
	number      uint64
	session     uint64 // counts Begin calls of this replica
	generation  uint64
	first, last block.Seq // epochs; last is 0 where it was not known beforehand
}

// A segmentCipher encrypts what one segment holds, bound to the segment. Safe
// for concurrent use.
type segmentCipher struct {
	version uint16
	dataKey []byte
	id      [16]byte
	binding [32]byte // SHA-256 of the header
	records cipher.AEAD
}

func deriveAEAD(dataKey, salt []byte, info string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, dataKey, salt, info, 32)
	if err != nil {
		panic(err) // constant lengths
	}
	return newAEAD(key)
}

func nonce(use byte, offset uint64) []byte {
	n := make([]byte, 12)
	n[0] = use
	le.PutUint64(n[4:], offset)
	return n
}

// encode returns the header's block and the cipher of the segment it begins.
func (h segmentHeader) encode(dataKey []byte) ([]byte, *segmentCipher) {
	h.version = cmp.Or(h.version, segmentVersion)
	b := alignedBuffer(align)
	copy(b[hdrMagic:], segmentMagic)
	le.PutUint16(b[hdrVersion:], h.version)
	b[hdrLevel] = h.level
	le.PutUint32(b[hdrBlockSize:], block.Size)
	copy(b[hdrReplica:], h.replica[:])
	copy(b[hdrSegment:], h.id[:])
	le.PutUint64(b[hdrNumber:], h.number)
	le.PutUint64(b[hdrSession:], h.session)
	le.PutUint64(b[hdrGeneration:], h.generation)
	le.PutUint64(b[hdrFirst:], uint64(h.first))
	le.PutUint64(b[hdrLast:], uint64(h.last))
	records := deriveAEAD(dataKey, h.id[:], "rehost segment records 1")
	copy(b[hdrTag:], records.Seal(nil, nonce(nonceHeader, 0), nil, b[:hdrTag]))
	return b, &segmentCipher{version: h.version, dataKey: dataKey, id: h.id, binding: sha256.Sum256(b[:headerSize]), records: records}
}

// decodeSegmentHeader is the inverse of encode.
func decodeSegmentHeader(b, dataKey []byte) (h segmentHeader, c *segmentCipher, err error) {
	if len(b) != align || string(b[:8]) != segmentMagic {
		return h, nil, errors.New("not a segment")
	}
	if h.version = le.Uint16(b[hdrVersion:]); h.version < oldestVersion || h.version > segmentVersion {
		return h, nil, fmt.Errorf("%w %d", errVersion, h.version)
	}
	if b[hdrFlags] != 0 || le.Uint32(b[hdrBlockSize:]) != block.Size {
		return h, nil, fmt.Errorf("%w: unknown flags or block size", errVersion)
	}
	h.level = b[hdrLevel]
	copy(h.replica[:], b[hdrReplica:])
	copy(h.id[:], b[hdrSegment:])
	h.number = le.Uint64(b[hdrNumber:])
	h.session = le.Uint64(b[hdrSession:])
	h.generation = le.Uint64(b[hdrGeneration:])
	h.first = block.Seq(le.Uint64(b[hdrFirst:]))
	h.last = block.Seq(le.Uint64(b[hdrLast:]))
	records := deriveAEAD(dataKey, h.id[:], "rehost segment records 1")
	if _, err := records.Open(nil, nonce(nonceHeader, 0), b[hdrTag:hdrTag+tagSize], b[:hdrTag]); err != nil {
		return h, nil, errAuth
	}
	if !block.IsZero(b[headerSize:]) {
		return h, nil, errZero
	}
	return h, &segmentCipher{version: h.version, dataKey: dataKey, id: h.id, binding: sha256.Sum256(b[:headerSize]), records: records}, nil
}

// record is the header of a record. Which fields count depends on its kind.
type record struct {
	kind    recordKind
	codec   block.Codec
	extent  block.Extent // of a run
	epoch   block.Seq    // of a run or commit; of a retraction, the last epoch that stays
	ordinal uint64       // of a run; the number of runs of a commit
	time    int64        // of a commit, in nanoseconds since 1970
	flags   block.Flags  // of a commit
	length  uint32       // of the payload, before encryption
	sums    uint8        // hashes in front of the payload; the extent says how many
	durable uint64       // all of the segment before this offset is known to be durable
}

// storedSize is the number of bytes that a record with so many sums and a payload
// of n bytes occupies.
func storedSize(sums uint8, n uint32) uint64 {
	return recordSize + tagSize + sealedSize(int(sums)*sumSize) + sealedSize(int(n))
}

// sealedSize is what n encrypted bytes occupy: nothing, if there are none.
func sealedSize(n int) uint64 {
	if n == 0 {
		return 0
	}
	return uint64(n) + tagSize
}

func (r record) size() uint64 { return storedSize(r.sums, r.length) }

// payloadOffset is where the payload begins, from the record's beginning.
func (r record) payloadOffset() uint64 { return storedSize(r.sums, 0) }

// mark tells records that change what is visible from those that do not.
func (r record) mark() bool { return r.kind == kindCommit || r.kind == kindRetract }

func (r record) encode(b []byte) {
	clear(b[:recordSize])
	b[recKind], b[recCodec] = byte(r.kind), byte(r.codec)
	le.PutUint16(b[recDisk:], uint16(r.extent.Disk))
	le.PutUint32(b[recCount:], uint32(r.extent.Count))
	le.PutUint64(b[recEpoch:], uint64(r.epoch))
	le.PutUint64(b[recOrdinal:], r.ordinal)
	le.PutUint64(b[recStart:], r.extent.Start)
	if r.kind == kindCommit {
		le.PutUint64(b[recStart:], uint64(r.time))
	}
	le.PutUint32(b[recLength:], r.length)
	le.PutUint32(b[recFlags:], uint32(r.flags))
	le.PutUint64(b[recDurable:], r.durable)
}

func decodeRecord(b []byte, version uint16) (r record, err error) {
	r.kind, r.codec = recordKind(b[recKind]), block.Codec(b[recCodec])
	r.extent.Disk = block.DiskID(le.Uint16(b[recDisk:]))
	r.extent.Count = uint64(le.Uint32(b[recCount:]))
	r.epoch = block.Seq(le.Uint64(b[recEpoch:]))
	r.ordinal = le.Uint64(b[recOrdinal:])
	if start := le.Uint64(b[recStart:]); r.kind == kindCommit {
		r.time = int64(start)
	} else {
		r.extent.Start = start
	}
	r.length = le.Uint32(b[recLength:])
	r.flags = block.Flags(le.Uint32(b[recFlags:]))
	r.durable = le.Uint64(b[recDurable:])
	if err = r.validate(); err == nil && r.kind == kindRun {
		r.sums = sumsOf(version, r.codec, r.extent)
	}
	return r, err
}

func (r record) validate() error {
	bare := r.codec == 0 && r.extent == block.Extent{} && r.length == 0
	switch {
	case r.kind == kindRun && r.flags == 0 && r.length <= maxPayload && r.epoch != 0:
		return validateRun(r.extent, r.codec, r.length)
	case r.kind == kindCommit && bare && r.flags.Known() && r.epoch != 0:
		return nil
	case r.kind == kindRetract && bare && r.flags == 0 && r.ordinal == 0:
		return nil
	case r.kind == kindPad && r.codec == 0 && r.extent == block.Extent{} && r.flags == 0 && r.length < 2*align && r.epoch == 0 && r.ordinal == 0:
		return nil
	}
	return fmt.Errorf("%w: record of kind %d", errLayout, r.kind)
}

// validateRun is [block.Run.Validate] for a payload that is not at hand.
func validateRun(e block.Extent, codec block.Codec, length uint32) error {
	if length > maxPayload {
		return fmt.Errorf("%w: payload of %d bytes", block.ErrBadRun, length)
	}
	return block.Run{Extent: e, Codec: codec, Payload: anyPayload[:length], Sums: anySums[:min(codec.Sums(e), len(anySums))]}.Validate()
}

// anyPayload and anySums lend their length to validateRun.
var (
	anyPayload [maxPayload]byte
	anySums    [block.MaxSums]block.Hash
)

// sumsOf is how many sums a run record has.
func sumsOf(version uint16, codec block.Codec, e block.Extent) uint8 {
	if version < 2 {
		return 0
	}
	return uint8(codec.Sums(e))
}

// seal encrypts a record for offset into dst, which is r.size() long.
func (c *segmentCipher) seal(dst []byte, r record, sums []block.Hash, payload []byte, offset uint64) {
	var head [recordSize]byte
	r.encode(head[:])
	aad := c.recordAAD(offset)
	dst = c.records.Seal(dst[:0], nonce(nonceRecord, offset), head[:], aad)
	aad = append(aad, head[:]...)
	if len(sums) > 0 {
		var plain [block.MaxSums * sumSize]byte
		for i := range sums {
			copy(plain[i*sumSize:], sums[i][:])
		}
		dst = c.records.Seal(dst, nonce(nonceSums, offset), plain[:len(sums)*sumSize], aad)
	}
	if len(payload) > 0 {
		c.records.Seal(dst, nonce(noncePayload, offset), payload, aad)
	}
}

func (c *segmentCipher) recordAAD(offset uint64) []byte {
	aad := make([]byte, 0, len(c.binding)+8+recordSize)
	return le.AppendUint64(append(aad, c.binding[:]...), offset)
}

// openHeader decrypts the header of the record at offset.
func (c *segmentCipher) openHeader(sealed []byte, offset uint64) (record, error) {
	var head [recordSize]byte
	if _, err := c.records.Open(head[:0], nonce(nonceRecord, offset), sealed[:recordSize+tagSize], c.recordAAD(offset)); err != nil {
		return record{}, errAuth
	}
	return decodeRecord(head[:], c.version)
}

// openSums decrypts the sums of the record r at offset.
func (c *segmentCipher) openSums(sealed []byte, r record, offset uint64) ([]block.Hash, error) {
	if r.sums == 0 {
		return nil, nil
	}
	var plain [block.MaxSums * sumSize]byte
	var head [recordSize]byte
	r.encode(head[:])
	size := int(sealedSize(int(r.sums) * sumSize))
	if _, err := c.records.Open(plain[:0], nonce(nonceSums, offset), sealed[:size], append(c.recordAAD(offset), head[:]...)); err != nil {
		return nil, errAuth
	}
	sums := make([]block.Hash, r.sums)
	for i := range sums {
		sums[i] = block.Hash(plain[i*sumSize:])
	}
	return sums, nil
}

// openPayload decrypts the payload of the record r at offset, in place.
func (c *segmentCipher) openPayload(sealed []byte, r record, offset uint64) ([]byte, error) {
	if r.length == 0 {
		return nil, nil
	}
	var head [recordSize]byte
	r.encode(head[:])
	p, err := c.records.Open(sealed[:0], nonce(noncePayload, offset), sealed, append(c.recordAAD(offset), head[:]...))
	if err != nil {
		return nil, errAuth
	}
	if r.kind == kindPad && !block.IsZero(p) {
		return nil, errZero
	}
	return p, nil
}

// An indexEntry is a run record, as the index of its segment has it.
type indexEntry struct {
	extent  block.Extent
	codec   block.Codec
	epoch   block.Seq
	ordinal uint64
	offset  uint64
	length  uint32
	sums    uint8 // of the record; the version and the extent say how many
}

// An indexMark is a commit or a retraction, as the index of its segment has it.
type indexMark struct {
	kind   recordKind
	flags  block.Flags
	epoch  block.Seq
	runs   uint64
	time   int64
	offset uint64
}

func (e indexEntry) append(b []byte) []byte {
	b = le.AppendUint16(b, uint16(e.extent.Disk))
	b = append(b, byte(e.codec), 0)
	b = le.AppendUint32(b, uint32(e.extent.Count))
	b = le.AppendUint64(b, e.extent.Start)
	b = le.AppendUint64(b, uint64(e.epoch))
	b = le.AppendUint64(b, e.ordinal)
	b = le.AppendUint64(b, e.offset)
	b = le.AppendUint32(b, e.length)
	return le.AppendUint32(b, 0)
}

func decodeIndexEntry(b []byte, version uint16) (e indexEntry, err error) {
	e = indexEntry{
		extent:  block.Extent{Disk: block.DiskID(le.Uint16(b[entDisk:])), Start: le.Uint64(b[entStart:]), Count: uint64(le.Uint32(b[entCount:]))},
		codec:   block.Codec(b[entCodec]),
		epoch:   block.Seq(le.Uint64(b[entEpoch:])),
		ordinal: le.Uint64(b[entOrdinal:]),
		offset:  le.Uint64(b[entOffset:]),
		length:  le.Uint32(b[entLength:]),
	}
	if b[entReserved] != 0 || le.Uint32(b[entZero:]) != 0 || e.offset > maxSegment || e.epoch == 0 {
		return e, errLayout
	}
	if err = validateRun(e.extent, e.codec, e.length); err == nil {
		e.sums = sumsOf(version, e.codec, e.extent)
	}
	return e, err
}

func (m indexMark) append(b []byte) []byte {
	b = append(b, byte(m.kind), 0, 0, 0)
	b = le.AppendUint32(b, uint32(m.flags))
	b = le.AppendUint64(b, uint64(m.epoch))
	b = le.AppendUint64(b, m.runs)
	b = le.AppendUint64(b, uint64(m.time))
	return le.AppendUint64(b, m.offset)
}

func decodeIndexMark(b []byte) (m indexMark, err error) {
	m = indexMark{
		kind:   recordKind(b[mrkKind]),
		flags:  block.Flags(le.Uint32(b[mrkFlags:])),
		epoch:  block.Seq(le.Uint64(b[mrkEpoch:])),
		runs:   le.Uint64(b[mrkRuns:]),
		time:   int64(le.Uint64(b[mrkTime:])),
		offset: le.Uint64(b[mrkOffset:]),
	}
	if b[mrkReserved]|b[mrkReserved+1]|b[mrkReserved+2] != 0 || m.offset > maxSegment {
		return m, errLayout
	}
	return m, m.record().validate()
}

// record is the header of the mark's record, without the durable offset.
func (m indexMark) record() record {
	return record{kind: m.kind, flags: m.flags, epoch: m.epoch, ordinal: m.runs, time: m.time}
}

func (m indexMark) point() block.Point {
	return block.Point{Seq: m.epoch, Time: time.Unix(0, m.time).UTC()}
}

// trailer is the last block of a sealed segment.
type trailer struct {
	salt           [16]byte // of the index key: fresh each time an index is written
	end            uint64   // of the records
	index          uint64   // where the index begins
	length         uint64   // of the index, before encryption
	entries, marks uint64
	first, last    block.Seq // epochs of runs; 0 if there are none
}

// fileSize is the length of a segment with this trailer.
func (t trailer) fileSize() uint64 { return alignUp(t.index+t.length+tagSize) + align }

func (t trailer) validate() error {
	if t.end > maxSegment || t.end < align || t.index != alignUp(t.end) || t.entries > math.MaxUint32 || t.marks > math.MaxUint32 ||
		t.length != t.entries*indexEntrySize+t.marks*indexMarkSize || t.length > maxIndex {
		return errLayout
	}
	return nil
}

func (c *segmentCipher) indexAEAD(salt [16]byte) cipher.AEAD {
	return deriveAEAD(c.dataKey, append(c.id[:len(c.id):len(c.id)], salt[:]...), "rehost segment index 1")
}

// encodeIndex returns what follows the records of a sealed segment, from
// t.index on: the encrypted index and the trailer.
func (c *segmentCipher) encodeIndex(t trailer, plain []byte) []byte {
	b := alignedBuffer(int(t.fileSize() - t.index))
	end := b[len(b)-align:]
	copy(end[trlMagic:], trailerMagic)
	copy(end[trlSecondMagic:], trailerMagic)
	le.PutUint16(end[trlVersion:], c.version)
	copy(end[trlSalt:], t.salt[:])
	for i, v := range []uint64{t.end, t.index, t.length, t.entries, t.marks, uint64(t.first), uint64(t.last)} {
		le.PutUint64(end[trlEnd+8*i:], v)
	}
	aead := c.indexAEAD(t.salt)
	aad := append(c.binding[:len(c.binding):len(c.binding)], end[:trlTag]...)
	copy(end[trlTag:], aead.Seal(nil, nonce(nonceTrailer, 0), nil, aad))
	aead.Seal(b[:0], nonce(nonceIndex, 0), plain, aad)
	return b
}

// isTrailer reports whether b was written as a trailer. Either magic will do, so
// that no damage to one place makes a sealed segment look like an unsealed one.
func isTrailer(b []byte) bool {
	return string(b[:8]) == trailerMagic || string(b[trlSecondMagic:]) == trailerMagic
}

func (c *segmentCipher) decodeTrailer(b []byte) (t trailer, err error) {
	if string(b[:8]) != trailerMagic || string(b[trlSecondMagic:]) != trailerMagic {
		return t, errors.New("not a trailer")
	}
	if v := le.Uint16(b[trlVersion:]); v != c.version {
		return t, fmt.Errorf("%w %d", errVersion, v)
	}
	if !block.IsZero(b[trlFlags:trlSalt]) || !block.IsZero(b[trailerSize:trlSecondMagic]) {
		return t, errZero
	}
	copy(t.salt[:], b[trlSalt:])
	t.end, t.index, t.length = le.Uint64(b[trlEnd:]), le.Uint64(b[trlIndex:]), le.Uint64(b[trlLength:])
	t.entries, t.marks = le.Uint64(b[trlEntries:]), le.Uint64(b[trlMarks:])
	t.first, t.last = block.Seq(le.Uint64(b[trlFirst:])), block.Seq(le.Uint64(b[trlLast:]))
	aad := append(c.binding[:len(c.binding):len(c.binding)], b[:trlTag]...)
	if _, err := c.indexAEAD(t.salt).Open(nil, nonce(nonceTrailer, 0), b[trlTag:trlTag+tagSize], aad); err != nil {
		return t, errAuth
	}
	return t, t.validate()
}

// decodeIndex decrypts what encodeIndex wrote in front of the trailer block.
func (c *segmentCipher) decodeIndex(t trailer, b, trailerBlock []byte) (entries []indexEntry, marks []indexMark, err error) {
	n := t.length + tagSize
	if !block.IsZero(b[n:]) {
		return nil, nil, errZero
	}
	aad := append(c.binding[:len(c.binding):len(c.binding)], trailerBlock[:trlTag]...)
	plain, err := c.indexAEAD(t.salt).Open(b[:0], nonce(nonceIndex, 0), b[:n], aad)
	if err != nil {
		return nil, nil, errAuth
	}
	entries, marks = make([]indexEntry, t.entries), make([]indexMark, t.marks)
	for i := range entries {
		if entries[i], err = decodeIndexEntry(plain[i*indexEntrySize:], c.version); err != nil {
			return nil, nil, err
		}
	}
	plain = plain[t.entries*indexEntrySize:]
	for i := range marks {
		if marks[i], err = decodeIndexMark(plain[i*indexMarkSize:]); err != nil {
			return nil, nil, err
		}
	}
	return entries, marks, nil
}
