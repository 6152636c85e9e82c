package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"rehost/audit"
	"rehost/control"
	"rehost/identity"
)

// auditDir is where the service keeps the audit log in its directory.
const auditDir = "audit"

const sealingKeyFile = "sealing.key"

// openAudit opens the log for writing. Its key comes from the sealing key.
func openAudit(data, sealing string, o audit.Options) (*audit.Log, error) {
	key, err := loadSealingKey(data, sealing)
	if err != nil {
		return nil, err
	}
	o.Keys = key.AuditKeys()
	return audit.Open(filepath.Join(data, auditDir), o)
}

// events puts what happens into the audit log.
type events struct{ log *audit.Log }

// Record implements [control.Events].
func (e events) Record(ctx context.Context, what control.Event) {
	r := audit.Event(what.Name, what.Details)
	for _, arn := range what.Resources {
		r.Resources = append(r.Resources, audit.Resource{ARN: arn, AccountID: what.Account, Type: "AWS::MGN::SourceServer"})
	}
	e.log.Record(ctx, r)
}

// AuditCmd is `rehost audit`.
type AuditCmd struct {
	Verify AuditVerifyCmd `cmd:"" help:"Check that the audit log is what was written. Exit status 4 if it is not."`
	Ls     AuditLsCmd     `cmd:"" help:"List records."`
}

// AuditVerifyCmd is `rehost audit verify`. Exit status: 0 the log is what was
// written, 4 it is not, 3 there is none, 1 it could not be checked.
type AuditVerifyCmd struct {
	Data   string   `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	Key    string   `help:"The sealing key; by default that of the service. Without it only the chain is checked, which who can write the files can count anew." placeholder:"FILE"`
	Expect string   `help:"A sequence number and hash that an earlier verify has printed: the log must have it." placeholder:"SEQ:HASH"`
	Files  []string `arg:"" optional:"" help:"Files copied from a log, in their order. By default the whole log of --data."`
}

// Run checks and says how far the log goes.
func (c *AuditVerifyCmd) Run(out io.Writer) error {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	expected, err := c.expected()
	if err != nil {
		return err
	}
	var r audit.Report
	if len(c.Files) > 0 {
		r, err = audit.VerifyFiles(c.Files, keys, expected...)
	} else {
		r, err = audit.Verify(filepath.Join(c.Data, auditDir), keys, expected...)
	}
	if err != nil {
		return err
	}
	for _, m := range r.Remarks {
		fmt.Fprintf(out, "record %d: %s %s\n", m.Seq, m.Event, m.Details)
	}
	if r.Torn > 0 {
		fmt.Fprintf(out, "%d bytes of a record that is not finished stand at the end\n", r.Torn)
	}
	if keys == nil {
		fmt.Fprintln(out, "checked without the key: who can write the files could have counted the chain anew")
	}
	fmt.Fprintf(out, "%d records in %d files are as they were written, from %d to %d:%s\n", r.Records, r.Files, r.First, r.Last.Seq, r.Last.Hash)
	return nil
}

// keys are the log's, newest first; nil if there are none at the usual place.
func (c *AuditVerifyCmd) keys() (audit.Keys, error) {
	path := c.Key
	if path == "" {
		path = filepath.Join(c.Data, sealingKeyFile)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && c.Key == "" {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	key, err := identity.LoadSealingKey(path)
	if err != nil {
		return nil, err
	}
	return key.AuditKeys(), nil
}

func (c *AuditVerifyCmd) expected() ([]audit.Mark, error) {
	if c.Expect == "" {
		return nil, nil
	}
	seq, hash, ok := strings.Cut(c.Expect, ":")
	var m audit.Mark
	var err error
	if m.Seq, err = strconv.ParseUint(seq, 10, 64); err == nil {
		err = m.Hash.UnmarshalText([]byte(hash))
	}
	if err != nil || !ok {
		return nil, fmt.Errorf("%w: --expect is SEQ:HASH, as verify prints it last", errUsage)
	}
	return []audit.Mark{m}, nil
}

// AuditLsCmd is `rehost audit ls`.
type AuditLsCmd struct {
	Data      string        `help:"Directory of the service." default:"/var/lib/rehost" placeholder:"DIR"`
	Since     time.Duration `help:"Only records of this last while." placeholder:"24h"`
	Principal string        `help:"Only what this caller did: part of its ARN, access key id, or the name on its certificate." placeholder:"TEXT"`
	Event     string        `help:"Only operations and events of this name." placeholder:"NAME"`
	Denied    bool          `help:"Only calls that were denied or refused."`
	JSON      bool          `help:"Print the records as they are in the log."`
}

// Run lists the records that fit, oldest first.
func (c *AuditLsCmd) Run(out io.Writer) error {
	files, err := audit.Files(filepath.Join(c.Data, auditDir))
	if err != nil {
		return err
	}
	oldest := time.Time{}
	if c.Since > 0 {
		oldest = time.Now().Add(-c.Since)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(table, "SEQ\tTIME\tEVENT\tBY\tFROM\tDECISION\tERROR\tABOUT")
	}
	unreadable, err := audit.Read(files, func(e *audit.Entry, line []byte) error {
		if e.EventTime.Before(oldest) || !c.fits(e) {
			return nil
		}
		if c.JSON {
			_, err := out.Write(line)
			return err
		}
		_, err := fmt.Fprintln(table, row(e))
		return err
	})
	if err == nil {
		err = table.Flush()
	}
	if err == nil && unreadable > 0 {
		err = fmt.Errorf("%d lines are no records: rehost audit verify says more", unreadable)
	}
	return err
}

func (c *AuditLsCmd) fits(e *audit.Entry) bool {
	if c.Event != "" && !strings.EqualFold(c.Event, e.EventName) {
		return false
	}
	if c.Denied && (e.AdditionalEventData == nil || e.AdditionalEventData.Decision == "allowed") {
		return false
	}
	id := e.UserIdentity
	return strings.Contains(strings.Join([]string{id.ARN, id.AccessKeyID, id.PrincipalID}, " "), c.Principal)
}

// row is one record for people. What callers have written is quoted where it
// could be anything.
func row(e *audit.Entry) string {
	first := func(texts ...string) string {
		for _, t := range texts {
			if t != "" {
				return strings.Trim(strconv.Quote(t), `"`)
			}
		}
		return "-"
	}
	id, decision := e.UserIdentity, ""
	if e.AdditionalEventData != nil {
		decision = e.AdditionalEventData.Decision
		if r := e.AdditionalEventData.Repeated; r != nil {
			decision += fmt.Sprintf(" %d times since %s", r.Calls, r.First.Format(time.RFC3339))
		}
	}
	about := ""
	if len(e.Resources) > 0 {
		about = e.Resources[0].ARN
	}
	if e.EventType == audit.ServiceEvent && e.ServiceEventDetails != nil {
		details, _ := json.Marshal(e.ServiceEventDetails)
		about = strings.TrimSpace(about + " " + strings.ReplaceAll(string(details), `"`, ""))
	}
	return strings.Join([]string{fmt.Sprint(e.Seq), e.EventTime.Format(time.RFC3339), first(e.EventName), first(id.ARN, id.PrincipalID, id.AccessKeyID, id.InvokedBy),
		first(e.SourceIPAddress), first(decision), first(e.ErrorCode), first(about)}, "\t")
}
