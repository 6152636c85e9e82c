// Command demo goes the whole road on this machine: it boots a source server in
// QEMU, installs the agent in it, replicates its disks while they are written
// to, launches a test instance from the replica and checks every record in it,
// cuts over, and sees the agent wipe itself. It talks to the service through
// the public API with the stock AWS SDK, and ends with one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// result is the last line that the demo prints.
type result struct {
	OK                 bool    `json:"ok"`
	FirstCopyMBps      float64 `json:"firstCopyMBps"`      // disk covered by the first copy, a second
	RecoveryPointAgeMs float64 `json:"recoveryPointAgeMs"` // median age of the newest durable point, on the source's clock
	LaunchToProcessMs  int64   `json:"launchToProcessMs"`  // StartTest called to machine running
	LaunchToBootedMs   int64   `json:"launchToBootedMs"`   // StartTest called to page served
	RecordsChecked     uint64  `json:"recordsChecked"`
	RecordsLost        uint64  `json:"recordsLost"` // records durable before the point and missing in an instance
	AgentWiped         bool    `json:"agentWiped"`
	Seconds            float64 `json:"seconds"`
	Error              string  `json:"error,omitempty"`
}

func main() {
	var d demo
	flag.BoolVar(&d.keep, "keep", false, "leave everything running after the test launch, and say how to look around")
	flag.StringVar(&d.bin, "bin", "build", "directory of rehost and rehost-agent")
	flag.StringVar(&d.dir, "dir", "", "directory to work in, removed at the end (default: a new one under build)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := d.run(ctx)
	line, err := json.Marshal(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	fmt.Println(string(line))
	if !r.OK {
		stop()
		os.Exit(1)
	}
}
