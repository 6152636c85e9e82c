package capture

import (
	"context"

	"rehost/block"
)

// A Sink takes an epoch run by run and makes it a recovery point as a whole, for
// all disks together. wire.Session is one.
type Sink interface {
	// Put stages one run of an epoch. Many are called at once. Ordinals count from
	// 0 in the order in which runs were read: of two runs of one epoch that hold
	// the same block, the higher ordinal is the block's content. The payload is
	// the caller's again when Put returns: it must be neither kept nor changed.
	Put(ctx context.Context, epoch block.Seq, ordinal uint64, run block.Run) error

	// Commit completes the epoch point.Seq, whose Puts, runs of them, have all
	// returned. It returns nil once the point is durable. After an error it may
	// have taken place or not; the next session says which.
	Commit(ctx context.Context, point block.Point, runs uint64, flags block.Flags) error
}

// A Retractor is a [Sink] that can withdraw every point after an epoch, which is
// needed when an audit finds that changes may have gone unseen.
type Retractor interface {
	Retract(ctx context.Context, after block.Seq) error
}

// A Limiter is a [Sink] whose Put waits so that no more than so many bytes a
// second leave on average; 0 is no limit.
type Limiter interface {
	SetBandwidth(bytesPerSecond int64)
}

// A Decoder is a [Sink] whose other side may not know every codec, since it is
// older. Of a sink that is none every codec is expected to be known; Zero, Raw and
// Zstd always are.
type Decoder interface {
	Decodes(codec block.Codec) bool
}

// A Comparer is a [Sink] whose other side may hold much of a replica already, as
// after a reboot, and can say what of it has another content.
type Comparer interface {
	// Compare says for each chunk of an extent, of block.ChunkBlocks but the last,
	// whether its hash is another at the point, which is at or before the last one
	// of the session's begin. Many are called at once; an extent has at most 256
	// chunks.
	Compare(ctx context.Context, point block.Seq, extent block.Extent, hashes []block.Hash) (differ []bool, err error)
}
