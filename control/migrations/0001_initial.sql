CREATE TABLE settings (
	name  TEXT PRIMARY KEY,
	value TEXT NOT NULL
);

-- A source server: what is asked for in queries has columns, the rest is its document.
CREATE TABLE source_servers (
	id               TEXT PRIMARY KEY,
	machine_id       TEXT NOT NULL,
	user_provided_id TEXT NOT NULL,
	life_cycle       TEXT NOT NULL,
	flow             TEXT NOT NULL,
	archived         INTEGER NOT NULL,
	replicator_id    TEXT NOT NULL,
	document         TEXT NOT NULL
);
CREATE INDEX source_servers_machine ON source_servers (machine_id);
CREATE INDEX source_servers_user_provided ON source_servers (user_provided_id);
CREATE INDEX source_servers_flow ON source_servers (flow);
CREATE INDEX source_servers_replicator ON source_servers (replicator_id);

-- What is known of a server by its reports; written behind.
CREATE TABLE telemetry (
	server_id TEXT PRIMARY KEY REFERENCES source_servers (id) ON DELETE CASCADE,
	document  TEXT NOT NULL
);

CREATE TABLE certificates (
	serial     TEXT PRIMARY KEY,
	server_id  TEXT NOT NULL,
	not_after  TEXT NOT NULL,
	revoked_at TEXT NOT NULL
);
CREATE INDEX certificates_server ON certificates (server_id);

-- A machine that says it is a replication server.
CREATE TABLE replicators (
	id       TEXT PRIMARY KEY,
	address  TEXT NOT NULL
);

-- Templates of both kinds: kind is rct or lct.
CREATE TABLE templates (
	id         TEXT PRIMARY KEY,
	kind       TEXT NOT NULL,
	created_at TEXT NOT NULL,
	document   TEXT NOT NULL
);

CREATE TABLE tags (
	arn   TEXT NOT NULL,
	name  TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (arn, name)
);

-- A job is run by whoever holds its lease.
CREATE TABLE jobs (
	id           TEXT PRIMARY KEY,
	type         TEXT NOT NULL,
	initiated_by TEXT NOT NULL,
	status       TEXT NOT NULL,
	created_at   TEXT NOT NULL,
	ended_at     TEXT NOT NULL,
	lease_owner  TEXT NOT NULL,
	lease_until  TEXT NOT NULL
);
CREATE INDEX jobs_created ON jobs (created_at, id);

-- The part of a job that concerns one server: step is what comes next.
CREATE TABLE job_servers (
	job_id      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
	server_id   TEXT NOT NULL,
	position    INTEGER NOT NULL,
	status      TEXT NOT NULL,
	step        TEXT NOT NULL,
	instance_id TEXT NOT NULL,
	point       TEXT NOT NULL,
	PRIMARY KEY (job_id, server_id)
);
CREATE INDEX job_servers_server ON job_servers (server_id);

CREATE TABLE job_logs (
	job_id    TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
	position  INTEGER NOT NULL,
	logged_at TEXT NOT NULL,
	event     TEXT NOT NULL,
	server_id TEXT NOT NULL,
	document  TEXT NOT NULL,
	PRIMARY KEY (job_id, position)
);

-- A machine launched from a replica.
CREATE TABLE instances (
	id          TEXT PRIMARY KEY,
	server_id   TEXT NOT NULL,
	job_id      TEXT NOT NULL,
	state       TEXT NOT NULL,
	independent INTEGER NOT NULL,
	document    TEXT NOT NULL
);
CREATE INDEX instances_server ON instances (server_id);

-- Replicas that are to be deleted as soon as nothing reads them any more.
CREATE TABLE condemned_replicas (
	server_id TEXT PRIMARY KEY,
	since     TEXT NOT NULL
);

-- The last lines that agents sent.
CREATE TABLE agent_logs (
	server_id TEXT NOT NULL REFERENCES source_servers (id) ON DELETE CASCADE,
	position  INTEGER NOT NULL,
	logged_at TEXT NOT NULL,
	level     TEXT NOT NULL,
	message   TEXT NOT NULL,
	PRIMARY KEY (server_id, position)
);

-- Users, roles, keys and policies: see identity.Store.
CREATE TABLE identity_records (
	kind  TEXT NOT NULL,
	name  TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (kind, name)
);
