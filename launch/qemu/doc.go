// Package qemu launches machines in QEMU on this host: in goes a [launch.Spec]
// whose disks are served over NBD, out comes a detached QEMU process that boots
// from copy-on-write overlays over them.
//
// Each instance has a directory of its own, mode 0700, under the target's:
//
//	ID/instance.json   the record: spec, identity, what is known of the first boot
//	ID/NAME.qcow2      overlay of disk NAME
//	ID/efivars.fd      the firmware's variables, fresh for each launch (UEFI)
//	ID/console.log     what the guest printed on its serial console
//	ID/qemu.log        what QEMU itself had to say
//	ID/qemu.pid, ID/qmp.sock
//
// The record is written before the process is started, and a machine runs no
// instruction before the record says that it is launched. So whatever is found
// after a crash is either a launched machine, which is taken over, or a half
// launched one, which is removed.
package qemu
