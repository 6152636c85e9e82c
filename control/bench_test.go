package control

import (
	"database/sql"
	"slices"
	"testing"
	"time"

	"rehost/awsapi/mgn"
)

// BenchmarkDescribeSourceServers reads pages of 50 out of 10,000 source servers,
// and says what the slowest hundredth took.
func BenchmarkDescribeSourceServers(b *testing.B) {
	w := newBenchWorld(b, 10_000)
	var took []time.Duration
	var token *string
	for b.Loop() {
		begin := time.Now()
		out, err := w.DescribeSourceServers(b.Context(), &mgn.DescribeSourceServersRequest{NextToken: token})
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if token = &out.NextToken; *token == "" {
			token = nil
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkWatch looks at 10,000 source servers once, as it is done every five
// seconds, while all agents are heard of.
func BenchmarkWatch(b *testing.B) {
	w := newBenchWorld(b, 10_000)
	servers, err := documents[*server](b.Context(), w.db.reader, `SELECT document FROM source_servers`)
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range servers {
		w.seen(b.Context(), s.ID)
	}
	if err := w.watch(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := w.watch(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func newBenchWorld(b *testing.B, n int) *Service {
	b.Helper()
	db, err := OpenDatabase(b.Context(), b.TempDir()+"/db")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	c, err := Open(b.Context(), Options{Database: db, Account: "123456789012", Region: "us-east-1"})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.InitializeService(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	if err := db.update(b.Context(), func(tx *sql.Tx) error {
		for range n {
			in := machine("01")
			s, err := c.newServer(b.Context(), tx, in)
			if err != nil {
				return err
			}
			s.Properties = properties(in.SourceProperties, time.Now())
			s.assignDisks(in.SourceProperties.Disks)
			s.describeDisks()
			s.Replication.Flow, s.Replication.FirstPoint = mgn.DataReplicationStateContinuous, stamp(time.Now())
			if err := putServer(b.Context(), tx, s); err != nil {
				return err
			}
			if err := putTags(b.Context(), tx, c.arn("source-server", s.ID), map[string]string{"a": "b"}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return c
}
