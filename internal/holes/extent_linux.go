package holes

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// extent is where the next data begin, at a place or behind it, and where they
// end; the end of the file where there are none. known is false at or behind
// the end of the file, and where the file system cannot tell.
func extent(file *os.File, at int64) (begin, end int64, known bool) {
	begin, err := file.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // nothing but a hole, or nothing
		info, err := file.Stat()
		if err != nil || info.Size() <= at {
			return 0, 0, false
		}
		return info.Size(), info.Size(), true
	}
	if err != nil {
		return 0, 0, false
	}
	if begin > at {
		return begin, begin, true
	}
	end, err = file.Seek(at, unix.SEEK_HOLE)
	return begin, end, err == nil
}
