package site

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"rehost/launch/qemu"
)

// RemoveInstances stops and removes what is still launched, after the service
// has stopped: an instance that was cut over to is nobody else's to remove.
func (s *Service) RemoveInstances() (err error) {
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
