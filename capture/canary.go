package capture

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"rehost/block"
	"rehost/capture/bpf"
	"rehost/internal/loop"
)

const canaryBlocks = 256

// verses is how often the canary is tried: on a machine that does much at once, kernels
// from 7.0 on skip a program one time in some.
const verses = 8

// A canary is a small disk of our own, written to at the start to see whether
// the kernel runs the programs at all. The user's disks are never written.
type canary struct {
	disk   bpf.Disk
	shift  uint
	file   *os.File
	device *loop.Device
}

// newCanary makes a loop device over anonymous memory, placed behind the disks
// of l in the dirty bitmap. It needs more privileges than tracking does.
func newCanary(sysfs string, l *layout) (_ *canary, err error) {
	fd, err := unix.MemfdCreate("rehost-canary", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a canary: %w", err)
	}
	c := &canary{shift: l.shift, file: os.NewFile(uintptr(fd), "canary")}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := c.file.Truncate(canaryBlocks * block.Size); err != nil {
		return nil, fmt.Errorf("make a canary: %w", err)
	}
	if c.device, err = loop.Attach(c.file); err != nil {
		return nil, err
	}
	c.disk = bpf.Disk{Granules: (canaryBlocks-1)>>l.shift + 1, Word0: uint32(l.words)}
	if c.disk.Major, c.disk.Minor, err = c.device.Numbers(); err != nil {
		return nil, err
	}
	c.disk.Queues, c.disk.Tags, err = bpf.Queues(sysBlock(sysfs, c.disk.Major, c.disk.Minor))
	return c, err
}

// sing writes to the canary and expects every mark that a write must leave. The end
// of a write may go unseen on a machine that writes a lot (which the pending table
// makes good for), so it is tried again; its beginning only where the kernel counts
// that it skipped the program.
func (c *canary) sing(t *bpf.Tracker, slot int) (err error) {
	f, err := os.OpenFile(c.device.Path, os.O_WRONLY|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return fmt.Errorf("write to the canary: %w", err)
	}
	defer f.Close()
	for range verses {
		seen, err := c.verse(f, t, slot)
		if err != nil || seen {
			return err
		}
	}
	n := t.Counters(slot)
	return fmt.Errorf("of the canary's writes the kernel showed %d at the start and %d at the end", n.Issued, n.Completed)
}

// verse reports whether every mark of a few writes was seen.
func (c *canary) verse(f *os.File, t *bpf.Tracker, slot int) (seen bool, err error) {
	buf := newBuffer()[:block.Size]
	const writes = 4
	before := t.Counters(slot)
	skips, err := t.Skips()
	if err != nil {
		return false, err
	}
	t.Prepare()
	t.Flip()
	for i := range writes {
		buf[0] = byte(i)
		if _, err := f.WriteAt(buf, int64(i)*64*block.Size); err != nil {
			return false, fmt.Errorf("write to the canary: %w", err)
		}
		if !t.Conflict(slot, uint64(i)*64>>c.shift, 1) {
			if now, err := t.Skips(); err != nil || now.Blind(skips) {
				return false, err
			}
			return false, fmt.Errorf("the canary's write %d did not reach the conflict filter", i)
		}
	}
	from := int(c.disk.Word0)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n := t.Counters(slot)
		if marked := t.DirtyBits(from, from+int(c.disk.Granules+63)/64); marked >= 1 && n.Issued-before.Issued >= writes && n.Completed-before.Completed >= writes {
			return true, nil
		}
	}
	return false, nil
}

func (c *canary) close() {
	if c.device != nil {
		c.device.Close()
	}
	c.file.Close()
}
