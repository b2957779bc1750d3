-- DNS records that were added to the names of environments; they go with them.
-- seq is the order of creation. name is below the environment's, or, of an
-- alias, one label beside it.
CREATE TABLE dns_records (
  seq          INTEGER PRIMARY KEY,
  id           TEXT NOT NULL UNIQUE CHECK (id != ''),
  project      TEXT NOT NULL CHECK (project != ''),
  env_id       TEXT NOT NULL CHECK (env_id != ''),
  node         TEXT NOT NULL,
  labels       TEXT NOT NULL CHECK (json_valid(labels)),
  revision     INTEGER NOT NULL CHECK (revision >= 1),
  name         TEXT NOT NULL,
  alias        INTEGER NOT NULL CHECK (alias IN (0, 1)),
  type         TEXT NOT NULL CHECK (type IN ('A', 'AAAA', 'CNAME', 'TXT', 'SRV')),
  ttl          INTEGER NOT NULL CHECK (ttl > 0),
  data         TEXT NOT NULL,
  request_id   TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  created_at   INTEGER NOT NULL,
  CHECK (alias = 0 OR name != '')
) STRICT;

CREATE UNIQUE INDEX dns_records_same ON dns_records (env_id, alias, name, type, data);
-- A CNAME is alone at its name.
CREATE UNIQUE INDEX dns_records_cname ON dns_records (env_id, alias, name) WHERE type = 'CNAME';
CREATE UNIQUE INDEX dns_records_request ON dns_records (project, request_id) WHERE request_id != '';
CREATE INDEX dns_records_alias ON dns_records (project, name) WHERE alias = 1;
