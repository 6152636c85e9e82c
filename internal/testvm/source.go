package testvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// GuestHost is how a guest on QEMU's user network reaches the host's loopback.
const GuestHost = "10.0.2.2"

// Shell executes a command in a machine that runs the image of e2e/sourceserver,
// whose token must be given, and returns its output. A command that ends with
// another status than 0 is an error.
func (v *VM) Shell(ctx context.Context, token, command string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.Addr(80)+"/run", strings.NewReader(command))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("run a command in the machine: %w", err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return string(out), fmt.Errorf("run a command in the machine: %w", err)
	}
	if status := resp.Trailer.Get("X-Exit-Status"); resp.StatusCode != http.StatusOK || status != "0" {
		return string(out), fmt.Errorf("a command in the machine ended with status %q (HTTP %s): %s", status, resp.Status, out)
	}
	return string(out), nil
}

// An Offer is a program on the host that guests can fetch.
type Offer struct {
	// Fetch is a shell script that puts the program at its place in the guest and
	// checks that it arrived whole.
	Fetch string

	srv  *http.Server
	done chan error
}

// OfferFile serves the program at path to guests, who put it at place.
func OfferFile(path, place string) (*Offer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &Offer{done: make(chan error, 1), srv: &http.Server{ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })}}
	go func() { o.done <- o.srv.Serve(l) }()
	o.Fetch = fmt.Sprintf("set -e\nbusybox wget -q -O %[1]s http://%[2]s:%[3]d/%[4]s\necho '%[5]s  %[1]s' | sha256sum -c >/dev/null\nchmod 755 %[1]s\n",
		place, GuestHost, l.Addr().(*net.TCPAddr).Port, filepath.Base(path), hex.EncodeToString(sum.Sum(nil)))
	return o, nil
}

// Close ends the offer.
func (o *Offer) Close() error {
	err := o.srv.Close()
	if e := <-o.done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}
