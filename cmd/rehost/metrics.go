package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// errNotLoopback says that measurements would be there for others to read: they
// name servers and say what state they are in, and nobody is asked who he is.
var errNotLoopback = errors.New("--metrics takes an address of this machine's loopback only, as 127.0.0.1:9464; for others, put a proxy before it that asks who they are")

// listenMetrics listens where Prometheus reads.
func listenMetrics(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for --metrics: %w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, errors.Join(errNotLoopback, l.Close())
	}
	return l, nil
}

// showMetrics serves the page until ctx ends.
func (s *served) showMetrics(ctx context.Context) error {
	server := newAPIServer(s.metrics(), s.log, apiTimeouts)
	defer context.AfterFunc(ctx, func() { server.Close() })()
	return fmt.Errorf("show metrics: %w", server.Serve(s.measures))
}

// metrics is the page.
func (s *served) metrics() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !namesLoopback(r.Host) { // a browser here that a page from elsewhere has sent under another name
			http.Error(w, "the host that was asked for is not this machine's loopback", http.StatusMisdirectedRequest)
			return
		}
		var page bytes.Buffer // whole or not at all
		if err := s.service.Metrics(r.Context(), &page); err != nil {
			if r.Context().Err() == nil {
				s.log.Error("metrics are not shown", "err", err)
			}
			http.Error(w, "the database cannot be read; the service's log says why", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(page.Bytes()) // to who is gone, if it fails
	})
	return mux
}

// namesLoopback is whether the host of a request, with or without port, is loopback.
func namesLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip.IsLoopback()
}
