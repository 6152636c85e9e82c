// Package release tells the programs of a release from all others: the list of
// their sums and the signature of whoever made the release go in, and a
// [Manifest] comes out, which says what version they are and whether a file is
// one of them. docs/format/release.md has the files.
package release
