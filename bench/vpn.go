package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"rehost/ca"
	"rehost/tunnel"
	"rehost/wire"
)

const poured = 256 << 20 // bytes of one round, over all connections

// A dialer connects to what a listener of the same way listens on.
type dialer func(ctx context.Context) (net.Conn, error)

// vpn compares mutual TLS through the tunnel with mutual TLS without, as many
// connections as an agent has, both ends on this machine. CPU is that of both.
func (b *bench) vpn(ctx context.Context) error {
	fmt.Printf("vpn: %d MiB of noise over %d connections, mutual TLS\n", poured>>20, wire.DefaultConnections)
	server, client, err := mutualTLS(filepath.Join(b.dir, "vpn-ca"))
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer plain.Close()
	key := tunnel.NewKey()
	quiet := slog.New(slog.DiscardHandler)
	hub, err := tunnel.OpenHub(tunnel.NewKey(), 0, quiet)
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := hub.SetPeers([]tunnel.Peer{{Key: key.Public()}}); err != nil {
		return err
	}
	inside, err := hub.Listen(tunnel.ReplicationPort)
	if err != nil {
		return err
	}
	way, err := tunnel.OpenClient(tunnel.ClientOptions{Key: key, Hub: hub.Key(), Endpoint: fmt.Sprintf("127.0.0.1:%d", hub.Port()), Log: quiet})
	if err != nil {
		return err
	}
	defer way.Close()
	ways := []struct {
		name   string
		listen net.Listener
		dial   dialer
	}{
		{"tls", plain, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", plain.Addr().String())
		}},
		{"vpn", inside, func(ctx context.Context) (net.Conn, error) { return way.Dial(ctx, tunnel.ReplicationPort) }},
	}
	rates, costs := map[string][]float64{}, map[string][]float64{}
	for range b.rounds {
		for _, w := range ways {
			cpu, start := cpuSeconds(), time.Now()
			if err := pour(ctx, tls.NewListener(w.listen, server), w.dial, client); err != nil {
				return fmt.Errorf("pour through %s: %w", w.name, err)
			}
			rate, cost := poured/1e6/time.Since(start).Seconds(), (cpuSeconds()-cpu)/(poured/1e9)
			rates[w.name], costs[w.name] = append(rates[w.name], rate), append(costs[w.name], cost)
			fmt.Printf("  %-9s %7.0f MB/s %7.2f CPU s/GB\n", w.name, rate, cost)
		}
	}
	b.figures["vpn_mbps"] = median(rates["vpn"])
	b.figures["vpn_vs_tls"] = median(rates["vpn"]) / median(rates["tls"])
	b.figures["vpn_cpu_s_per_gb"] = median(costs["vpn"])
	b.figures["vpn_cpu_vs_tls"] = median(costs["vpn"]) / median(costs["tls"])
	return nil
}

// pour sends noise over connections of its own and waits until all has arrived.
func pour(ctx context.Context, l net.Listener, dial dialer, config *tls.Config) error {
	noise := make([]byte, 1<<20)
	rand.Read(noise) // never fails
	const each = poured / wire.DefaultConnections
	var all sync.WaitGroup
	errs := make([]error, 2*wire.DefaultConnections)
	for i := range wire.DefaultConnections {
		all.Go(func() {
			errs[2*i] = func() error {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := io.CopyN(io.Discard, c, each); err != nil {
					return err
				}
				_, err = c.Write([]byte{1})
				return err
			}()
		})
		all.Go(func() {
			errs[2*i+1] = func() error {
				raw, err := dial(ctx)
				if err != nil {
					return err
				}
				defer raw.Close()
				c := tls.Client(raw, config)
				for range each / len(noise) {
					if _, err := c.Write(noise); err != nil {
						return err
					}
				}
				_, err = c.Read(make([]byte, 1))
				return err
			}()
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// mutualTLS are the two sides of port 1500, of an authority of their own.
func mutualTLS(dir string) (server, client *tls.Config, err error) {
	authority, err := ca.Open(dir, ca.Options{})
	if err != nil {
		return nil, nil, err
	}
	name := ca.Name{Role: ca.ReplicationServer, ID: "i-0123456789abcdef0"}
	pair, err := authority.IssueReplicationServer(name.ID)
	if err != nil {
		return nil, nil, err
	}
	key, err := ca.NewKey()
	if err != nil {
		return nil, nil, err
	}
	request, err := ca.NewRequest(key)
	if err != nil {
		return nil, nil, err
	}
	chain, err := authority.IssueAgent(request, "s-0123456789abcdef0")
	if err != nil {
		return nil, nil, err
	}
	own, err := ca.Certificate(chain, key)
	if err != nil {
		return nil, nil, err
	}
	return ca.Endpoint{Bundle: authority.Bundle(), Certificate: ca.Fixed(pair)}.ServerConfig(ca.SourceServer),
		ca.Endpoint{Bundle: authority.Bundle(), Certificate: ca.Fixed(own)}.ClientConfig(name), nil
}
