// Package bpf is the kernel side of change tracking: three programs on the block
// layer's request tracepoints and a spare one (tracker.bpf.c), compiled ahead of time and found a
// home in the running kernel through its BTF (CO-RE), and the memory they share
// with user space. It loads and attaches; what the marks mean is package
// capture's business.
//
// The objects are checked in: building the agent needs no compiler, and the
// source server neither compiler nor kernel headers.
package bpf

//go:generate go tool bpf2go -go-package bpf -target amd64,arm64 -cc clang-14 -strip llvm-strip-14 -cflags "-O2 -g -mcpu=v3 -Wall -Werror" tracker tracker.bpf.c
