-- Who may reach a mapping (networks as JSON), and until when it is.
ALTER TABLE port_mappings ADD COLUMN sources TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(sources));
ALTER TABLE port_mappings ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;

-- What was released lately, and what was so long ago that it is forgotten. Who
-- had a port at some time is found by port_mappings_host.
CREATE INDEX port_mappings_released ON port_mappings (released_at) WHERE status = 'released';
