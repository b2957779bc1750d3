-- What the environment of a released mapping was called then: its row is kept for
-- a week, the mapping for a year. Empty while the mapping is held.
ALTER TABLE port_mappings ADD COLUMN env_name TEXT NOT NULL DEFAULT '';
UPDATE port_mappings SET env_name = coalesce((SELECT name FROM environments WHERE id = env_id), '') WHERE status = 'released';
CREATE INDEX port_mappings_named ON port_mappings (env_name, project) WHERE env_name != '';
