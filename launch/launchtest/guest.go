package launchtest

import (
	"bytes"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"rehost/export"
	"rehost/launch"
)

// An End is what a guest does after it has printed its text.
type End int

// The ends.
const (
	Halt     End = iota // stays on, doing nothing
	PowerOff            // through ACPI
)

// BootSector is a guest for BIOS that prints text on the first serial port. The
// text has at most 400 bytes.
func BootSector(text string, end End) []byte {
	code := []byte{
		0xfa,       //       cli
		0x31, 0xc0, //       xor ax, ax
		0x8e, 0xd8, //       mov ds, ax
		0xfc,             //       cld
		0xbe, 0x40, 0x7c, //       mov si, 0x7c40
		0xac,       // next: lodsb
		0x84, 0xc0, //       test al, al
		0x74, 0x11, //       jz end
		0x88, 0xc4, //       mov ah, al
		0xba, 0xfd, 0x03, //       mov dx, 0x3fd
		0xec,       // wait: in al, dx
		0xa8, 0x20, //       test al, 0x20
		0x74, 0xfb, //       jz wait
		0x88, 0xe0, //       mov al, ah
		0xb2, 0xf8, //       mov dl, 0xf8
		0xee,       //       out dx, al
		0xeb, 0xea, //       jmp next
	}
	if end == PowerOff {
		code = append(code,
			0xba, 0x04, 0x06, // end: mov dx, 0x604
			0xb8, 0x00, 0x20, //       mov ax, 0x2000
			0xef, //       out dx, ax
		)
	}
	code = append(code, 0xf4, 0xeb, 0xfd) // end: hlt; jmp end
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[0x40:0x1fe-1], text)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// A Device is a disk in memory: its beginning, and zeros up to its size.
type Device struct {
	Beginning []byte
	Length    int64
}

// Size is the disk's length in bytes.
func (d Device) Size() int64 { return d.Length }

// ReadAt implements [io.ReaderAt].
func (d Device) ReadAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if off >= d.Length {
		return 0, io.EOF
	}
	n = min(n, d.Length-off)
	clear(p[:n])
	if off < int64(len(d.Beginning)) {
		copy(p[:n], d.Beginning[off:])
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// NextExtent implements export.Extenter.
func (d Device) NextExtent(off int64) (end int64, zero bool, err error) {
	if n := int64(len(d.Beginning)); off < n {
		return n, false, nil
	}
	return d.Length, true, nil
}

// Serve exports the devices by name for as long as the test runs, and returns
// the path of the socket.
func Serve(t *testing.T, devices map[string]export.Device) (socket string, server *export.Server) {
	t.Helper()
	server = export.New(export.Options{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { server.Close() })
	for name, d := range devices {
		if err := server.Add(name, d); err != nil {
			t.Fatal(err)
		}
	}
	socket = filepath.Join(t.TempDir(), "s", "nbd")
	if err := server.ListenUnix(socket); err != nil {
		t.Fatal(err)
	}
	return socket, server
}

// guest is a disk of 8 MiB that boots and prints text; behind the boot sector it
// has a MiB of content.
func guest(text string, end End) Device {
	content := bytes.Repeat([]byte("content "), 1<<17)
	return Device{Beginning: append(BootSector(text, end), content...), Length: 8 << 20}
}

// SpecFor is a small machine that boots the export of that name.
func SpecFor(id, socket, export string, size int64) launch.Spec {
	return launch.Spec{
		ID: id, Name: "test " + id, BootMode: launch.LegacyBIOS, CPUs: 1, MemoryMiB: 64,
		Disks: []launch.Disk{{Name: "d0", Socket: socket, Export: export, Size: size, Boot: true}},
	}
}
