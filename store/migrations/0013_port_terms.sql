-- The terms that a mapping had, each until others took their place: who could come
-- by a port at a time. The present ones are in the mapping's row.
CREATE TABLE port_mapping_terms (
  seq         INTEGER PRIMARY KEY,
  mapping_id  TEXT NOT NULL REFERENCES port_mappings (id) ON DELETE CASCADE,
  until       INTEGER NOT NULL,
  description TEXT NOT NULL,
  sources     TEXT NOT NULL,
  expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX port_mapping_terms_mapping ON port_mapping_terms (mapping_id, seq);
