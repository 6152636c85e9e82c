package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

// reading is how a disk in memory is read.
func reading(disk []byte) func(at int64, n int) ([]byte, error) {
	return func(at int64, n int) ([]byte, error) {
		if at < 0 || n < 0 || at > int64(len(disk))-int64(n) {
			return nil, io.ErrUnexpectedEOF
		}
		return bytes.Clone(disk[at:][:n]), nil
	}
}

// mbrDisk is a disk with an MBR of partitions, in sectors, of a kind each.
func mbrDisk(sectors int, kinds []byte, parts ...[2]uint32) []byte {
	disk := make([]byte, sectors*512)
	disk[510], disk[511] = 0x55, 0xaa
	for i, p := range parts {
		e := disk[446+16*i:]
		e[4] = kinds[i]
		binary.LittleEndian.PutUint32(e[8:], p[0])
		binary.LittleEndian.PutUint32(e[12:], p[1])
	}
	return disk
}

const gptTestEntries = 8

// gptDisk is a disk with a GPT of partitions: first and last sector.
func gptDisk(sectors, sector int, parts ...[2]uint64) []byte {
	disk := mbrDisk(sectors*sector/512, []byte{0xee}, [2]uint32{1, uint32(sectors - 1)})
	table := disk[2*sector:][:gptTestEntries*128]
	for i, p := range parts {
		e := table[i*128:]
		e[0], e[16] = 0xaf, byte(i+1)
		binary.LittleEndian.PutUint64(e[32:], p[0])
		binary.LittleEndian.PutUint64(e[40:], p[1])
	}
	h := disk[sector:][:92]
	copy(h, gptMagic)
	le := binary.LittleEndian
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], uint64(sectors-1))
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], gptTestEntries)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return disk
}

// TestPartitionTable reads tables, and refuses whatever may be read in another way.
func TestPartitionTable(t *testing.T) {
	change := func(disk []byte, at int, b byte) []byte { disk[at] = b; return disk }
	const k = 512
	for _, c := range []struct {
		name   string
		disk   []byte
		sector int64
		want   []span
		err    string
	}{
		{"MBR", mbrDisk(1000, []byte{0x83, 0x82}, [2]uint32{500, 100}, [2]uint32{63, 200}), 512, []span{{63 * k, 263 * k}, {500 * k, 600 * k}}, ""},
		{"GPT", gptDisk(1000, 512, [2]uint64{600, 699}, [2]uint64{40, 99}), 512, []span{{40 * k, 100 * k}, {600 * k, 700 * k}}, ""},
		{"GPT in sectors of 4 KiB", gptDisk(100, 4096, [2]uint64{40, 49}), 4096, []span{{40 * 4096, 50 * 4096}}, ""},
		{"nothing", make([]byte, 512000), 512, nil, "no partition table"},
		{"extended", mbrDisk(1000, []byte{0x83, 5}, [2]uint32{63, 100}, [2]uint32{500, 200}), 512, nil, "extended"},
		{"hybrid", change(gptDisk(1000, 512, [2]uint64{40, 99}), 446+16+4, 0x83), 512, nil, "hybrid"},
		{"GPT under an MBR", change(gptDisk(1000, 512, [2]uint64{40, 99}), 446+4, 0x83), 512, nil, "beside"},
		{"a file system's boot sector", change(mbrDisk(1000, []byte{0x83}, [2]uint32{63, 100}), 446, 'x'), 512, nil, "no master boot record"},
		{"behind the end", mbrDisk(1000, []byte{0x83}, [2]uint32{900, 101}), 512, nil, "not on the disk"},
		{"overlap", mbrDisk(1000, []byte{0x83, 0x83}, [2]uint32{63, 200}, [2]uint32{262, 100}), 512, nil, "overlap"},
		{"broken header", change(gptDisk(1000, 512, [2]uint64{40, 99}), 512+56, 1), 512, nil, "checksum is wrong"},
		{"broken entries", change(gptDisk(1000, 512, [2]uint64{40, 99}), 1024+60, 1), 512, nil, "entries is wrong"},
		{"a disk that has grown", append(gptDisk(1000, 512, [2]uint64{40, 99}), make([]byte, 512)...), 512, nil, "not at the disk's end"},
		{"a disk of two sectors", make([]byte, 1024), 512, nil, "sectors"},
	} {
		got, err := partitionTable(reading(c.disk), int64(len(c.disk)), c.sector)
		if !slices.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
	gone := errors.New("gone")
	if _, err := partitionTable(func(int64, int) ([]byte, error) { return nil, gone }, 1<<30, 512); !errors.Is(err, gone) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

// FuzzPartitionTable: whatever stands on a disk, partitions are on it, in order and
// apart. Checksums are made right now and then, so that what is behind them is read.
func FuzzPartitionTable(f *testing.F) {
	const sectors = 16
	f.Add(mbrDisk(sectors, []byte{0x83, 0x82}, [2]uint32{9, 5}, [2]uint32{3, 4}), false)
	f.Add(gptDisk(sectors, 512, [2]uint64{9, 10}, [2]uint64{5, 7}), true)
	f.Fuzz(func(t *testing.T, disk []byte, right bool) {
		if disk = bytes.Clone(disk); right && len(disk) >= sectors*512 {
			le := binary.LittleEndian
			le.PutUint32(disk[512+88:], crc32.ChecksumIEEE(disk[1024:][:gptTestEntries*128]))
			clear(disk[512+16 : 512+20])
			le.PutUint32(disk[512+16:], crc32.ChecksumIEEE(disk[512:][:92]))
		}
		list, err := partitionTable(reading(disk), int64(len(disk)), 512)
		at := int64(512)
		for _, p := range list {
			if err != nil || p.from < at || p.to <= p.from || p.to > int64(len(disk)) {
				t.Fatalf("%v, %v", list, err)
			}
			at = p.to
		}
	})
}
