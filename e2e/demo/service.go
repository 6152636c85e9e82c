package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"rehost/e2e/site"
	"rehost/internal/testvm"
	"rehost/launch"
	"rehost/launch/qemu"
)

// A service is one `rehost serve` that this program started.
type service struct{ *site.Service }

// startService starts the service with embedded defaults and waits until it says that it is ready.
func startService(ctx context.Context, program, data string, log io.Writer) (*service, error) {
	s, err := site.Serve(ctx, site.Config{Program: program, Data: data, Advertise: testvm.GuestHost, Args: []string{"--launch-forward", "80"}, Log: log})
	if err != nil {
		return nil, err
	}
	return &service{s}, nil
}

// instance looks up a launched instance as `rehost instance ls` does.
func (s *service) instance(id string) (launch.Instance, error) {
	list, err := qemu.List(filepath.Join(s.Data, "instances"))
	for _, in := range list {
		if in.ID == id && len(in.Forwards) > 0 {
			return in, nil
		}
	}
	return launch.Instance{}, errors.Join(fmt.Errorf("instance %s is not there, or its ports are not forwarded", id), err)
}

// removeInstances stops and removes what is still launched, after the service
// has stopped: an instance that was cut over to is nobody else's to remove.
func (s *service) removeInstances() (err error) {
	dir := filepath.Join(s.Data, "instances")
	list, err := qemu.List(dir)
	if err != nil || len(list) == 0 {
		return err
	}
	target, err := qemu.Open(qemu.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for _, in := range list {
		err = errors.Join(err, target.Terminate(context.Background(), in.ID))
	}
	return errors.Join(err, target.Close())
}
