// Command sourceserver is what the test image runs: a small web server whose
// page tells who the machine is, a writer of records on two disks that proves
// what a replica holds, and an endpoint that runs shell commands for whoever
// knows the token on the kernel's command line. It is for test machines only.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type config struct {
	listen     string
	logA, logB string
	rate       float64
	token      string
}

func main() {
	var c config
	var fillDir string
	var fillMiB int
	flag.StringVar(&c.listen, "listen", ":80", "address to serve on")
	flag.StringVar(&c.logA, "log-a", "/var/log/records.log", "log of records that is written first")
	flag.StringVar(&c.logB, "log-b", "/data/records.log", "log of records that is written second")
	flag.Float64Var(&c.rate, "rate", 50, "records a second; 0 writes none")
	flag.StringVar(&fillDir, "fill", "", "write files that look like a server's into this directory, then exit")
	flag.IntVar(&fillMiB, "fill-mib", 64, "how much to write with -fill")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return serve(ctx, c) }
	if fillDir != "" {
		run = func() error { return fill(fillDir, fillMiB) }
	}
	if err := run(); err != nil {
		slog.Error("sourceserver", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, c config) error {
	c.token = kernelArgument("sourceserver.token")
	w, err := openWriter(c.logA, c.logB)
	if err != nil {
		return err
	}
	defer w.Close()
	srv := &http.Server{Addr: c.listen, Handler: newHandler(c, w), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 2)
	go func() { failed <- w.Run(ctx, c.rate) }()
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	return errors.Join(err, srv.Close())
}

// kernelArgument is the value of name=value on the kernel's command line.
func kernelArgument(name string) string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for _, word := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(word, name+"="); ok {
			return v
		}
	}
	return ""
}
