// Package support makes support bundles: what somebody who is asked for help has to see goes
// in, as parts that are each read by themselves, and a bounded tar.gz comes out from which
// secrets have been taken.
//
// A part that cannot be read is replaced by the reason: a bundle is wanted where something
// does not work.
package support
