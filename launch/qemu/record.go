package qemu

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rehost/launch"
)

const (
	recordFile    = "instance.json"
	recordVersion = 1
	pidFile       = "qemu.pid"
	qmpSocket     = "qmp.sock"
	consoleFile   = "console.log"
	varsFile      = "efivars.fd"
	outputFile    = "qemu.log"
)

// A record is what is kept of an instance in its directory.
type record struct {
	Version  int              `json:"version"`
	Spec     launch.Spec      `json:"spec"`
	UUID     string           `json:"uuid"`
	MAC      string           `json:"mac"`
	Accel    string           `json:"accel"`
	Started  time.Time        `json:"started"`  // QEMU ran and had opened all its disks; zero before
	Launched bool             `json:"launched"` // Launch did all that it had to do
	Forwards []launch.Forward `json:"forwards,omitempty"`

	FirstBoot       launch.FirstBoot `json:"firstBoot"`
	FirstBootReason string           `json:"firstBootReason,omitempty"`
	FirstBootAt     time.Time        `json:"firstBootAt,omitzero"`
	Hydrated        bool             `json:"hydrated"`
}

// newRecord gives a machine its identity.
func newRecord(spec launch.Spec, accel string) record {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	var m [3]byte
	rand.Read(m[:])
	return record{
		Version: recordVersion, Spec: spec, Accel: accel, FirstBoot: launch.FirstBootWaiting,
		UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		MAC:  fmt.Sprintf("52:54:00:%02x:%02x:%02x", m[0], m[1], m[2]),
	}
}

// write replaces the record in dir, durably: it is there whole or not at all.
func (r record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, recordFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, recordFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func readRecord(dir string) (r record, err error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", recordFile, err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("read %s: version %d is not known", recordFile, r.Version)
	}
	if r.UUID == "" || r.Spec.ID != filepath.Base(dir) {
		return r, fmt.Errorf("read %s: it is about instance %q, uuid %q", recordFile, r.Spec.ID, r.UUID)
	}
	return r, nil
}
