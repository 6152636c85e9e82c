package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// A span is a range of bytes of a disk.
type span struct{ from, to int64 }

// partitionTable reads which ranges a disk's partition table gives to partitions,
// in order. It is strict: what it does not know all about, or could be read in two
// ways, is an error, since what lies between partitions will not be copied.
func partitionTable(read func(at int64, n int) ([]byte, error), size, sector int64) ([]span, error) {
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || size < 4*sector {
		return nil, fmt.Errorf("sectors of %d bytes, %d in all", sector, size)
	}
	b, err := read(0, int(2*sector))
	if err != nil {
		return nil, err
	}
	protected, list, err := mbrEntries(b[:512], size, sector)
	if err != nil {
		return nil, err
	}
	if protected {
		list, err = gptEntries(read, b[sector:], size, sector)
	} else if string(b[sector:sector+8]) == gptMagic {
		err = errors.New("a GPT beside an MBR")
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b span) int { return int(min(1, max(-1, a.from-b.from))) })
	for i, p := range list {
		if p.from < sector || p.to <= p.from || p.to > size || i > 0 && p.from < list[i-1].to {
			return nil, fmt.Errorf("partitions overlap, or are not on the disk: bytes %d to %d", p.from, p.to)
		}
	}
	return list, nil
}

// mbrEntries reads a master boot record; protected says that a GPT stands behind it.
func mbrEntries(b []byte, size, sector int64) (protected bool, list []span, err error) {
	if b[510] != 0x55 || b[511] != 0xaa {
		return false, nil, errors.New("no partition table")
	}
	le := binary.LittleEndian
	for i := range 4 {
		e := b[446+16*i:][:16]
		first, n := int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))
		switch kind := e[4]; {
		case kind == 0:
			continue
		case e[0]&0x7f != 0:
			return false, nil, errors.New("no master boot record")
		case kind == 0xee:
			protected = true
		case kind == 0x05 || kind == 0x0f || kind == 0x85: // whose table is strewn between what it holds
			return false, nil, errors.New("an extended partition")
		}
		list = append(list, span{first * sector, (first + n) * sector})
	}
	if protected && len(list) != 1 {
		return false, nil, errors.New("a hybrid of GPT and MBR")
	}
	return protected, list, nil
}

const gptMagic = "EFI PART"

// gptEntries reads the table whose header is h, and wants its copy at the disk's
// end (UEFI specification, chapter 5).
func gptEntries(read func(at int64, n int) ([]byte, error), h []byte, size, sector int64) (list []span, err error) {
	le := binary.LittleEndian
	length := int64(le.Uint32(h[12:]))
	if string(h[:8]) != gptMagic || length < 92 || length > int64(len(h)) {
		return nil, errors.New("no GPT behind a protective MBR")
	}
	sum := le.Uint32(h[16:])
	h = bytes.Clone(h[:length])
	clear(h[16:20])
	entries, count, each := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	switch {
	case crc32.ChecksumIEEE(h) != sum:
		return nil, errors.New("the GPT's checksum is wrong")
	case le.Uint64(h[24:]) != 1 || le.Uint64(h[32:]) != uint64(size/sector-1):
		return nil, errors.New("the GPT's copy is not at the disk's end")
	case each < 128 || each%128 != 0 || each > 4096 || count < 1 || count*each > edge/2 || entries < 2 || entries > uint64(size/sector):
		return nil, fmt.Errorf("a GPT of %d entries of %d bytes", count, each)
	}
	table := make([]byte, 0, count*each)
	for n := count * each; n > 0; {
		part, err := read(int64(entries)*sector+int64(len(table)), int(min(n, 64<<10)))
		if err != nil {
			return nil, err
		}
		table, n = append(table, part...), n-int64(len(part))
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, errors.New("the checksum of the GPT's entries is wrong")
	}
	for ; len(table) > 0; table = table[each:] {
		if [16]byte(table) == ([16]byte{}) {
			continue
		}
		first, last := le.Uint64(table[32:]), le.Uint64(table[40:])
		if first > last || last >= uint64(size/sector) {
			return nil, fmt.Errorf("a partition of sectors %d to %d", first, last)
		}
		list = append(list, span{int64(first) * sector, int64(last+1) * sector})
	}
	return list, nil
}
