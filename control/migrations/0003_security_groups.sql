-- Who may connect. Groups without a rule let nobody in.
CREATE TABLE security_groups (
	id          TEXT PRIMARY KEY,
	name        TEXT NOT NULL UNIQUE,
	description TEXT NOT NULL
);

-- source is a CIDR in the one form that it has, or the id of a group or of a prefix list.
CREATE TABLE security_group_rules (
	id          TEXT PRIMARY KEY,
	group_id    TEXT NOT NULL REFERENCES security_groups (id) ON DELETE CASCADE,
	egress      INTEGER NOT NULL,
	protocol    TEXT NOT NULL,
	from_port   INTEGER NOT NULL,
	to_port     INTEGER NOT NULL,
	source      TEXT NOT NULL,
	description TEXT NOT NULL,
	UNIQUE (group_id, egress, protocol, from_port, to_port, source)
);
