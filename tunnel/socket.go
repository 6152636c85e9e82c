package tunnel

import (
	"errors"
	"net"

	"golang.zx2c4.com/wireguard/conn"
)

// A socket is the UDP side of an end. What cannot be sent as a batch, or from the
// address that it was sent from before, is sent once more without either: the
// kernel refuses batches whose packets have to be cut for a small MTU on the way,
// which it does for single ones, and an address that the machine has lost.
//
// It also keeps WireGuard from watching the routes of the machine, for which it
// would need another socket.
type socket struct{ conn.Bind }

// Send implements [conn.Bind]. What has gone out twice is thrown away where it
// arrives, as every replay is.
func (s socket) Send(bufs [][]byte, to conn.Endpoint) error {
	err := s.Bind.Send(bufs, to)
	if off := (conn.ErrUDPGSODisabled{}); errors.As(err, &off) && off.RetryErr == nil {
		return err // which is done then, and only to be logged
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		return err
	}
	plain, parsed := s.ParseEndpoint(to.DstToString())
	if parsed != nil {
		return errors.Join(err, parsed)
	}
	for i := range bufs {
		if err := s.Bind.Send(bufs[i:i+1], plain); err != nil {
			return err
		}
	}
	return nil
}
