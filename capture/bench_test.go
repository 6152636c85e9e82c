package capture

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"rehost/block"
	"rehost/internal/fault"
)

// A drain is a Sink that takes everything and keeps nothing.
type drain struct{ done context.CancelFunc }

func (d drain) Put(context.Context, block.Seq, uint64, block.Run) error { return nil }

func (d drain) Commit(_ context.Context, _ block.Point, _ uint64, flags block.Flags) error {
	if flags.Has(block.Consistent) {
		d.done()
	}
	return nil
}

// BenchmarkEngine_FullCopy is the first copy of a disk of 512 MiB to a sink
// that costs nothing: by content. Beside it, reading alone.
func BenchmarkEngine_FullCopy(b *testing.B) {
	const size = 512 << 20
	for name, fill := range map[string]func(r *rand.ChaCha8, p []byte, i int){
		"incompressible": func(r *rand.ChaCha8, p []byte, _ int) { r.Read(p) },
		"half-empty":     func(r *rand.ChaCha8, p []byte, i int) { r.Read(p[:len(p)*(i&1)]) },
		"compressible": func(r *rand.ChaCha8, p []byte, _ int) {
			r.Read(p[:4096])
			for at := 4096; at < len(p); at += 4096 {
				copy(p[at:], p[:4096])
				r.Read(p[at : at+1024])
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			l := fault.Loop(b, size)
			d, err := Resolve([]string{l.Path})
			if err != nil {
				b.Fatal(err)
			}
			f := openDirect(b, l.Path, 0)
			buf, r := newBuffer(), rand.NewChaCha8([32]byte{})
			for i := range size / len(buf) {
				clear(buf)
				fill(r, buf, i)
				if _, err := f.WriteAt(buf, int64(i*len(buf))); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(size)
			for b.Loop() {
				e, err := Open(b.Context(), Options{Disks: []block.Disk{d[0].Disk}})
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				e.Run(ctx, drain{cancel}, 0)
				if s := e.Status(); s.Epochs == 0 {
					b.Fatal(s.Err)
				}
				e.Close()
			}
		})
	}
}
