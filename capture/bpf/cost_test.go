package bpf

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"rehost/internal/fault"
)

// BenchmarkPrograms is what a write waits for in the kernel: ns/issue and ns/complete, by the
// kernel's own statistics, whose two looks at the clock are in it. A stranger is a disk that is not
// tracked while another is.
func BenchmarkPrograms(b *testing.B) {
	if err := Supported(); err != nil {
		b.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	const size = 1 << 30
	l, zeros := fault.Memory(b, size), page(b)
	for _, who := range []string{"tracked", "stranger"} {
		b.Run(who, func(b *testing.B) {
			d := deviceOf(b, l.Path, size>>12)
			if who == "stranger" {
				d.Major = 511 // of a driver that does not exist
			}
			tr, err := Load([]Disk{d}, 3)
			if err != nil {
				b.Fatal(err)
			}
			defer tr.Close()
			stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
			if err != nil {
				b.Fatal(err)
			}
			defer stats.Close()
			b.RunParallel(func(pb *testing.PB) {
				f, err := os.OpenFile(l.Path, os.O_WRONLY|unix.O_DIRECT, 0)
				if err != nil {
					b.Error(err)
					return
				}
				defer f.Close()
				for pb.Next() {
					if _, err := f.WriteAt(zeros, rand.Int64N(size>>12)<<12); err != nil {
						b.Error(err)
						return
					}
				}
			})
			for name, unit := range map[string]string{trackerProgBlockRqIssue: "ns/issue", trackerProgBlockRqComplete: "ns/complete"} {
				s, err := tr.objects.Programs[name].Stats()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(max(1, s.RunCount)), unit)
			}
		})
	}
}
