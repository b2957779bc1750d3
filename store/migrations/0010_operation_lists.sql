-- Lists of operations by state or project, newest first, over all that is kept.
CREATE INDEX operations_state ON operations (state, seq);
CREATE INDEX operations_project ON operations (project, seq);
