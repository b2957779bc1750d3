-- What the environment of an ended lease was called then: its row is kept for a
-- week, the lease for a year. Empty while the lease is held, and for those that
-- ended before.
ALTER TABLE gpu_leases ADD COLUMN env_name TEXT NOT NULL DEFAULT '';
