-- Which source servers each principal has installed agents of: keys that may
-- install a limited number are held to it, also after a server was deleted.
CREATE TABLE registrations (
	principal TEXT NOT NULL, -- unique id
	server_id TEXT NOT NULL,
	PRIMARY KEY (principal, server_id)
) WITHOUT ROWID;
