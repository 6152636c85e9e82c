package control

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
)

// The lines that the text format has, as its description gives them.
var (
	commentLine = regexp.MustCompile(`^# (HELP [a-z_]+ [^\n]+|TYPE [a-z_]+ (gauge|counter))$`)
	sampleLine  = regexp.MustCompile(`^([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\}) (\S+)$`)
)

// metrics reads the page: values by name and labels, and types by name.
func (w *world) metrics() (values map[string]float64, types map[string]string) {
	w.t.Helper()
	var page bytes.Buffer
	w.must(w.Metrics(w.t.Context(), &page))
	values, types = map[string]float64{}, map[string]string{}
	last := ""
	for line := range strings.Lines(page.String()) {
		line = strings.TrimSuffix(line, "\n")
		if commentLine.MatchString(line) {
			words := strings.Fields(line)
			if last = words[2]; words[1] == "TYPE" {
				types[last] = words[3]
			}
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			w.t.Fatalf("line %q is none of the format", line)
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if _, twice := values[m[1]+m[2]]; err != nil || twice || m[1] != last || types[last] == "" {
			w.t.Fatalf("line %q: %v, twice %v, below the header of %s", line, err, twice, last)
		}
		if strings.HasSuffix(m[1], "_total") != (types[m[1]] == "counter") {
			w.t.Errorf("%s is a %s", m[1], types[m[1]])
		}
		values[m[1]+m[2]] = v
	}
	return values, types
}

// TestMetrics_Documented: the guide has every metric, under its type, and no other.
func TestMetrics_Documented(t *testing.T) {
	text, err := os.ReadFile("../docs/guide/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`rehost_[^|]*`"+`) \| (\w+) \|`).FindAllStringSubmatch(string(text), -1) {
		for _, name := range strings.Split(row[1], ", ") {
			types[strings.Trim(name, "`")] = row[2]
		}
	}
	for _, f := range families {
		if types[prefix+f.name] != f.kind {
			t.Errorf("%s%s, a %s, is a %q in the guide", prefix, f.name, f.kind, types[prefix+f.name])
		}
		delete(types, prefix+f.name)
	}
	if len(types) > 0 {
		t.Errorf("the guide has %v, which are not there", types)
	}
}

// TestMetrics: what DescribeSourceServers tells, and what it has no place for, is on
// the page, under fixed names, whatever source servers call themselves and send.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if values, types := w.metrics(); len(values) != 0 || len(types) != len(families) {
		t.Fatalf("without source servers: %v, %d of %d types", values, len(types), len(families))
	}
	in := machine("01")
	in.SourceProperties.Hostname = p("evil\"} 1\nrehost_fake{a=\"\\")
	out, err := w.RegisterAgent(ctx, Caller{ARN: installer}, in)
	w.must(err)
	id := out.SourceServerID
	other := w.register("02")
	w.replicate(id)
	_, err = w.UpdateAgentBacklog(ctx, &formgn.UpdateAgentBacklogForMgnRequest{SourceServerID: id, State: "BACKLOG", LagMilliseconds: p(int64(1500)), Disks: []formgn.DiskProgress{
		{DiskID: 0, TotalStorageBytes: 8 << 20, ReplicatedStorageBytes: 6 << 20, BackloggedStorageBytes: 2 << 20}, {DiskID: 1, TotalStorageBytes: 4 << 20}}})
	w.must(err)
	_, err = w.SendAgentMetrics(ctx, &formgn.SendAgentMetricsForMgnRequest{SourceServerID: id, Metrics: []formgn.Metric{
		{Name: formgn.MetricPoints, Value: 7}, {Name: formgn.MetricLongestRound, Value: .25}, {Name: formgn.MetricFreezes, Value: 2}, {Name: "fake{} 1\nfake", Value: 1}}})
	w.must(err)
	w.clock.advance(500 * time.Millisecond)
	values, types := w.metrics()
	is := func(want float64, name, labels string) {
		t.Helper()
		key := fmt.Sprintf("rehost_%s{source_server=%q%s}", name, id, labels)
		if got, ok := values[key]; !ok || got != want {
			t.Errorf("%s is %v (there: %v), want %v", key, got, ok, want)
		}
	}
	is(1, "source_server_info", `,hostname="evil\"} 1\nrehost_fake{a=\"\\",agent_version="1.0"`)
	is(1, "life_cycle_state", `,state="READY_FOR_TEST"`)
	is(1, "replication_state", `,state="BACKLOG"`)
	is(2<<20, "disk_backlog_bytes", `,device="/dev/vda"`)
	is(4<<20, "disk_bytes", `,device="/dev/vdb"`)
	is(7, "agent_points_total", "")
	is(.25, "agent_longest_round_seconds", "")
	is(2, "agent_freezes_total", "")
	if lag := values[fmt.Sprintf("rehost_replication_lag_seconds{source_server=%q}", id)]; lag < .5 || lag > 2 {
		t.Errorf("lag is %v s", lag)
	}
	for key := range values {
		if strings.Contains(key, "fake") && !strings.Contains(key, "evil") {
			t.Errorf("an agent has put %q onto the page", key)
		}
	}
	if types["rehost_agent_points_total"] != "counter" || types["rehost_agent_longest_round_seconds"] != "gauge" {
		t.Errorf("types are %v", types)
	}
	if _, ok := values[fmt.Sprintf("rehost_replication_lag_seconds{source_server=%q}", other)]; ok {
		t.Error("a server without a point has a lag")
	}
	// Of one that is archived nothing is shown.
	_, err = w.DisconnectFromService(ctx, &mgn.DisconnectFromServiceRequest{SourceServerID: other})
	w.must(err)
	_, err = w.MarkAsArchived(ctx, &mgn.MarkAsArchivedRequest{SourceServerID: other})
	w.must(err)
	values, _ = w.metrics()
	for key := range values {
		if strings.Contains(key, other) {
			t.Errorf("%s of an archived source server", key)
		}
	}
}
