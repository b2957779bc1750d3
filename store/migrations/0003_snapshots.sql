-- Snapshots of environments, which they outlive. seq is the order of creation.
-- A row is written before the engine makes anything, and goes after the engine
-- has removed everything.
CREATE TABLE snapshots (
  seq        INTEGER PRIMARY KEY,
  id         TEXT NOT NULL UNIQUE CHECK (id != ''),
  project    TEXT NOT NULL,
  env_id     TEXT NOT NULL CHECK (env_id != ''),
  name       TEXT NOT NULL CHECK (name != ''),
  node       TEXT NOT NULL,
  labels     TEXT NOT NULL CHECK (json_valid(labels)),
  revision   INTEGER NOT NULL CHECK (revision >= 1),
  state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
  operation  TEXT NOT NULL,
  spec       TEXT NOT NULL CHECK (json_valid(spec)),
  detail     TEXT NOT NULL CHECK (json_valid(detail)),
  created_at INTEGER NOT NULL,
  -- What is being made has an operation that makes it.
  CHECK (state != 'creating' OR operation != '')
) STRICT;

CREATE UNIQUE INDEX snapshots_name ON snapshots (env_id, name);
CREATE INDEX snapshots_project ON snapshots (project, seq);
CREATE INDEX snapshots_operation ON snapshots (operation) WHERE operation != '';
