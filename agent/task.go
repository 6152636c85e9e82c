package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/support"
)

const (
	partSize    = 512 << 10 // bytes of a bundle in one call
	partPause   = 250 * time.Millisecond
	partTries   = 5
	taskBackoff = 30 * time.Second // after a task that could not be finished
)

// offer passes on what is to be done once. Nothing is queued: what is not taken now is
// offered again with the next command, until the service knows how it ended.
func (a *agent) offer(orders []formgn.AgentOrder) {
	select {
	case a.orders <- orders:
	default:
	}
}

// tasks does one task after the other, until ctx ends.
func (a *agent) tasks(ctx context.Context) {
	ended := map[string]bool{} // of those that are still offered
	for {
		select {
		case <-ctx.Done():
			return
		case orders := <-a.orders:
			maps.DeleteFunc(ended, func(id string, _ bool) bool {
				return !slices.ContainsFunc(orders, func(o formgn.AgentOrder) bool { return o.TaskID == id })
			})
			for _, o := range orders {
				if ended[o.TaskID] {
					continue
				}
				err := a.do(ctx, o)
				if ctx.Err() != nil {
					return
				}
				if err == nil || awsapi.IsError(err, "ConflictException") || awsapi.IsError(err, "ResourceNotFoundException") {
					ended[o.TaskID] = true // well, or it is over for the service
				}
				if err != nil && !errors.Is(err, errLater) {
					a.log.Warn("a task of the service is not done", "task", o.TaskID, "kind", o.Kind, "err", err)
					if pause(ctx, taskBackoff) != nil {
						return
					}
				}
			}
		}
	}
}

// do does a task, and tells the service how it ended unless that is what went wrong.
func (a *agent) do(ctx context.Context, o formgn.AgentOrder) error {
	if o.Kind == string(formgn.AgentTaskKindUpgrade) {
		return a.upgrade(ctx, o)
	}
	a.log.Info("the service asks for something", "task", o.TaskID, "kind", o.Kind)
	if o.Kind != string(formgn.AgentTaskKindCollectLogs) {
		return a.decline(ctx, o, fmt.Errorf("agent %s does not know what %s is: install a newer one", Version, o.Kind))
	}
	var b bytes.Buffer
	if err := writeBundle(ctx, string(a.dir), &b, support.Text("recent.log", a.shipper.log)); err != nil {
		return a.decline(ctx, o, err)
	}
	return a.sendBundle(ctx, o.TaskID, b.Bytes())
}

// decline says why a task cannot be done.
func (a *agent) decline(ctx context.Context, o formgn.AgentOrder, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a.log.Warn("a task of the service cannot be done", "task", o.TaskID, "kind", o.Kind, "err", why)
	_, err := ask(ctx, a.identity, formgn.UpdateAgentTaskForRehost, &formgn.UpdateAgentTaskForRehostRequest{
		SourceServerID: a.config.SourceServerID, TaskID: o.TaskID, Failure: pointer(clip(support.Redact(why.Error()), 1000))})
	return err
}

// sendBundle sends a bundle in parts, from where the service says that it is.
func (a *agent) sendBundle(ctx context.Context, task string, content []byte) error {
	sum := sha256.Sum256(content)
	in := &formgn.SendSupportBundleForRehostRequest{SourceServerID: a.config.SourceServerID, TaskID: task, SizeBytes: int64(len(content)), Sha256: hex.EncodeToString(sum[:])}
	for failed := 0; in.Offset < in.SizeBytes; {
		in.Content = content[in.Offset:min(in.Offset+partSize, in.SizeBytes)]
		out, err := ask(ctx, a.identity, formgn.SendSupportBundleForRehost, in)
		var answered *awsapi.CallError
		switch {
		case err == nil && (out.NextOffset < 0 || out.NextOffset > in.SizeBytes):
			return fmt.Errorf("send support bundle: the service is at byte %d of %d", out.NextOffset, in.SizeBytes)
		case err == nil && out.NextOffset > in.Offset:
			failed = 0
		case errors.As(err, &answered) && answered.Status/100 == 4 && answered.Status != 429:
			return err
		default: // a part that was not taken counts as one that was not sent
			if failed++; failed == partTries {
				return errors.Join(errors.New("send support bundle: the service does not take it"), err)
			}
		}
		if err == nil {
			in.Offset = out.NextOffset
		}
		if err := pause(ctx, a.betweenParts()<<failed); err != nil {
			return err
		}
	}
	a.log.Info("the support bundle is sent", "task", task, "bytes", in.SizeBytes)
	return nil
}

// betweenParts leaves the network to others, and keeps to the bandwidth throttling.
func (a *agent) betweenParts() time.Duration {
	p, _ := a.replication.wanted()
	if p.Throttling <= 0 {
		return partPause
	}
	return max(partPause, time.Duration(partSize*8/p.Throttling)*time.Microsecond) // a Mbit/s is a bit in a microsecond
}
