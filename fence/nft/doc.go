// Package nft keeps packets away from a port with nftables: addresses that may
// come go in, a table of its own in the kernel comes out, replaced whole with each
// change and gone at the end. Nothing else of the machine's rules is touched.
package nft
