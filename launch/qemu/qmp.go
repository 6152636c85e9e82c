package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// qmpTimeout bounds one conversation: QEMU answers at once unless it hangs.
const qmpTimeout = 20 * time.Second

// maxQMPLine bounds one answer.
const maxQMPLine = 4 << 20

// A monitor is a connection to a machine's QMP socket: JSON objects, one a line
// (QEMU's docs/interop/qmp-spec). QEMU serves one such connection at a time.
type monitor struct {
	nc     net.Conn
	in     *bufio.Scanner
	nextID int
}

// A qmpError is QEMU's answer that a command was not carried out.
type qmpError struct {
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Description }

// dialMonitor connects to the socket in an instance's directory. The path goes
// by a descriptor, since that of a socket may have no more than 107 bytes.
func dialMonitor(ctx context.Context, dir string) (*monitor, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), qmpSocket))
	if err != nil {
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	m := &monitor{nc: nc, in: bufio.NewScanner(nc)}
	m.in.Buffer(nil, maxQMPLine)
	deadline := time.Now().Add(qmpTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	nc.SetDeadline(deadline)
	var greeting struct {
		QMP *json.RawMessage
	}
	err = m.read(&greeting)
	if err == nil && greeting.QMP == nil {
		err = errors.New("there is none in it")
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("monitor greets with something else than QMP: %w", err)
	}
	if err := m.do("qmp_capabilities", nil, nil); err != nil {
		nc.Close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) read(v any) error {
	if !m.in.Scan() {
		if err := m.in.Err(); err != nil {
			return err
		}
		return errors.New("monitor hung up")
	}
	return json.Unmarshal(m.in.Bytes(), v)
}

// do runs one command and decodes what it returns into result, unless nil.
// Events that come in between are passed over.
func (m *monitor) do(command string, arguments, result any) error {
	m.nextID++
	req := map[string]any{"execute": command, "id": m.nextID}
	if arguments != nil {
		req["arguments"] = arguments
	}
	if err := json.NewEncoder(m.nc).Encode(req); err != nil {
		return fmt.Errorf("monitor: %s: %w", command, err)
	}
	for {
		var answer struct {
			ID     int             `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *qmpError       `json:"error"`
		}
		if err := m.read(&answer); err != nil {
			return fmt.Errorf("monitor: %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("monitor: %s: %w", command, answer.Error)
		case answer.Return == nil || answer.ID != m.nextID:
			continue
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(answer.Return, result); err != nil {
			return fmt.Errorf("monitor: %s: decode answer: %w", command, err)
		}
		return nil
	}
}

// Close hangs up.
func (m *monitor) Close() { m.nc.Close() }
