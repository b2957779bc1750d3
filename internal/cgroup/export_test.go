package cgroup

// ContainsIn is contains.
func ContainsIn(table, path string) bool { return contains(table, path) }

// NewReaderOf is newReader.
func NewReaderOf(mountinfo string) *Reader { return newReader(mountinfo) }
