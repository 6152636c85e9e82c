// Package launch says what it means to start machines from replicated disks: in
// goes a [Spec] that names disks served over NBD, out comes an [Instance] whose
// first boot is verified, not assumed. A [Target] is a place where machines run;
// launch/qemu is the built-in one, and launchtest holds the suite that every
// target has to pass.
package launch
