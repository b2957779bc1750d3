-- What happened to environments; the last ones of each are kept, and go when
-- the environment is forgotten. seq is the order in which they happened.
CREATE TABLE environment_events (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  env_id  TEXT NOT NULL CHECK (env_id != ''),
  at      INTEGER NOT NULL,
  kind    TEXT NOT NULL CHECK (kind != ''),
  message TEXT NOT NULL,
  exit    TEXT NOT NULL CHECK (json_valid(exit))
) STRICT;

CREATE INDEX environment_events_env ON environment_events (env_id, seq);
