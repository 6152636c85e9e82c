-- What an agent was asked to do once. kept_until is set while what it has brought
-- is kept, in a file that is named by the id.
CREATE TABLE agent_tasks (
	id           TEXT PRIMARY KEY,
	server_id    TEXT NOT NULL REFERENCES source_servers (id) ON DELETE CASCADE,
	kind         TEXT NOT NULL,
	state        TEXT NOT NULL,
	requested_at TEXT NOT NULL,
	deadline     TEXT NOT NULL,
	kept_until   TEXT NOT NULL,
	document     TEXT NOT NULL
);
CREATE INDEX agent_tasks_server ON agent_tasks (server_id, requested_at);
CREATE UNIQUE INDEX agent_tasks_open ON agent_tasks (server_id, kind) WHERE state IN ('PENDING', 'DELIVERED');
CREATE INDEX agent_tasks_kept ON agent_tasks (kept_until) WHERE kept_until <> '';
