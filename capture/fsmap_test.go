package capture

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// fsmapAnswer is what a file system on 8:1 might say: owner, first byte, length.
func fsmapAnswer(flags uint32, records ...[3]uint64) []byte {
	buf, le := make([]byte, fsmapHead+len(records)*fsmapRecord), binary.LittleEndian
	le.PutUint32(buf[fmhOutFlags:], fmhDevT)
	le.PutUint32(buf[fmhEntries:], uint32(len(records)))
	for i, r := range records {
		b := buf[fsmapHead+i*fsmapRecord:]
		le.PutUint32(b[fmrDevice:], 0x801)
		le.PutUint64(b[fmrOwner:], r[0])
		le.PutUint64(b[fmrPhysical:], r[1])
		le.PutUint64(b[fmrLength:], r[2])
		if r[0] < 10 {
			le.PutUint32(b[fmrFlags:], fmrSpecial)
		}
		if i == len(records)-1 {
			le.PutUint32(b[fmrFlags:], le.Uint32(b[fmrFlags:])|flags)
		}
	}
	return buf
}

func TestFSMap_Answers(t *testing.T) {
	var got []span
	free := func(from, to int64) { got = append(got, span{from, to}) }
	dev := unix.Mkdev(8, 1)
	var at fsmapReader
	first := fsmapAnswer(0, [3]uint64{1, 0, 4096}, [3]uint64{77, 4096, 8192}, [3]uint64{78, 8192, 4096}, [3]uint64{1, 12288, 100})
	more, err := at.take(first, dev, free)
	if err != nil || !more || string(first[fmhLow:fmhLow+fsmapRecord]) != string(first[len(first)-fsmapRecord:]) {
		t.Fatalf("%v, %v: the next question does not begin where the answer ends", more, err)
	}
	if more, err = at.take(fsmapAnswer(fmrLast, [3]uint64{2, 12388, 10}, [3]uint64{1, 20000, 5}), dev, free); err != nil || more {
		t.Fatal(more, err)
	}
	if want := []span{{0, 4096}, {12288, 12388}, {20000, 20005}}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if _, err := new(fsmapReader).take(fsmapAnswer(0, [3]uint64{1, 0, 4096}), unix.Mkdev(8, 2), func(int64, int64) { t.Error("another device's space is free") }); err != nil {
		t.Error(err)
	}
	for name, answer := range map[string][]byte{
		"in use and free": fsmapAnswer(0, [3]uint64{77, 0, 8192}, [3]uint64{1, 4096, 4096}),
		"free twice":      fsmapAnswer(0, [3]uint64{1, 0, 8192}, [3]uint64{1, 4096, 4096}),
		"nothing":         fsmapAnswer(0, [3]uint64{1, 0, 0}),
		"beyond":          fsmapAnswer(0, [3]uint64{1, 1 << 63, 1}),
		"again and again": func() []byte { // what is asked is answered
			a := fsmapAnswer(0, [3]uint64{1, 0, 1})
			copy(a[fmhLow:], a[fsmapHead:])
			return a
		}(),
		"more than asked for":  func() []byte { a := fsmapAnswer(0); binary.LittleEndian.PutUint32(a[fmhEntries:], 5); return a }(),
		"of what is no device": func() []byte { a := fsmapAnswer(0, [3]uint64{1, 0, 1}); a[fmhOutFlags] = 0; return a }(),
	} {
		if _, err := new(fsmapReader).take(answer, dev, func(int64, int64) {}); !errors.Is(err, errFSMap) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := encodeDev(unix.Mkdev(0x123, 0x45678)); got != 0x45612378 {
		t.Errorf("device %#x", got)
	}
}

// FuzzFSMap: whatever is answered, what is free is apart and in order.
func FuzzFSMap(f *testing.F) {
	f.Add(fsmapAnswer(0, [3]uint64{1, 0, 4096}, [3]uint64{77, 4096, 8192}, [3]uint64{1, 12288, 100}))
	f.Add(fsmapAnswer(fmrLast, [3]uint64{2, 12388, 10}, [3]uint64{1, 20000, 5}))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if len(answer) < fsmapHead {
			return
		}
		end := int64(0)
		_, _ = new(fsmapReader).take(answer, unix.Mkdev(8, 1), func(from, to int64) {
			if from < end || to <= from {
				t.Fatalf("%d to %d is free, behind %d", from, to, end)
			}
			end = to
		})
	})
}
