-- How many memory errors that nobody corrected a GPU had over its life, when that
-- was last looked at: more of them make it unhealthy, whoever was looking.
ALTER TABLE gpu_marks ADD COLUMN uncorrected INTEGER CHECK (uncorrected >= 0);
