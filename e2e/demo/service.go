package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
