// Package privilege takes from a program what it does not need: a process of root's
// goes in, and out comes one that reads disks, looks at the kernel's block layer,
// and can do nothing else.
//
// [Create] makes the user for it. [Drop] becomes that user, with two capabilities.
// [Confine] shuts the process in, which needs no privilege, and [Refused] shows that
// the kernel does not let it write to a disk. Where systemd runs it has done most of
// this before the program begins; nothing here minds that.
package privilege
