// Package tunnel carries TCP connections through WireGuard, in user space: keys
// and one UDP port go in, a [net.Listener] on one side and a dialer on the other
// come out. It needs no root, no kernel module and no network interface.
//
// A [Hub] is the service's side. It knows the public keys of those who may come,
// and is silent to everybody else: what does not begin with a proof of knowing
// the hub's public key, and of having one of theirs, is never answered. A
// [Client] is the agent's side, and knows one hub.
//
// Addresses inside are made of public keys ([PublicKey.Address]), so nothing is
// handed out and nobody can have another's: WireGuard takes a packet only from
// the key whose address it carries. There is no way from one client to another,
// nor from a client to anything of the hub's machine but its listeners.
//
// What is carried is TLS all the same. The tunnel decides who may knock, not
// who is believed.
package tunnel
