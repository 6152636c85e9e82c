-- A certificate may come with a WireGuard key, which counts as long as it does.
ALTER TABLE certificates ADD COLUMN tunnel_key TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX certificates_tunnel_key ON certificates (tunnel_key) WHERE tunnel_key <> '';

-- Keys of machines that are to be installed through the tunnel.
CREATE TABLE tunnel_invitations (
	tunnel_key TEXT PRIMARY KEY,
	not_after  TEXT NOT NULL
) WITHOUT ROWID;
