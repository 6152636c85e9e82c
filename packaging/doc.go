// Command packaging makes a release: the sources of this tree and a version go
// in; static programs for each architecture, packages of them, the list of
// their sums and its signature come out (docs/format/release.md).
//
//	go run ./packaging --version 1.2.3 --out build/release --key release.key
//
// The same sources, version and SOURCE_DATE_EPOCH give the same bytes.
package main
