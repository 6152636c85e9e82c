package control

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"rehost/awsapi/formgn"
)

// This file shows what is known of source servers in the text format of
// Prometheus (version 0.0.4), which is few enough lines to be written by hand.
// What agents say of themselves is shown under names that stand here only, and
// text of theirs is in label values only, escaped.

// A family is one metric.
type family struct {
	name, kind, help string
	samples          func(s *server, t telemetry, now time.Time) []sample
}

// A sample is a value of one source server; labels are names and values in turn,
// besides that of the source server.
type sample struct {
	value  float64
	labels []string
}

const prefix = "rehost_"

var families = slices.Concat([]family{
	{"source_server_info", "gauge", "The source servers that are not archived; always 1.", func(s *server, _ telemetry, _ time.Time) []sample {
		return []sample{{1, []string{"hostname", s.name(), "agent_version", s.AgentVersion}}}
	}},
	{"life_cycle_state", "gauge", "The state that the life cycle is in, as DescribeSourceServers names it; always 1.", func(s *server, _ telemetry, _ time.Time) []sample {
		return []sample{{1, []string{"state", string(s.LifeCycle.State)}}}
	}},
	{"replication_state", "gauge", "The state that replication is in, as DescribeSourceServers names it; always 1.", func(s *server, _ telemetry, _ time.Time) []sample {
		return []sample{{1, []string{"state", string(s.Replication.state())}}}
	}},
	{"replication_lag_seconds", "gauge", "Time since the replica was known to hold everything; none without a point to launch from.", func(s *server, t telemetry, now time.Time) []sample {
		if !s.launchable() || t.CurrentAt == "" && t.PointAt == "" {
			return nil
		}
		return []sample{{value: t.lag(now).Seconds()}}
	}},
	{"newest_point_timestamp_seconds", "gauge", "Instant of the newest consistent recovery point, on the source server's clock.", func(_ *server, t telemetry, _ time.Time) []sample {
		return moment(t.PointAt)
	}},
	{"agent_seen_timestamp_seconds", "gauge", "When the agent was heard of last.", func(_ *server, t telemetry, _ time.Time) []sample {
		return moment(t.SeenAt)
	}},
	ofDisks("disk_bytes", "Size of a disk.", func(d formgn.DiskProgress) int64 { return d.TotalStorageBytes }),
	ofDisks("disk_replicated_bytes", "What of a disk is replicated.", func(d formgn.DiskProgress) int64 { return d.ReplicatedStorageBytes }),
	ofDisks("disk_rescanned_bytes", "What of a disk is compared with the replica, during a rescan.", func(d formgn.DiskProgress) int64 { return d.RescannedStorageBytes }),
	ofDisks("disk_backlog_bytes", "What of a disk has changed and is not replicated yet.", func(d formgn.DiskProgress) int64 { return d.BackloggedStorageBytes }),
}, []family{
	ofAgent(formgn.MetricPoints, "Consistent recovery points committed, since the agent's start."),
	ofAgent(formgn.MetricRounds, "Rounds of reading what has changed, each a try to make a point."),
	ofAgent(formgn.MetricConflicts, "Runs of blocks that were read too late for the point of their round."),
	ofAgent(formgn.MetricWithdrawn, "Epochs taken back because an audit failed."),
	ofAgent(formgn.MetricLongestRound, "The longest round since the first copy."),
	ofAgent(formgn.MetricFreezes, "Times that file systems were frozen for a point."),
	ofAgent(formgn.MetricLongestFreeze, "The longest time that they were."),
	ofAgent(formgn.MetricReadBytes, "Read from the disks."),
	ofAgent(formgn.MetricSentBytes, "Sent to the replication server, compressed."),
	ofAgent(formgn.MetricCPUSeconds, "Processor time of the agent."),
	ofAgent(formgn.MetricCPULimit, "Processors that bulk work may take; 0 is no limit."),
	ofAgent(formgn.MetricReadLimit, "What bulk reading is held to so that the server's own writes do not wait; 0 is no limit."),
	ofAgent(formgn.MetricBacklog, "Known to the agent to have changed and not yet read."),
})

func moment(at string) []sample {
	t := parseStamp(at)
	if t.IsZero() {
		return nil
	}
	return []sample{{value: float64(t.UnixMilli()) / 1000}}
}

func ofDisks(name, help string, value func(formgn.DiskProgress) int64) family {
	return family{name, "gauge", help, func(s *server, t telemetry, _ time.Time) (out []sample) {
		for _, d := range s.active() {
			i := slices.IndexFunc(t.Disks, func(p formgn.DiskProgress) bool { return p.DiskID == int32(d.ID) })
			if i >= 0 {
				out = append(out, sample{float64(value(t.Disks[i])), []string{"device", d.Name}})
			}
		}
		return out
	}}
}

// ofAgent is a metric that agents send under the same name.
func ofAgent(name, help string) family {
	kind := "gauge"
	if strings.HasSuffix(name, "_total") {
		kind = "counter"
	}
	return family{"agent_" + name, kind, help, func(_ *server, t telemetry, _ time.Time) []sample {
		if v, ok := t.Metrics[name]; ok {
			return []sample{{value: v}}
		}
		return nil
	}}
}

// Metrics writes what is known of all source servers that are not archived, in
// the text format of Prometheus, version 0.0.4. It may be called at any time.
func (c *Service) Metrics(ctx context.Context, w io.Writer) error {
	servers, err := documents[*server](ctx, c.db.reader, `SELECT document FROM source_servers WHERE archived = 0 ORDER BY id`)
	if err != nil {
		return err
	}
	told, now := c.gauge.all(), c.now()
	b := bufio.NewWriter(w)
	for _, f := range families {
		b.WriteString("# HELP " + prefix + f.name + " " + f.help + "\n# TYPE " + prefix + f.name + " " + f.kind + "\n")
		for _, s := range servers {
			for _, v := range f.samples(s, told[s.ID], now) {
				b.WriteString(prefix + f.name + `{source_server="` + s.ID + `"`)
				for i := 0; i < len(v.labels); i += 2 {
					b.WriteString("," + v.labels[i] + `="` + labelText.Replace(v.labels[i+1]) + `"`)
				}
				b.WriteString("} " + strconv.FormatFloat(v.value, 'g', -1, 64) + "\n")
			}
		}
	}
	return b.Flush() // it keeps the first error
}

// labelText is how a label's value is written.
var labelText = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
