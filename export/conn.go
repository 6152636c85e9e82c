package export

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A conn is one client, first negotiating, then transmitting:
//
//	negotiate -> receive requests, answer up to maxInFlight of them at a time -> end
//
// A goroutine reads requests; each request that asks for data is answered by a
// goroutine of its own.
type conn struct {
	srv *Server
	nc  net.Conn
	r   *bufio.Reader

	// Set by the negotiation, constant afterwards.
	noZeroes      bool
	structured    bool
	allocation    bool   // base:allocation was chosen,
	allocationFor string // for this export
	export        *exported

	inFlight chan struct{} // a slot per request being answered
	answers  sync.WaitGroup

	writing sync.Mutex // one reply chunk at a time
}

// A request as it came, without a payload.
type request struct {
	flags, kind uint16
	cookie      uint64
	offset      uint64
	length      uint32
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{srv: s, nc: nc, r: bufio.NewReader(nc), inFlight: make(chan struct{}, maxInFlight)}
}

func (c *conn) exportName() string {
	if c.export == nil {
		return ""
	}
	return c.export.name
}

// choose makes name the export of the connection and lets go of an earlier one.
func (c *conn) choose(name string) bool {
	if c.export != nil {
		c.srv.release(c.export, c)
	}
	c.export = c.srv.acquire(name, c)
	return c.export != nil
}

func (c *conn) transmissionFlags() uint16 {
	return flagHasFlags | flagReadOnly | flagSendFlush | flagCanMultiConn | flagSendCache
}

func (c *conn) serve() error {
	defer func() {
		c.nc.Close()
		c.answers.Wait()
		if c.export != nil {
			c.srv.release(c.export, c)
		}
	}()
	if err := c.negotiate(); err != nil {
		if errors.Is(err, errAborted) {
			return nil
		}
		return fmt.Errorf("negotiate: %w", err)
	}
	// Contexts hold for the export that they were asked for.
	c.allocation = c.allocation && c.allocationFor == c.export.name
	for {
		req, err := c.receive()
		if err != nil {
			return fmt.Errorf("receive request: %w", err)
		}
		if req.kind == cmdDisc {
			c.answers.Wait()
			return nil
		}
		c.inFlight <- struct{}{} // while it waits, the client's requests wait in the socket
		c.answers.Go(func() {
			defer func() { <-c.inFlight }()
			if err := c.answer(req); err != nil {
				c.nc.Close() // which ends receive
			}
		})
	}
}

func (c *conn) receive() (req request, err error) {
	var head [28]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return req, err
	}
	if magic := binary.BigEndian.Uint32(head[:]); magic != magicRequest {
		return req, fmt.Errorf("request magic %#x", magic)
	}
	req = request{
		flags:  binary.BigEndian.Uint16(head[4:]),
		kind:   binary.BigEndian.Uint16(head[6:]),
		cookie: binary.BigEndian.Uint64(head[8:]),
		offset: binary.BigEndian.Uint64(head[16:]),
		length: binary.BigEndian.Uint32(head[24:]),
	}
	if req.kind == cmdWrite {
		// A write carries its data, which has to be passed over to find the next request.
		if req.length > maxRequest {
			return req, fmt.Errorf("write of %d bytes", req.length)
		}
		if _, err := io.CopyN(io.Discard, c.r, int64(req.length)); err != nil {
			return req, err
		}
	}
	return req, nil
}

// answer replies to one request. An error means that the connection is of no
// use any more.
func (c *conn) answer(req request) error {
	if e := c.check(req); e != 0 {
		return c.finish(req, e)
	}
	switch req.kind {
	case cmdRead:
		if c.structured {
			return c.readStructured(req)
		}
		return c.readSimple(req)
	case cmdBlockStatus:
		return c.blockStatus(req)
	}
	return c.finish(req, 0) // flush, cache: there is nothing to do
}

// check says with which error a request is refused, 0 if it is not.
func (c *conn) check(req request) errno {
	switch req.kind {
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		return errPerm
	case cmdFlush:
		if req.offset != 0 || req.length != 0 || req.flags != 0 {
			return errInvalid
		}
		return 0
	case cmdRead, cmdCache, cmdBlockStatus:
	default:
		return errInvalid
	}
	size := uint64(c.export.size)
	allowed := uint16(0)
	if req.kind == cmdBlockStatus {
		allowed = cmdFlagReqOne
	}
	switch {
	case req.flags&^allowed != 0,
		req.offset > size || uint64(req.length) > size-req.offset,
		req.kind == cmdBlockStatus && (!c.allocation || req.length == 0):
		return errInvalid
	case req.kind == cmdRead && req.length > maxRequest:
		return errOverflow
	}
	return 0
}

// finish ends a request that has no data to send.
func (c *conn) finish(req request, e errno) error {
	if !c.structured {
		return c.send(simpleHeader(req, e))
	}
	if e == 0 {
		return c.send(chunkHeader(req, replyFlagDone, replyNone, 0))
	}
	out := chunkHeader(req, replyFlagDone, replyError, 6)
	out = binary.BigEndian.AppendUint32(out, uint32(e))
	return c.send(binary.BigEndian.AppendUint16(out, 0)) // no message
}

func simpleHeader(req request, e errno) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicSimple)
	out = binary.BigEndian.AppendUint32(out, uint32(e))
	return binary.BigEndian.AppendUint64(out, req.cookie)
}

func chunkHeader(req request, flags, kind uint16, length int) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 40), magicStructured)
	out = binary.BigEndian.AppendUint16(out, flags)
	out = binary.BigEndian.AppendUint16(out, kind)
	out = binary.BigEndian.AppendUint64(out, req.cookie)
	return binary.BigEndian.AppendUint32(out, uint32(length))
}

// send writes the parts of one reply or chunk without another in between.
func (c *conn) send(parts ...[]byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.opts.WriteTimeout)); err != nil {
		return err
	}
	buffers := net.Buffers(parts)
	_, err := buffers.WriteTo(c.nc)
	return err
}
