package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

var errAborted = errors.New("client aborted the negotiation")

// A context query of the meta context options, parsed.
type metaQuery struct {
	export  string
	queries []string
}

// negotiate goes through the handshake until an export is chosen.
func (c *conn) negotiate() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return err
	}
	hello := binary.BigEndian.AppendUint64(nil, magicNBD)
	hello = binary.BigEndian.AppendUint64(hello, magicIHaveOpt)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(hello); err != nil {
		return err
	}
	var word [4]byte
	if _, err := io.ReadFull(c.r, word[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(word[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 || flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("client flags %#x", flags)
	}
	c.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		done, err := c.option()
		if err != nil {
			return err
		}
		if done {
			return c.nc.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("more than %d options", maxOptions)
}

// option reads and answers one option; done tells that transmission begins.
func (c *conn) option() (done bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return false, err
	}
	magic, opt := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
	length := binary.BigEndian.Uint32(head[12:])
	if magic != magicIHaveOpt {
		return false, fmt.Errorf("option magic %#x", magic)
	}
	if length > maxOption {
		// Not worth reading, and the stream cannot be followed without.
		return false, errors.Join(fmt.Errorf("option %d of %d bytes", opt, length), c.reply(opt, repErrTooBig, nil))
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(c.r, data); err != nil {
		return false, err
	}
	switch opt {
	case optExportName:
		return true, c.chooseByName(string(data))
	case optAbort:
		_ = c.reply(opt, repAck, nil) // who aborts may not wait for it
		return false, errAborted
	case optList:
		return false, c.list(data)
	case optInfo, optGo:
		return c.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, c.reply(opt, repErrInvalid, nil)
		}
		c.structured = true
		return false, c.reply(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	}
	return false, c.reply(opt, repErrUnsup, nil)
}

// reply sends one option reply.
func (c *conn) reply(opt, kind uint32, data []byte) error {
	out := binary.BigEndian.AppendUint64(make([]byte, 0, 20+len(data)), magicOptReply)
	out = binary.BigEndian.AppendUint32(out, opt)
	out = binary.BigEndian.AppendUint32(out, kind)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	_, err := c.nc.Write(append(out, data...))
	return err
}

// chooseByName answers NBD_OPT_EXPORT_NAME, which knows no error but the end of
// the connection.
func (c *conn) chooseByName(name string) error {
	if !c.choose(name) {
		return fmt.Errorf("unknown export %.64q", name)
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(c.export.size))
	out = binary.BigEndian.AppendUint16(out, c.transmissionFlags())
	if !c.noZeroes {
		out = append(out, make([]byte, 124)...)
	}
	_, err := c.nc.Write(out)
	return err
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.reply(optList, repErrInvalid, nil)
	}
	for _, name := range c.srv.Names() {
		entry := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		if err := c.reply(optList, repServer, append(entry, name...)); err != nil {
			return err
		}
	}
	return c.reply(optList, repAck, nil)
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (c *conn) info(opt uint32, data []byte) (done bool, err error) {
	name, wanted, ok := parseInfo(data)
	if !ok {
		return false, c.reply(opt, repErrInvalid, nil)
	}
	if !c.choose(name) {
		return false, c.reply(opt, repErrUnknown, nil)
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(c.export.size))
	export = binary.BigEndian.AppendUint16(export, c.transmissionFlags())
	replies := [][]byte{export}
	for _, kind := range wanted {
		switch kind {
		case infoName:
			replies = append(replies, append(binary.BigEndian.AppendUint16(nil, infoName), name...))
		case infoBlockSize:
			sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
			for _, n := range []uint32{1, preferredBlock, maxRequest} {
				sizes = binary.BigEndian.AppendUint32(sizes, n)
			}
			replies = append(replies, sizes)
		}
	}
	for _, r := range replies {
		if err := c.reply(opt, repInfo, r); err != nil {
			return false, err
		}
	}
	return opt == optGo, c.reply(opt, repAck, nil)
}

func parseInfo(data []byte) (name string, wanted []uint16, ok bool) {
	name, data, ok = takeString(data)
	if !ok || len(data) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(data))
	if data = data[2:]; len(data) != 2*n {
		return "", nil, false
	}
	for i := range n {
		wanted = append(wanted, binary.BigEndian.Uint16(data[2*i:]))
	}
	return name, wanted, true
}

// metaContext answers the options that list and choose metadata contexts.
func (c *conn) metaContext(opt uint32, data []byte) error {
	q, ok := parseMetaQuery(data)
	if !ok || opt == optSetMetaContext && !c.structured {
		return c.reply(opt, repErrInvalid, nil)
	}
	if opt == optSetMetaContext {
		c.allocation = false
	}
	if !c.choose(q.export) {
		return c.reply(opt, repErrUnknown, nil)
	}
	match := opt == optListMetaContext && len(q.queries) == 0
	for _, s := range q.queries {
		match = match || s == baseAllocation || opt == optListMetaContext && s == "base:"
	}
	if _, has := c.export.device.(Extenter); match && has {
		id := uint32(0)
		if opt == optSetMetaContext {
			id, c.allocation, c.allocationFor = baseAllocationID, true, q.export
		}
		entry := binary.BigEndian.AppendUint32(nil, id)
		if err := c.reply(opt, repMetaContext, append(entry, baseAllocation...)); err != nil {
			return err
		}
	}
	return c.reply(opt, repAck, nil)
}

func parseMetaQuery(data []byte) (q metaQuery, ok bool) {
	q.export, data, ok = takeString(data)
	if !ok || len(data) < 4 {
		return q, false
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	for range min(n, maxOption) {
		var s string
		if s, data, ok = takeString(data); !ok {
			return q, false
		}
		q.queries = append(q.queries, s)
	}
	return q, len(data) == 0
}

// takeString cuts a string with its length in front off data.
func takeString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	if data = data[4:]; n > maxName || uint64(n) > uint64(len(data)) {
		return "", nil, false
	}
	return string(data[:n]), data[n:], true
}
