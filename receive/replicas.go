package receive

import (
	"context"
	"errors"

	"rehost/block"
	"rehost/store"
)

// Replicas is the [Store] of replicas in s. A source server's first session
// makes its replica, encrypted under the key that keyOf names for it; without
// keyOf, or where it names none, under the store's default key.
func Replicas(s *store.Store, keyOf func(server string) (keyID string)) Store {
	if keyOf == nil {
		keyOf = func(string) string { return "" }
	}
	return &replicas{s, keyOf}
}

type replicas struct {
	store *store.Store
	keyOf func(server string) string
}

// Begin is the replica's. The last point is read after it, when no earlier
// writer can add one.
func (r *replicas) Begin(ctx context.Context, server string, generation uint64, disks []block.Disk) (Writer, block.Point, error) {
	replica, err := r.store.Replica(ctx, server)
	if errors.Is(err, store.ErrNotFound) {
		replica, err = r.store.Create(ctx, server, disks, r.keyOf(server))
	}
	if err != nil {
		return nil, block.Point{}, err
	}
	w, err := replica.Begin(ctx, generation, disks)
	if err != nil {
		return nil, block.Point{}, err
	}
	last, _ := replica.Latest()
	return w, last.Point, nil
}

// At is the replica's.
func (r *replicas) At(ctx context.Context, server string, point block.Seq) (View, error) {
	replica, err := r.store.Replica(ctx, server)
	if err != nil {
		return nil, err
	}
	v, err := replica.At(point)
	if err != nil { // not a View that holds a nil one
		return nil, err
	}
	return v, nil
}

func isCorrupt(err error) bool {
	var corrupt *store.CorruptError
	return errors.As(err, &corrupt)
}
