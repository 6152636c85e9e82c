// Package testvm boots machines in QEMU for tests and demonstrations: in goes a
// description of disks and ports, out comes a running machine with its serial
// console. A machine dies with the process that started it, whatever happens.
package testvm
