package receive

import (
	"errors"

	"rehost/block"
)

// Errors that a [Store] may answer with; see refusal.go for what follows.
var (
	ErrFenced     = errors.New("writer is fenced")
	ErrCorrupt    = errors.New("replica is corrupt")
	ErrIncomplete = errors.New("epoch is incomplete")
)

func isFenced(err error) bool     { return errors.Is(err, ErrFenced) }
func isCorrupt(err error) bool    { return errors.Is(err, ErrCorrupt) }
func isIncomplete(err error) bool { return errors.Is(err, ErrIncomplete) }

var _ block.Seq
