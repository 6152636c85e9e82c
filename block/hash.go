package block

import (
	"sync"

	"github.com/zeebo/blake3"
)

// ChunkBlocks is how many blocks share a [Hash] where two copies of a disk are
// compared: 64 KiB. Smaller chunks would send less of what differs and more
// hashes: 1 TiB takes 512 MiB of them now.
const ChunkBlocks = 16

// A Hash is the BLAKE3 of a chunk's bytes.
type Hash [32]byte

// Chunks are the chunks of the disk, counted from its beginning, that lie wholly
// within the extent: n of them from first on.
func (e Extent) Chunks() (first, n uint64) {
	first = (e.Start + ChunkBlocks - 1) / ChunkBlocks
	return first, max(first, e.End()/ChunkBlocks) - first
}

// AppendHashes appends the hashes of the chunks that data is cut into, each of
// n blocks but the last, which may be shorter.
func AppendHashes(hashes []Hash, data []byte, n int) []Hash {
	for len(data) > 0 {
		chunk := data[:min(n*Size, len(data))]
		data = data[len(chunk):]
		if len(chunk) == ChunkBlocks*Size && IsZero(chunk) { // much of most disks
			hashes = append(hashes, ZeroHash())
			continue
		}
		hashes = append(hashes, blake3.Sum256(chunk))
	}
	return hashes
}

// ZeroHash is the hash of a whole chunk of zeros.
func ZeroHash() Hash { return hashOfZeros() }

var hashOfZeros = sync.OnceValue(func() Hash { return blake3.Sum256(zeros[:ChunkBlocks*Size]) })
