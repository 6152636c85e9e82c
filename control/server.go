package control

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/block"
)

// A server is the document of one source server. It changes in transactions only.
type server struct {
	ID             string `json:"id"`
	MachineID      string `json:"machineID,omitempty"`
	UserProvidedID string `json:"userProvidedID,omitempty"`
	Archived       bool   `json:"archived,omitempty"`
	AgentVersion   string `json:"agentVersion,omitempty"`
	RegisteredBy   string `json:"registeredBy,omitempty"` // ARN of who installed the agent last
	RegisteredAt   string `json:"registeredAt,omitempty"`
	Enrolled       bool   `json:"enrolled,omitempty"` // the certificate of that installation has been issued

	LifeCycle   mgn.LifeCycle `json:"lifeCycle"`
	Replication replication   `json:"replication"`

	// Disks has every disk that was ever replicated: an id is given once.
	Disks []disk `json:"disks"`

	// ReplicatorID is the replication server that the agent is paired with.
	// Generation is the number of its last session; earlier ones are fenced.
	ReplicatorID string `json:"replicatorID,omitempty"`
	Generation   int64  `json:"generation,omitempty"`

	// CommandNumber grows when what the agent is to do changes; Retry asks it to
	// begin its session anew, once.
	CommandNumber int64      `json:"commandNumber"`
	Retry         bool       `json:"retry,omitempty"`
	Uninstall     *uninstall `json:"uninstall,omitempty"`

	Properties *mgn.SourceProperties            `json:"properties"`
	BootMode   formgn.BootMode                  `json:"bootMode,omitempty"`
	Config     mgn.ReplicationConfiguration     `json:"config"`
	Launch     mgn.LaunchConfiguration          `json:"launch"`
	Launched   *mgn.LaunchedInstance            `json:"launched,omitempty"`
	Connector  *mgn.SourceServerConnectorAction `json:"connector,omitempty"`
}

// A disk of a source server. Removed ones keep their id and are not replicated.
type disk struct {
	block.Disk
	Removed bool `json:"removed,omitempty"`
}

// An uninstall is the last command of an agent. It may be fetched and confirmed
// after everything else was revoked; see formgn.go.
type uninstall struct {
	RequestedAt string `json:"requestedAt"`
	DeliveredAt string `json:"deliveredAt,omitempty"`
	ConfirmedAt string `json:"confirmedAt,omitempty"`
}

// errNoServer is what lookups of unknown source servers return; each operation
// says it in the error shape that it has.
var errNoServer = errors.New("no such source server")

// active are the disks under replication.
func (s *server) active() (out []block.Disk) {
	for _, d := range s.Disks {
		if !d.Removed {
			out = append(out, d.Disk)
		}
	}
	return out
}

// launchable: there is a consistent point and replication has not been ended.
func (s *server) launchable() bool {
	flow := s.Replication.Flow
	return s.Replication.FirstPoint != "" && flow != mgn.DataReplicationStateStopped && flow != mgn.DataReplicationStateDisconnected
}

// ended: nothing of this server is replicated any more, for good.
func (s *server) ended() bool {
	return s.LifeCycle.State == mgn.LifeCycleStateDisconnected || s.LifeCycle.State == mgn.LifeCycleStateCutover
}

func getServer(ctx context.Context, q querier, id string) (*server, error) {
	var text string
	err := q.QueryRowContext(ctx, `SELECT document FROM source_servers WHERE id = ?`, id).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%s: %w", id, errNoServer)
	}
	if err != nil {
		return nil, fmt.Errorf("read source server %s: %w", id, err)
	}
	s := new(server)
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("decode source server %s: %w", id, err)
	}
	return s, nil
}

func putServer(ctx context.Context, tx *sql.Tx, s *server) error {
	archived := 0
	if s.Archived {
		archived = 1
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO source_servers
		(id, machine_id, user_provided_id, life_cycle, flow, archived, replicator_id, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET machine_id = excluded.machine_id, user_provided_id = excluded.user_provided_id,
			life_cycle = excluded.life_cycle, flow = excluded.flow, archived = excluded.archived, replicator_id = excluded.replicator_id,
			document = excluded.document`,
		s.ID, s.MachineID, s.UserProvidedID, string(s.LifeCycle.State), string(s.Replication.Flow), archived, s.ReplicatorID, encode(s))
	if err != nil {
		return fmt.Errorf("write source server %s: %w", s.ID, err)
	}
	return nil
}

// change reads a source server, lets do change it and writes it, all in one
// transaction. It returns the server as written.
func (c *Service) change(ctx context.Context, id string, do func(tx *sql.Tx, s *server) error) (s *server, err error) {
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		if s, err = getServer(ctx, tx, id); err != nil {
			return err
		}
		if err := do(tx, s); err != nil {
			return err
		}
		return putServer(ctx, tx, s)
	})
	return s, err
}

// maxDisksEver is how many disks a source server can have had in its life: ids
// are given once, and what an agent reports must not fill the database.
const maxDisksEver = 1000

// assignDisks matches reported disks with those known, by serial where there is
// one and by name otherwise, and gives new ids to the rest. A disk that changed
// its size is another disk: its content is copied anew under a new id. A disk
// that only its partition table tells from others stays what it is when that is
// written anew, if none that is known has moved to its name. After an error the
// document is not to be written.
func (s *server) assignDisks(reported []formgn.Disk) error {
	replicated := make([]bool, len(s.Disks))
	for i := range s.Disks {
		replicated[i] = !s.Disks[i].Removed
		s.Disks[i].Removed = true
	}
	var left []block.Disk
	for _, r := range reported {
		left = append(left, block.Disk{Name: r.DeviceName, Size: r.Bytes, Boot: deref(r.IsBootDisk), Serial: deref(r.Serial)})
	}
	for _, match := range []func(i int, known, d block.Disk) bool{
		func(_ int, known, d block.Disk) bool {
			return known.Serial == d.Serial && (d.Serial != "" || known.Name == d.Name)
		},
		func(i int, known, d block.Disk) bool {
			return replicated[i] && known.Name == d.Name && known.Unmarked() && d.Unmarked()
		},
	} {
		left = slices.DeleteFunc(left, func(d block.Disk) bool {
			for i, known := range s.Disks {
				if known.Removed && known.Size == d.Size && match(i, known.Disk, d) {
					d.ID = known.ID
					s.Disks[i] = disk{Disk: d}
					return true
				}
			}
			return false
		})
	}
	for _, d := range left {
		if len(s.Disks) == maxDisksEver {
			return conflict("SourceServer", s.ID, fmt.Sprintf("source server %s has had %d disks, which is the most there may be: disconnect it and install the agent again", s.ID, maxDisksEver))
		}
		d.ID = block.DiskID(len(s.Disks))
		s.Disks = append(s.Disks, disk{Disk: d})
	}
	return nil
}

// replicationDisks are the disks as agents and replication servers see them.
func (s *server) replicationDisks() []formgn.ReplicationDisk {
	out := []formgn.ReplicationDisk{}
	for _, d := range s.active() {
		out = append(out, formgn.ReplicationDisk{DiskID: int32(d.ID), DeviceName: d.Name, Bytes: d.Size, IsBootDisk: &d.Boot, Serial: &d.Serial})
	}
	return out
}

// properties turns an agent's inventory into MGN's sourceProperties.
func properties(p *formgn.SourceProperties, now time.Time) *mgn.SourceProperties {
	out := &mgn.SourceProperties{
		LastUpdatedDateTime: stamp(now),
		RamBytes:            p.RamBytes,
		Os:                  &mgn.OS{FullString: deref(p.OsString)},
		IdentificationHints: &mgn.IdentificationHints{Hostname: deref(p.Hostname), Fqdn: deref(p.Fqdn)},
	}
	for _, d := range p.Disks {
		out.Disks = append(out.Disks, mgn.Disk{DeviceName: d.DeviceName, Bytes: &d.Bytes})
	}
	for _, cpu := range p.Cpus {
		out.Cpus = append(out.Cpus, mgn.CPU{Cores: cpu.Cores, ModelName: deref(cpu.ModelName)})
	}
	for _, n := range p.NetworkInterfaces {
		out.NetworkInterfaces = append(out.NetworkInterfaces, mgn.NetworkInterface{MacAddress: deref(n.MacAddress), Ips: n.Ips, IsPrimary: n.IsPrimary})
	}
	return out
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
