package main

import (
	"context"
	"fmt"
	"time"

	"rehost/block"
	"rehost/capture"
)

// trackedIOPS measures with the tracker attached and nothing read: the cost of
// the programs in the kernel, without that of sharing the disk.
func trackedIOPS(ctx context.Context, path string, length time.Duration) (_ float64, err error) {
	devices, err := capture.Resolve([]string{path})
	if err != nil {
		return 0, err
	}
	engine, err := capture.Open(ctx, capture.Options{Disks: []block.Disk{devices[0].Disk}})
	if err != nil {
		return 0, err
	}
	defer engine.Close()
	if st := engine.Status(); st.Method != capture.EBPF {
		return 0, fmt.Errorf("the tracker is not attached: %s", st.Reason)
	}
	return iops(ctx, path, length)
}
