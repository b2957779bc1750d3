-- Times are milliseconds since 1970 UTC, 0 for none. seq is the order of
-- creation; lists and page cursors go by it, whatever the clock did.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE environments (
  seq        INTEGER PRIMARY KEY,
  id         TEXT NOT NULL UNIQUE CHECK (id != ''),
  project    TEXT NOT NULL,
  name       TEXT NOT NULL CHECK (name != ''),
  node       TEXT NOT NULL,
  labels     TEXT NOT NULL CHECK (json_valid(labels)),
  revision   INTEGER NOT NULL CHECK (revision >= 1),
  spec       TEXT NOT NULL CHECK (json_valid(spec)),
  state      TEXT NOT NULL CHECK (state IN ('creating', 'running', 'stopped', 'error', 'deleted')),
  held       INTEGER NOT NULL CHECK (held IN (0, 1)),
  slot       INTEGER CHECK (slot >= 0),
  address    TEXT NOT NULL,
  ready      INTEGER NOT NULL CHECK (ready IN (0, 1)),
  operation  TEXT NOT NULL,
  detail     TEXT NOT NULL CHECK (json_valid(detail)),
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  -- What is deleted holds no address.
  CHECK (state != 'deleted' OR slot IS NULL)
) STRICT;

CREATE UNIQUE INDEX environments_name ON environments (project, name) WHERE state != 'deleted';
CREATE UNIQUE INDEX environments_slot ON environments (slot) WHERE slot IS NOT NULL;
CREATE INDEX environments_living ON environments (seq) WHERE state != 'deleted';
CREATE INDEX environments_deleted ON environments (updated_at) WHERE state = 'deleted';

CREATE TABLE operations (
  seq              INTEGER PRIMARY KEY,
  id               TEXT NOT NULL UNIQUE CHECK (id != ''),
  project          TEXT NOT NULL,
  kind             TEXT NOT NULL CHECK (kind != ''),
  target           TEXT NOT NULL,
  request_id       TEXT NOT NULL,
  request_hash     TEXT NOT NULL,
  state            TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  attempts         INTEGER NOT NULL CHECK (attempts >= 0),
  cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
  not_before       INTEGER NOT NULL,
  lease_owner      TEXT NOT NULL,
  lease_expires    INTEGER NOT NULL,
  args             TEXT NOT NULL CHECK (json_valid(args)),
  detail           TEXT NOT NULL CHECK (json_valid(detail)),
  created_at       INTEGER NOT NULL,
  started_at       INTEGER NOT NULL,
  finished_at      INTEGER NOT NULL,
  revision         INTEGER NOT NULL CHECK (revision >= 1),
  -- Only what runs is leased.
  CHECK ((state = 'running') = (lease_owner != '')),
  CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at != 0))
) STRICT;

CREATE UNIQUE INDEX operations_request ON operations (project, request_id) WHERE request_id != '';
CREATE INDEX operations_pending ON operations (seq) WHERE state IN ('queued', 'running');
CREATE INDEX operations_target ON operations (target, seq);
CREATE INDEX operations_finished ON operations (finished_at) WHERE finished_at != 0;

-- Rows are only added and marked; a released mapping stays as history until
-- its environment is forgotten.
CREATE TABLE port_mappings (
  seq           INTEGER PRIMARY KEY,
  id            TEXT NOT NULL UNIQUE CHECK (id != ''),
  env_id        TEXT NOT NULL CHECK (env_id != ''),
  project       TEXT NOT NULL,
  host_id       TEXT NOT NULL,
  service       TEXT NOT NULL CHECK (service IN ('ssh', 'rdp', 'jupyter', 'vnc', 'novnc', 'custom')),
  internal_port INTEGER NOT NULL CHECK (internal_port BETWEEN 1 AND 65535),
  external_port INTEGER NOT NULL CHECK (external_port BETWEEN 1 AND 65535),
  protocol      TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
  description   TEXT NOT NULL,
  status        TEXT NOT NULL CHECK (status IN ('reserved', 'active', 'released')),
  created_at    INTEGER NOT NULL,
  updated_at    INTEGER NOT NULL,
  released_at   INTEGER NOT NULL,
  revision      INTEGER NOT NULL CHECK (revision >= 1),
  CHECK ((status = 'released') = (released_at != 0))
) STRICT;

-- The invariant of the pool: one holder per host port.
CREATE UNIQUE INDEX port_mappings_held ON port_mappings (host_id, protocol, external_port)
  WHERE status IN ('reserved', 'active');
CREATE INDEX port_mappings_host ON port_mappings (host_id, status, external_port, seq);
CREATE INDEX port_mappings_env ON port_mappings (env_id, status);

CREATE TABLE port_ranges (
  host_id       TEXT NOT NULL,
  service       TEXT NOT NULL CHECK (service IN ('ssh', 'rdp', 'jupyter', 'vnc', 'novnc', 'custom')),
  first_port    INTEGER NOT NULL CHECK (first_port BETWEEN 1 AND 65535),
  last_port     INTEGER NOT NULL CHECK (last_port BETWEEN first_port AND 65535),
  internal_port INTEGER NOT NULL CHECK (internal_port BETWEEN 0 AND 65535),
  revision      INTEGER NOT NULL CHECK (revision >= 1),
  PRIMARY KEY (host_id, service)
) STRICT, WITHOUT ROWID;
