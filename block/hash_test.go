package block

import (
	"encoding/hex"
	"testing"
)

// TestAppendHashes holds chunks to hashes that other implementations of BLAKE3
// give: of 64 KiB of zeros, and of its own published vector for one byte 0.
func TestAppendHashes(t *testing.T) {
	data := make([]byte, (2*ChunkBlocks+1)*Size)
	data[ChunkBlocks*Size+5] = 1
	got := AppendHashes(nil, data, ChunkBlocks)
	if len(got) != 3 {
		t.Fatalf("got %d hashes of 33 blocks, want 3", len(got))
	}
	if got[0] == got[1] || got[0] == got[2] {
		t.Error("chunks that differ in content or length have one hash")
	}
	if one := AppendHashes(nil, data[:ChunkBlocks*Size], 1); len(one) != ChunkBlocks || one[0] != one[15] {
		t.Errorf("cut into blocks: got %d hashes", len(one))
	}
	published := AppendHashes(nil, []byte{0}, ChunkBlocks)[0]
	if got, want := hex.EncodeToString(published[:]), "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"; got != want {
		t.Errorf("BLAKE3 of one byte 0: got %s, want %s", got, want)
	}
	var buffer [ChunkBlocks * Size]byte
	if got[0] != AppendHashes(nil, buffer[:], ChunkBlocks)[0] || got[0] != hashOfZeros() {
		t.Error("zeros have two hashes")
	}
}
