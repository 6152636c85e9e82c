package capture

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
)

// magics are where file systems and the like write who they are; offsets from
// the start of the partition.
var magics = []struct {
	name   string
	offset int64
	magic  string
}{
	{"xfs", 0, "XFSB"},
	{"LVM2_member", 512 + 24, "LVM2 001"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"swap", 65536 - 10, "SWAPSPACE2"}, // 64 KiB pages
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9"},
	{"vfat", 82, "FAT32   "},
	{"vfat", 54, "FAT16   "},
	{"vfat", 54, "FAT12   "},
	{"ntfs", 3, "NTFS    "},
}

// signature names the file system at an offset of a device, "" if it is none of
// those known or cannot be read.
func signature(node string, at int64) string {
	f, err := os.Open(node)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 0x10048)
	n, _ := f.ReadAt(b, at)
	b = b[:n]
	for _, m := range magics {
		if end := m.offset + int64(len(m.magic)); end <= int64(len(b)) && string(b[m.offset:end]) == m.magic {
			return m.name
		}
	}
	return ext(b)
}

// ext tells ext2, ext3 and ext4 apart by their features
// (Documentation/filesystems/ext4/super.rst).
func ext(b []byte) string {
	const super, hasJournal, extents = 1024, 0x4, 0x40
	if len(b) < super+0x68 || binary.LittleEndian.Uint16(b[super+0x38:]) != 0xEF53 {
		return ""
	}
	compat, incompat := binary.LittleEndian.Uint32(b[super+0x5C:]), binary.LittleEndian.Uint32(b[super+0x60:])
	switch {
	case incompat&extents != 0:
		return "ext4"
	case compat&hasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// tableID is the id of a disk's partition table: GPT's GUID or the MBR's signature.
func tableID(node string) string {
	f, err := os.Open(node)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 8192)
	if n, _ := f.ReadAt(b, 0); n < len(b) {
		return ""
	}
	for _, at := range []int{512, 4096} {
		if string(b[at:at+8]) == "EFI PART" {
			g := b[at+56 : at+72]
			return fmt.Sprintf("gpt:%08x-%04x-%04x-%s-%s", binary.LittleEndian.Uint32(g), binary.LittleEndian.Uint16(g[4:]),
				binary.LittleEndian.Uint16(g[6:]), hex.EncodeToString(g[8:10]), hex.EncodeToString(g[10:]))
		}
	}
	id := binary.LittleEndian.Uint32(b[440:])
	if id == 0 || b[510] != 0x55 || b[511] != 0xAA {
		return ""
	}
	for at := 446; at < 510; at += 16 { // a file system's boot sector has code there, which is no id
		if b[at]&^0x80 != 0 {
			return ""
		}
	}
	return fmt.Sprintf("mbr:%08x", id)
}
