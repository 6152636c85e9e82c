// Package fence decides who may connect to a port before anything is said on it:
// connections go in, those of addresses that the [Rules] allow come out, and when
// other rules come, those that they do not allow are cut.
//
// A [Listener] stands in front of the one that the kernel gives. Behind proxies
// it finds the address in the PROXY header, which it believes from listed peers
// only. A [Firewall] can keep packets away besides; fence/nft is one.
package fence
