package rpc

import "strconv"

// Sizes of pages.
const (
	defaultPageSize = 50
	maxPageSize     = 500
)

func pageSize(asked int32) int {
	switch {
	case asked <= 0:
		return defaultPageSize
	case asked > maxPageSize:
		return maxPageSize
	}
	return int(asked)
}

func etag(revision int64) string { return strconv.FormatInt(revision, 10) }
