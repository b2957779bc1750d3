-- MIG instances that are to be, and that are to go, whatever the driver has: the
-- first an administrator made, the others were made for leases that have ended
-- (env_id), or an administrator did away with them. A row is written before the
-- driver is asked, and one to remove is deleted when the instance has gone.
CREATE TABLE gpu_instances (
  gpu         TEXT NOT NULL CHECK (gpu != ''),
  profile     TEXT NOT NULL CHECK (profile != ''),
  place_start INTEGER NOT NULL CHECK (place_start >= 0),
  place_size  INTEGER NOT NULL CHECK (place_size > 0),
  remove      INTEGER NOT NULL CHECK (remove IN (0, 1)),
  env_id      TEXT NOT NULL,
  created_at  INTEGER NOT NULL,
  PRIMARY KEY (gpu, place_start, place_size, profile)
) STRICT, WITHOUT ROWID;

-- What is to be keeps its place.
CREATE TRIGGER gpu_instances_apart BEFORE INSERT ON gpu_instances WHEN NEW.remove = 0
BEGIN
  SELECT RAISE(ABORT, 'the place overlaps another instance that is to be')
    WHERE EXISTS (SELECT 1 FROM gpu_instances WHERE gpu = NEW.gpu AND remove = 0
      AND (place_start != NEW.place_start OR place_size != NEW.place_size OR profile != NEW.profile)
      AND place_start < NEW.place_start + NEW.place_size AND NEW.place_start < place_start + place_size);
END;
CREATE TRIGGER gpu_leases_beside BEFORE INSERT ON gpu_leases WHEN NEW.released_at = 0 AND NEW.mode = 'mig'
BEGIN
  SELECT RAISE(ABORT, 'the place overlaps an instance that is to be')
    WHERE EXISTS (SELECT 1 FROM gpu_instances WHERE gpu = NEW.gpu AND remove = 0
      AND NOT (NEW.static AND place_start = NEW.place_start AND place_size = NEW.place_size AND profile = NEW.profile)
      AND place_start < NEW.place_start + NEW.place_size AND NEW.place_start < place_start + place_size);
END;

-- GPUs whose MIG mode an administrator wants on.
CREATE TABLE gpu_mig (
  gpu TEXT PRIMARY KEY CHECK (gpu != '')
) STRICT, WITHOUT ROWID;

-- Leases of environments that are gone were held until their instances were
-- removed.
INSERT OR IGNORE INTO gpu_instances (gpu, profile, place_start, place_size, remove, env_id, created_at)
  SELECT l.gpu, l.profile, l.place_start, l.place_size, 1, l.env_id, l.created_at
  FROM gpu_leases l LEFT JOIN environments e ON e.id = l.env_id
  WHERE l.released_at = 0 AND l.mode = 'mig' AND l.static = 0 AND coalesce(e.held, 0) = 0;
UPDATE gpu_leases SET released_at = max(created_at, 1),
    env_name = coalesce((SELECT name FROM environments WHERE id = gpu_leases.env_id), env_name)
  WHERE released_at = 0 AND mode = 'mig' AND static = 0
    AND NOT EXISTS (SELECT 1 FROM environments e WHERE e.id = env_id AND e.held = 1);
