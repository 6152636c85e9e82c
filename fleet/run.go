package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Result is how it went on one host.
type Result struct {
	Host   Host
	Server string // the source server's id; "" if the agent did not say it
	Before bool   // it was installed by an earlier run
	Err    error  // nil: installed
}

// Progress is told what happens; its methods are called one at a time.
type Progress interface {
	// Begin is called once.
	Begin(hosts []Host)
	// Step is called when a host's installation has come to another step.
	Step(host int, name, detail string, took time.Duration)
	// End is called once.
	End()
}

// Run installs on all hosts, so many at a time, and returns a result for each, in
// their order. A host that fails does not keep others from being done. What is done
// is written to the journal, a file that may not exist yet: hosts that are in it are
// left out, so that a run that was interrupted or failed here and there is run again.
// The error is about the plan or the journal, or ctx's; not about hosts.
func Run(ctx context.Context, p Plan, hosts []Host, journal string, progress Progress) ([]Result, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if p.Parallel <= 0 {
		p.Parallel = DefaultParallel
	}
	if p.Timeout <= 0 {
		p.Timeout = DefaultTimeout
	}
	j, err := openJournal(journal)
	if err != nil {
		return nil, err
	}
	before := maps.Clone(j.Done)
	results := make([]Result, len(hosts))
	var mu sync.Mutex // of progress and journal
	progress.Begin(hosts)
	defer progress.End()
	var g errgroup.Group
	g.SetLimit(p.Parallel)
	for i, h := range hosts {
		res := &results[i]
		res.Host = h
		start := time.Now()
		tell := func(s step, detail string) {
			mu.Lock()
			defer mu.Unlock()
			progress.Step(i, string(s), detail, time.Since(start))
		}
		if d, there := before[h.Address()]; there && d.Endpoint == p.Endpoint {
			res.Before, res.Server = true, d.Server
			tell(skipped, d.Server)
			continue
		}
		tell(waiting, "")
		g.Go(func() error {
			start = time.Now()
			if res.Err = context.Cause(ctx); res.Err == nil {
				within, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("not done after %v", p.Timeout))
				res.Server, res.Err = p.install(within, h, func(s step) { tell(s, "") })
				cancel()
			}
			if res.Err != nil {
				tell(failed, res.Err.Error())
				return nil //nolint:nilerr // it is told, and the other hosts go on
			}
			mu.Lock()
			err := j.done(h, p.Endpoint, res.Server)
			mu.Unlock()
			tell(installed, res.Server)
			return err
		})
	}
	return results, errors.Join(g.Wait(), ctx.Err())
}

// A journal remembers where the agent is installed. It holds no secret.
type journal struct {
	path   string
	Format int             `json:"format"`
	Done   map[string]done `json:"done"` // by address
}

type done struct {
	Endpoint string    `json:"endpoint"`
	Server   string    `json:"sourceServerId,omitempty"`
	Time     time.Time `json:"time"`
}

const journalFormat = 1

func openJournal(path string) (*journal, error) {
	j := &journal{path: path, Format: journalFormat, Done: map[string]done{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = json.Unmarshal(text, j)
	}
	if err == nil && j.Format != journalFormat {
		err = fmt.Errorf("unknown format %d", j.Format)
	}
	if err != nil {
		return nil, fmt.Errorf("read what an earlier run has done, %s: %w", path, err)
	}
	return j, nil
}

// done adds a host, and replaces the file whole.
func (j *journal) done(h Host, endpoint, server string) error {
	j.Done[h.Address()] = done{Endpoint: endpoint, Server: server, Time: time.Now().UTC()}
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(j.path), filepath.Base(j.path)+".*")
	if err != nil {
		return fmt.Errorf("write down what is done: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write down what is done: %w", err), os.Remove(f.Name()))
	}
	return nil
}
