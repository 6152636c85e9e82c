package main

import (
	"log/slog"

	"rehost/launch"
	"rehost/launch/qemu"
)

// openTarget is where instances are launched.
func openTarget(dir string, log *slog.Logger) (launch.Target, error) {
	return qemu.Open(qemu.Options{Dir: dir, Logger: log})
}
