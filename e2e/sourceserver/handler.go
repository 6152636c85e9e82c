package main

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// exitTrailer carries a command's exit status behind its output.
const exitTrailer = "X-Exit-Status"

const maxCommand = 1 << 20

var page = template.Must(template.New("page").Parse(`<!doctype html>
<title>{{.Machine.Hostname}}</title>
<h1>{{.Machine.Hostname}}</h1>
<p>Up for {{.Machine.Uptime}} seconds on kernel {{.Machine.Kernel}}.</p>
<p>Machine <code>{{.Machine.UUID}}</code>, root on <code>{{.Machine.Root}}</code>.</p>
<p>{{.Last}} records written.</p>
`))

// A machine is what the server knows of the computer that it runs on.
type machine struct {
	Hostname string            `json:"hostname"`
	UUID     string            `json:"uuid"`   // SMBIOS system UUID
	BootID   string            `json:"bootId"` // new at each start of the kernel
	Kernel   string            `json:"kernel"`
	Uptime   string            `json:"uptime"` // seconds
	Root     string            `json:"root"`   // device of the root file system
	Firmware string            `json:"firmware"`
	Disks    map[string]int64  `json:"disks"` // bytes by name
	MACs     map[string]string `json:"macs"`
}

func readMachine() machine {
	line := func(path string) string {
		b, _ := os.ReadFile(path) // what cannot be read is shown as empty
		return strings.TrimSpace(string(b))
	}
	m := machine{
		UUID:     line("/sys/class/dmi/id/product_uuid"),
		BootID:   line("/proc/sys/kernel/random/boot_id"),
		Kernel:   line("/proc/sys/kernel/osrelease"),
		Firmware: "bios",
		Disks:    map[string]int64{},
		MACs:     map[string]string{},
	}
	m.Hostname, _ = os.Hostname()
	m.Uptime, _, _ = strings.Cut(line("/proc/uptime"), " ")
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		m.Firmware = "uefi"
	}
	for _, mount := range strings.Split(line("/proc/mounts"), "\n") {
		if f := strings.Fields(mount); len(f) > 1 && f[1] == "/" {
			m.Root = f[0]
		}
	}
	disks, _ := filepath.Glob("/sys/block/*/device")
	for _, d := range disks {
		dir := filepath.Dir(d)
		sectors, _ := strconv.ParseInt(line(filepath.Join(dir, "size")), 10, 64)
		m.Disks[filepath.Base(dir)] = sectors * 512
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		if len(l.HardwareAddr) > 0 {
			m.MACs[l.Name] = l.HardwareAddr.String()
		}
	}
	return m
}

func newHandler(c config, w *writer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = page.Execute(rw, map[string]any{"Machine": readMachine(), "Last": w.Last()})
	})
	mux.HandleFunc("GET /machine", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, readMachine(), nil) })
	mux.HandleFunc("GET /records", func(rw http.ResponseWriter, _ *http.Request) {
		now, err := w.judge()
		answer(rw, map[string]any{"boot": w.boot, "now": now}, err)
	})
	mux.HandleFunc("POST /run", func(rw http.ResponseWriter, r *http.Request) { run(rw, r, c.token) })
	return mux
}

func answer(rw http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}

// run executes the body as a shell command, streams its output and ends with
// its exit status in a trailer. A command that goes away with the request is
// killed; what it leaves in the background is not.
func run(rw http.ResponseWriter, r *http.Request, token string) {
	given := r.Header.Get("Authorization")
	if token == "" || subtle.ConstantTimeCompare([]byte(given), []byte("Bearer "+token)) != 1 {
		http.Error(rw, "wrong token", http.StatusForbidden)
		return
	}
	command, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxCommand))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	rw.Header().Set("Trailer", exitTrailer)
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &flusher{rw}
	cmd := exec.CommandContext(r.Context(), "/bin/sh", "-c", string(command))
	cmd.Dir, cmd.Env = "/root", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"}
	cmd.Stdout, cmd.Stderr = out, out
	status := 0
	if err := cmd.Run(); err != nil {
		status = -1
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			status = exit.ExitCode()
		} else {
			fmt.Fprintf(out, "%v\n", err)
		}
	}
	rw.Header().Set(exitTrailer, strconv.Itoa(status))
}

// A flusher sends what is written at once.
type flusher struct{ rw http.ResponseWriter }

func (f *flusher) Write(p []byte) (int, error) {
	n, err := f.rw.Write(p)
	if fl, ok := f.rw.(http.Flusher); ok {
		fl.Flush()
	}
	return n, err
}
