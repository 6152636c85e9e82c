package block_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"rehost/block"
)

func TestSeq_Text(t *testing.T) {
	if got, want := block.Seq(0x3f).String(), "000000000000003f"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	for _, bad := range []string{"", "3f", "000000000000003F", "00000000000000003f", "-00000000000003f", "0x0000000000003f"} {
		if _, err := block.ParseSeq(bad); !errors.Is(err, block.ErrBadSeq) {
			t.Errorf("parse %q: got %v, want %v", bad, err, block.ErrBadSeq)
		}
	}
	if s, err := block.ParseSeq("000000000000003f"); err != nil || s != 0x3f {
		t.Fatalf("got %v, %v", s, err)
	}
}

// TestExtents_Algebra compares every operation with the same one on a plain map
// of blocks, for random sets.
func TestExtents_Algebra(t *testing.T) {
	type key struct {
		d block.DiskID
		b uint64
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	random := func() (block.Extents, map[key]bool) {
		var list []block.Extent
		m := map[key]bool{}
		for range r.IntN(12) {
			e := block.Extent{Disk: block.DiskID(r.IntN(2)), Start: r.Uint64N(60), Count: r.Uint64N(9)}
			list = append(list, e)
			for b := e.Start; b < e.End(); b++ {
				m[key{e.Disk, b}] = true
			}
		}
		return block.NewExtents(list...), m
	}
	for range 5000 {
		s, ms := random()
		o, mo := random()
		for name, op := range map[string]struct {
			got  block.Extents
			want func(k key) bool
		}{
			"new":       {s, func(k key) bool { return ms[k] }},
			"union":     {s.Union(o), func(k key) bool { return ms[k] || mo[k] }},
			"intersect": {s.Intersect(o), func(k key) bool { return ms[k] && mo[k] }},
			"subtract":  {s.Subtract(o), func(k key) bool { return ms[k] && !mo[k] }},
			"split":     {block.NewExtents(s.Split(3)...), func(k key) bool { return ms[k] }},
		} {
			n := uint64(0)
			for d := range block.DiskID(2) {
				for b := range uint64(80) {
					want := op.want(key{d, b})
					if got := op.got.Contains(d, b); got != want {
						t.Fatalf("seed %d: %s of %v and %v: block %v/%d: got %v, want %v", seed, name, s, o, d, b, got, want)
					}
					if want {
						n++
					}
				}
			}
			if op.got.Blocks() != n {
				t.Fatalf("seed %d: %s of %v and %v has %d blocks, want %d", seed, name, s, o, op.got.Blocks(), n)
			}
			for i := 1; i < len(op.got); i++ {
				if a, b := op.got[i-1], op.got[i]; a.Disk > b.Disk || a.Disk == b.Disk && a.End() >= b.Start {
					t.Fatalf("seed %d: %s is not in normal form: %v", seed, name, op.got)
				}
			}
		}
	}
}

func TestRun_EncodeDecode(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	random := make([]byte, 8*block.Size)
	r.Read(random)
	text := make([]byte, 8*block.Size)
	for i := range text {
		text[i] = "abcdefgh"[i/7%8]
	}
	for name, c := range map[string]struct {
		data     []byte
		compress bool
		want     block.Codec
	}{
		"zeros":                {make([]byte, 8*block.Size), true, block.Zero},
		"text":                 {text, true, block.Zstd},
		"text, not compressed": {text, false, block.Raw},
		"random":               {random, true, block.Raw},
	} {
		run := block.Encode(block.Extent{Start: 5, Count: 8}, c.data, c.compress)
		if run.Codec != c.want {
			t.Errorf("%s: got %v, want %v", name, run.Codec, c.want)
		}
		out := make([]byte, len(c.data))
		out[17] = 1 // what was there is replaced
		if err := run.Decode(out); err != nil || string(out) != string(c.data) {
			t.Errorf("%s: decode: %v, same %v", name, err, string(out) == string(c.data))
		}
	}
}

// TestEncodeAt: at every level what is compressed comes back whole, with memory for
// it or without, and what does not shrink stays as it is; a payload that is cut
// off, longer, or of another length is an error.
func TestEncodeAt(t *testing.T) {
	r := rand.NewChaCha8([32]byte{2})
	whole := make([]byte, block.MaxRun*block.Size)
	for i := range whole {
		whole[i] = "some words, and some more"[(i*i>>9)%25]
	}
	for level, want := range map[block.Level]block.Codec{block.Plain: block.Raw, block.Quick: block.S2, block.Light: block.Zstd, block.Strong: block.Zstd} {
		for _, scratch := range [][]byte{nil, make([]byte, 100), make([]byte, block.MaxEncoded)} {
			for _, count := range []int{1, 7, block.MaxRun} {
				e, data := block.Extent{Count: uint64(count)}, whole[:count*block.Size]
				run := block.EncodeAt(level, e, data, scratch)
				if err := run.Validate(); err != nil || run.Codec != want {
					t.Fatalf("%v: %d blocks are %v, want %v: %v", level, count, run.Codec, want, err)
				}
				out := make([]byte, len(data))
				if err := run.Decode(out); err != nil || string(out) != string(data) {
					t.Fatalf("%v: %d blocks: %v, same %v", level, count, err, string(out) == string(data))
				}
				if level == block.Plain {
					continue
				}
				for what, wrong := range map[string]block.Run{
					"cut off": {Extent: e, Codec: run.Codec, Payload: run.Payload[:len(run.Payload)-1]},
					"longer":  {Extent: e, Codec: run.Codec, Payload: append(slices.Clone(run.Payload), 0)},
					"another": {Extent: block.Extent{Count: e.Count + 1}, Codec: run.Codec, Payload: run.Payload},
				} {
					if wrong.Extent.Count > block.MaxRun {
						continue
					}
					if err := wrong.Decode(make([]byte, wrong.Extent.Bytes())); !errors.Is(err, block.ErrBadRun) {
						t.Errorf("%v: %d blocks, %s: got %v, want %v", level, count, what, err, block.ErrBadRun)
					}
				}
			}
		}
		noise := make([]byte, 9*block.Size)
		r.Read(noise)
		if run := block.EncodeAt(level, block.Extent{Count: 9}, noise, nil); run.Codec != block.Raw {
			t.Errorf("%v: noise is %v", level, run.Codec)
		}
		if run := block.EncodeAt(level, block.Extent{Count: 9}, make([]byte, 9*block.Size), nil); run.Codec != block.Zero {
			t.Errorf("%v: zeros are %v", level, run.Codec)
		}
	}
}

func FuzzRun_Decode(f *testing.F) {
	f.Add(uint8(2), uint32(8), []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add(uint8(3), uint32(1), []byte{0x80, 0x20, 0x00, 0x61, 0xfe, 0x01, 0x00})
	f.Add(uint8(0), uint32(1<<31), []byte{})
	f.Add(uint8(1), uint32(1), make([]byte, block.Size))
	f.Fuzz(func(t *testing.T, codec uint8, count uint32, payload []byte) {
		run := block.Run{Extent: block.Extent{Count: uint64(count)}, Codec: block.Codec(codec), Payload: payload}
		if count > block.MaxRun {
			count = 1 // the destination's length is then wrong, which must be an error too
		}
		if err := run.Decode(make([]byte, int(count)*block.Size)); err != nil && !errors.Is(err, block.ErrBadRun) {
			t.Fatalf("got %v, want %v", err, block.ErrBadRun)
		}
	})
}
