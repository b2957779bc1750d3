-- GPUs that environments have, instances and shares of them too. Rows are only
-- added and marked; a lease that has ended stays as history for as long as its
-- environment, and a year more. seq is the order of creation. A place is a range of memory
-- slices of a partitioned GPU.
CREATE TABLE gpu_leases (
  seq             INTEGER PRIMARY KEY,
  id              TEXT NOT NULL UNIQUE CHECK (id != ''),
  env_id          TEXT NOT NULL CHECK (env_id != ''),
  gpu             TEXT NOT NULL CHECK (gpu != ''),
  mode            TEXT NOT NULL CHECK (mode IN ('exclusive', 'shared', 'mig', 'vgpu')),
  profile         TEXT NOT NULL,
  place_start     INTEGER NOT NULL CHECK (place_start >= 0),
  place_size      INTEGER NOT NULL CHECK (place_size >= 0),
  static          INTEGER NOT NULL CHECK (static IN (0, 1)),
  memory_bytes    INTEGER NOT NULL CHECK (memory_bytes >= 0),
  compute_percent INTEGER NOT NULL CHECK (compute_percent BETWEEN 0 AND 100),
  enforcement     TEXT NOT NULL CHECK (enforcement IN ('sole', 'hardware', 'driver', 'mps', 'cooperative', 'none')),
  created_at      INTEGER NOT NULL,
  released_at     INTEGER NOT NULL,
  -- An instance, and nothing else, has a place.
  CHECK ((mode = 'mig') = (place_size > 0)),
  CHECK ((mode = 'mig') = (profile != '')),
  CHECK (mode != 'vgpu' OR memory_bytes > 0)
) STRICT;

-- Who has a GPU alone is alone; nobody has one twice; a place has one holder.
CREATE UNIQUE INDEX gpu_leases_exclusive ON gpu_leases (gpu) WHERE released_at = 0 AND mode = 'exclusive';
CREATE UNIQUE INDEX gpu_leases_once ON gpu_leases (env_id, gpu) WHERE released_at = 0;
CREATE UNIQUE INDEX gpu_leases_place ON gpu_leases (gpu, place_start) WHERE released_at = 0 AND mode = 'mig';
CREATE INDEX gpu_leases_held ON gpu_leases (gpu, seq) WHERE released_at = 0;
CREATE INDEX gpu_leases_env ON gpu_leases (env_id, released_at);
CREATE INDEX gpu_leases_released ON gpu_leases (released_at) WHERE released_at != 0;

-- What no index can say: one mode at a time, places that do not overlap,
-- shares of compute that add up. Rows are never held again.
CREATE TRIGGER gpu_leases_apart BEFORE INSERT ON gpu_leases WHEN NEW.released_at = 0
BEGIN
  SELECT RAISE(ABORT, 'the GPU has leases of another mode')
    WHERE EXISTS (SELECT 1 FROM gpu_leases WHERE gpu = NEW.gpu AND released_at = 0 AND mode != NEW.mode);
  SELECT RAISE(ABORT, 'the place overlaps another one')
    WHERE EXISTS (SELECT 1 FROM gpu_leases WHERE gpu = NEW.gpu AND released_at = 0 AND mode = 'mig'
      AND place_start < NEW.place_start + NEW.place_size AND NEW.place_start < place_start + place_size);
  SELECT RAISE(ABORT, 'the shares of compute are more than the GPU')
    WHERE (SELECT coalesce(sum(compute_percent), 0) FROM gpu_leases WHERE gpu = NEW.gpu AND released_at = 0) + NEW.compute_percent > 100;
END;

CREATE TRIGGER gpu_leases_ended BEFORE UPDATE ON gpu_leases
  WHEN NEW.gpu != OLD.gpu OR NEW.env_id != OLD.env_id OR NEW.mode != OLD.mode OR NEW.place_start != OLD.place_start
    OR NEW.place_size != OLD.place_size OR OLD.released_at != 0
BEGIN
  SELECT RAISE(ABORT, 'a lease is only ended');
END;

-- What is kept about GPUs whatever their driver says.
CREATE TABLE gpu_marks (
  gpu        TEXT PRIMARY KEY CHECK (gpu != ''),
  drained    INTEGER NOT NULL CHECK (drained IN (0, 1)),
  why        TEXT NOT NULL,
  drained_at INTEGER NOT NULL,
  unhealthy  INTEGER NOT NULL CHECK (unhealthy IN (0, 1)),
  reason     TEXT NOT NULL,
  xid        INTEGER NOT NULL,
  since      INTEGER NOT NULL,
  revision   INTEGER NOT NULL CHECK (revision >= 1)
) STRICT, WITHOUT ROWID;
