package capture

import (
	"math/rand/v2"
	"testing"
	"time"

	"rehost/block"
)

// fillWords fills b with text of a few hundred words, which is work to compress,
// and worth it.
func fillWords(b []byte, seed byte) {
	words := make([]byte, 2048)
	r := rand.NewChaCha8([32]byte{seed})
	for i := range words {
		words[i] = "etaoinshrdlu, "[r.Uint64()%14]
	}
	for i := 0; i < len(b); i += 8 {
		copy(b[i:], words[r.Uint64()%256*8:][:8])
	}
}

// A workshop is a reader whose processor and link take as long as they are told,
// by a clock of its own.
type workshop struct {
	*codec
	clock time.Time
	link  float64             // ns a byte
	tried map[block.Level]int // runs compressed at a level
	text  []byte
}

// shrinks are nanoseconds a byte, and what is left of one, as files of a system have them.
var shrinks = map[block.Level]struct{ ns, left float64 }{block.Quick: {1.4, 1 / 2.68}, block.Light: {3.9, 1 / 3.59}, block.Strong: {6, 1 / 3.79}}

func newWorkshop(mbit float64) *workshop {
	w := &workshop{clock: time.Unix(0, 0), text: make([]byte, block.MaxRun*block.Size)}
	w.codec = newCodec(func() time.Time { return w.clock })
	w.compress = func(level block.Level, x block.Extent, data, _ []byte) block.Run {
		w.tried[level]++
		if level == block.Plain {
			return block.Run{Extent: x, Codec: block.Raw, Payload: data}
		}
		w.clock = w.clock.Add(time.Duration(shrinks[level].ns * float64(len(data))))
		return block.Run{Extent: x, Codec: block.Zstd, Payload: data[:int(shrinks[level].left*float64(len(data)))]}
	}
	fillWords(w.text, 0)
	w.throttle(mbit)
	return w
}

func (w *workshop) throttle(mbit float64) { w.link = 8000 / mbit }

// work sends so many runs, and returns the level in use then.
func (w *workshop) work(runs int, data []byte) block.Level {
	w.tried = map[block.Level]int{}
	x := block.Extent{Count: uint64(len(data) / block.Size)}
	for range runs {
		run := w.encode(x, data, nil)
		w.clock = w.clock.Add(time.Duration(w.link * float64(len(run.Payload))))
		w.sent(len(run.Payload), time.Duration(w.link*float64(len(run.Payload))))
	}
	return w.current()
}

// TestCodec: the slower the link, the more is spent on sending less over it; the
// level follows a throttle that changes, a limit on the processor, and what the
// other side knows.
func TestCodec(t *testing.T) {
	const fast, lan, far = 8000, 100, 10 // Mbit/s
	w := newWorkshop(fast)
	is := func(what string, want block.Level) {
		t.Helper()
		if got := w.work(100, w.text); got != want {
			t.Errorf("%s: level %v, want %v", what, got, want)
		}
		w.work(640, w.text)
		for level, n := range w.tried {
			if level != want && n > 640/codecProbe+1 {
				t.Errorf("%s: %d of 640 runs are compressed at level %v", what, n, level)
			}
		}
	}
	is("a link faster than any level", block.Quick)
	w.throttle(far)
	is("a throttle", block.Strong)
	w.throttle(lan)
	is("a higher one", block.Light)
	w.weigh(4 / .2)
	is("a fifth of a processor", block.Quick)
	w.weigh(1)
	is("all of it again", block.Light)
	w.throttle(fast)
	w.meet(false)
	is("a server that does not know S2", block.Light)
	w.meet(true)
	is("one that does", block.Quick)
}

// TestCodec_Mutations: what the test before would see if one side of the balance were missing.
func TestCodec_Mutations(t *testing.T) {
	w := newWorkshop(8000)
	w.weigh(0)
	if got := w.work(100, w.text); got != block.Strong {
		t.Errorf("time that costs nothing: level %v", got)
	}
	w = newWorkshop(10)
	w.work(10, w.text)
	w.throttle(1e9) // puts that take no time
	if got := w.work(100, w.text); got != block.Quick {
		t.Errorf("a link that costs nothing: level %v", got)
	}
}

// TestCodec_Noise: what does not compress is not tried, in runs of any length; what
// does between it is. Levels and lengths are real here.
func TestCodec_Noise(t *testing.T) {
	r := rand.NewChaCha8([32]byte{})
	for _, blocks := range []int{1, 2, 3, 5, 17, block.MaxRun} {
		w := newWorkshop(10)
		noise := make([]byte, blocks*block.Size)
		r.Read(noise)
		w.work(100, noise)
		if w.tried[block.Plain] != 100 {
			t.Errorf("%d blocks of noise: %d of 100 times nothing is tried", blocks, w.tried[block.Plain])
		}
		w.compress = block.EncodeAt
		if run := w.encode(block.Extent{Count: uint64(blocks)}, w.text[:blocks*block.Size], nil); run.Codec < block.Zstd {
			t.Errorf("%d blocks of words are sent %v", blocks, run.Codec)
		}
		if run := w.encode(block.Extent{Count: uint64(blocks)}, make([]byte, blocks*block.Size), nil); run.Codec != block.Zero {
			t.Errorf("%d blocks of zeros are sent %v", blocks, run.Codec)
		}
		if blocks == 2 {
			continue // half of so little is not worth it
		}
		half := append(noise[:blocks/2*block.Size:blocks/2*block.Size], w.text[:(blocks-blocks/2)*block.Size]...)
		if run := w.encode(block.Extent{Count: uint64(blocks)}, half, nil); run.Codec < block.Zstd {
			t.Errorf("%d blocks, half of them noise, are sent %v", blocks, run.Codec)
		}
	}
}
