package cgroup

// ContainsIn is contains.
func ContainsIn(table, path string) bool { return contains(table, path) }
