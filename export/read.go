package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

var pieces = sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }}

var zeroPiece = make([]byte, pieceSize)

// readSimple answers a read without structured replies, which has to be read
// whole before the first byte can be sent: afterwards no error can be told.
func (c *conn) readSimple(req request) error {
	n := int64(req.length)
	if err := c.srv.memory.Acquire(c.srv.ctx, n); err != nil {
		return err
	}
	defer c.srv.memory.Release(n)
	buf := make([]byte, n)
	for done := int64(0); done < n; {
		end := min(done+pieceSize, n)
		if _, err := c.readPiece(buf[done:end], int64(req.offset)+done); err != nil {
			c.logRead(req, err)
			return c.finish(req, errIO)
		}
		done = end
	}
	return c.send(simpleHeader(req, 0), buf)
}

// readStructured answers a read piece by piece, leaving zeros out.
func (c *conn) readStructured(req request) error {
	off, end := int64(req.offset), int64(req.offset)+int64(req.length)
	for off < end {
		next, zero, err := c.zeroExtent(off, end)
		if err == nil && !zero {
			next, err = c.sendPiece(req, off, next)
		} else if err == nil {
			err = c.sendHole(req, off, next)
		}
		var r *readError
		if errors.As(err, &r) {
			c.logRead(req, err)
			return c.finish(req, errIO)
		}
		if err != nil {
			return err
		}
		off = next
	}
	return c.send(chunkHeader(req, replyFlagDone, replyNone, 0))
}

// A readError is the device's, not the connection's.
type readError struct {
	off int64
	err error
}

func (e *readError) Error() string { return fmt.Sprintf("read at %d: %v", e.off, e.err) }
func (e *readError) Unwrap() error { return e.err }

// zeroExtent asks a device that knows where it has zeros.
func (c *conn) zeroExtent(off, end int64) (next int64, zero bool, err error) {
	x, ok := c.export.device.(Extenter)
	if !ok {
		return end, false, nil
	}
	next, zero, err = x.NextExtent(off)
	if err == nil && next <= off {
		err = fmt.Errorf("extent ends at %d", next)
	}
	if err != nil {
		return 0, false, &readError{off, err}
	}
	return min(next, end), zero, nil
}

// sendPiece sends at most a piece of what lies between off and end, and returns
// how far it came.
func (c *conn) sendPiece(req request, off, end int64) (next int64, err error) {
	end = min(end, off+pieceSize)
	if err := c.srv.memory.Acquire(c.srv.ctx, pieceSize); err != nil {
		return 0, err
	}
	defer c.srv.memory.Release(pieceSize)
	b := pieces.Get().(*[]byte)
	defer pieces.Put(b)
	buf := (*b)[:end-off]
	zero, err := c.readPiece(buf, off)
	if err != nil {
		return 0, &readError{off, err}
	}
	if zero {
		return end, c.sendHole(req, off, end)
	}
	head := chunkHeader(req, 0, replyOffsetData, 8+len(buf))
	return end, c.send(binary.BigEndian.AppendUint64(head, uint64(off)), buf)
}

func (c *conn) sendHole(req request, off, end int64) error {
	out := chunkHeader(req, 0, replyOffsetHole, 12)
	out = binary.BigEndian.AppendUint64(out, uint64(off))
	return c.send(binary.BigEndian.AppendUint32(out, uint32(end-off)))
}

// readPiece fills buf, of at most a piece, and tells whether it is all zeros.
func (c *conn) readPiece(buf []byte, off int64) (zero bool, err error) {
	n, err := c.export.device.ReadAt(buf, off)
	if n < len(buf) {
		if err == nil {
			err = io.ErrUnexpectedEOF // against the contract of ReaderAt
		}
		return false, err
	}
	return string(buf) == string(zeroPiece[:len(buf)]), nil
}

func (c *conn) logRead(req request, err error) {
	c.srv.log.Error("read exported device", "export", c.export.name, "offset", req.offset, "length", req.length, "err", err)
}

// blockStatus answers with the extents of base:allocation.
func (c *conn) blockStatus(req request) error {
	limit := maxDescriptors
	if req.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	type descriptor struct{ length, state uint32 }
	var list []descriptor
	for off, end := int64(req.offset), int64(req.offset)+int64(req.length); off < end; {
		next, zero, err := c.zeroExtent(off, end)
		if err != nil {
			c.logRead(req, err)
			return c.finish(req, errIO)
		}
		state := uint32(0)
		if zero {
			state = stateHole | stateZero
		}
		if n := len(list); n > 0 && list[n-1].state == state {
			list[n-1].length += uint32(next - off)
		} else if n == limit {
			break
		} else {
			list = append(list, descriptor{uint32(next - off), state})
		}
		off = next
	}
	out := chunkHeader(req, replyFlagDone, replyBlockStatus, 4+8*len(list))
	out = binary.BigEndian.AppendUint32(out, baseAllocationID)
	for _, d := range list {
		out = binary.BigEndian.AppendUint32(out, d.length)
		out = binary.BigEndian.AppendUint32(out, d.state)
	}
	return c.send(out)
}
