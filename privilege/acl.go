package privilege

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// This file reads and writes the access control lists of acl(5), as far as a device needs
// them.

// accessList is where the kernel shows the list of a file: a version and the entries
// (linux/posix_acl_xattr.h).
const (
	accessList    = "system.posix_acl_access"
	accessVersion = 2
)

// A listEntry says what somebody may. Entries are in the order of their tags.
type listEntry struct {
	Tag, May uint16
	ID       uint32
}

// same is whether two entries are about the same group.
func (e listEntry) same(o listEntry) bool { return e.Tag == o.Tag && e.ID == o.ID }

const (
	tagOwner      = 1
	tagOwnerGroup = 4
	tagGroup      = 8
	tagMask       = 0x10 // the most that anybody gets but the owner and others: what mode shows of the group
	tagOthers     = 0x20

	nobody  = ^uint32(0) // the ID where a tag needs none
	mayRead = 4
)

// list is that of a file, and what its mode says where it has none.
func list(path string, mode uint32) ([]listEntry, error) {
	text := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Getxattr(path, accessList, text)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return plainList(mode), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read its access control list: %w", err)
	}
	var version uint32
	r := bytes.NewReader(text[:n])
	entries := make([]listEntry, max(0, n-4)/8)
	if err := errors.Join(binary.Read(r, binary.LittleEndian, &version), binary.Read(r, binary.LittleEndian, entries)); err != nil || version != accessVersion || r.Len() > 0 {
		return nil, fmt.Errorf("read its access control list: %d bytes of version %d are not understood", n, version)
	}
	return entries, nil
}

// plainList says what a mode does. The mask is for entries that come to it.
func plainList(mode uint32) []listEntry {
	owner, group, others := uint16(mode>>6&7), uint16(mode>>3&7), uint16(mode&7)
	return []listEntry{{tagOwner, owner, nobody}, {tagOwnerGroup, group, nobody}, {tagMask, group, nobody}, {tagOthers, others, nobody}}
}

func setList(path string, entries []listEntry) error {
	var b bytes.Buffer
	err := errors.Join(binary.Write(&b, binary.LittleEndian, uint32(accessVersion)), binary.Write(&b, binary.LittleEndian, entries))
	if err == nil {
		err = unix.Setxattr(path, accessList, b.Bytes(), 0)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("write its access control list: %w; give it to the group that may read disks (chgrp disk)", err)
	}
	if err != nil {
		return fmt.Errorf("write its access control list: %w", err)
	}
	return nil
}

// listReader lets a group read a file that another may read: its mode stays what it is.
func listReader(path string, mode uint32, group int) error {
	entries, err := list(path, mode)
	if err != nil {
		return err
	}
	reader := listEntry{tagGroup, mayRead, uint32(group)}
	if slices.Contains(entries, reader) {
		return nil
	}
	entries = slices.DeleteFunc(entries, reader.same)
	at := slices.IndexFunc(entries, func(e listEntry) bool { return e.Tag > tagGroup })
	return setList(path, slices.Insert(entries, at, reader))
}

// unlistReader takes a group out of the list of a file. A list that says no more than the
// mode goes, so that the file is as it was.
func unlistReader(path string, mode uint32, group int) error {
	entries, err := list(path, mode)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(entries), listEntry{Tag: tagGroup, ID: uint32(group)}.same)
	if len(left) == len(entries) {
		return nil
	}
	if !slices.Equal(left, plainList(mode)) {
		return setList(path, left)
	}
	if err := unix.Removexattr(path, accessList); err != nil {
		return fmt.Errorf("remove its access control list: %w", err)
	}
	return nil
}
