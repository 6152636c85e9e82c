package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// diskstats is what the kernel's block layer counts of a disk's writes, from
// /sys/dev/block/MAJ:MIN/stat (Documentation/block/stat.rst).
type diskstats struct {
	writes   uint64 // completed, discards included
	bytes    uint64 // written and discarded
	inFlight uint64 // writes, from the file inflight beside it
}

// readWriteTimes is how many writes there were, and how long they took.
func readWriteTimes(dir string) (w writeTimes, err error) {
	stat, err := fields(filepath.Join(dir, "stat"), 11)
	if err != nil {
		return w, err
	}
	return writeTimes{stat[4], time.Duration(stat[7]) * time.Millisecond}, nil
}

func sysBlock(root string, major, minor uint32) string {
	return filepath.Join(root, "dev/block", fmt.Sprintf("%d:%d", major, minor))
}

// readDiskstats reads what is in flight before what is completed: a write that
// is in neither was issued after this call began or is on its way from one to the other.
func readDiskstats(dir string) (s diskstats, err error) {
	inflight, err := fields(filepath.Join(dir, "inflight"), 2)
	if err != nil {
		return s, err
	}
	stat, err := fields(filepath.Join(dir, "stat"), 11)
	if err != nil {
		return s, err
	}
	s = diskstats{writes: stat[4], bytes: stat[6] * 512, inFlight: inflight[1]}
	if len(stat) > 13 { // since 4.18
		s.writes += stat[11]
		s.bytes += stat[13] * 512
	}
	return s, nil
}

func fields(path string, least int) ([]uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		out = append(out, n)
	}
	if len(out) < least {
		return nil, fmt.Errorf("read %s: %d numbers, want at least %d", path, len(out), least)
	}
	return out, nil
}
