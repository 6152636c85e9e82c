// Package block holds the nouns every step of the road shares: a [Disk] and its
// [DiskID], an [Extent] of blocks and sets of them ([Extents]), an epoch's
// position ([Seq], [Point]) and a [Run], the encoded content of one extent.
//
// A block is [Size] bytes everywhere in this project. A disk whose length is not
// a multiple of it ends in a block whose tail reads as zero.
package block
