-- Lists over all that is kept: operations by kind, what became of a host port, and
-- who had a GPU.
CREATE INDEX operations_kind ON operations (kind, seq);
CREATE INDEX port_mappings_history ON port_mappings (host_id, external_port, seq);
CREATE INDEX gpu_leases_gpu ON gpu_leases (gpu, seq);
