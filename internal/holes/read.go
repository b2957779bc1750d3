package holes

import (
	"math"
	"os"
)

// asked is for how many bytes a hole is believed to be one before the file
// system is asked again: somebody may write to it meanwhile.
const asked = 64 << 20

// Reader reads a file from its beginning to its end, wherever that is by then.
// Holes are zeros that cost no disk. It does not use the file's own offset for
// anything, but moves it.
type Reader struct {
	file *os.File
	at   int64 // of the next byte
	hole int64 // where the hole that at is in ends; not above at: it is in none
	data int64 // where nobody needs to be asked before
}

// NewReader returns a reader of a plain file, which stays the caller's.
func NewReader(file *os.File) *Reader { return &Reader{file: file} }

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.at >= r.hole && r.at >= r.data {
		r.ask()
	}
	if r.at < r.hole {
		n := int(min(int64(len(p)), r.hole-r.at))
		clear(p[:n])
		r.at += int64(n)
		return n, nil
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), max(r.data-r.at, 1))], r.at)
	r.at += int64(n)
	if n > 0 {
		err = nil // it comes again, if it is to stay
	}
	return n, err
}

// ask finds out what is at the reader's place. Where the file system does not
// tell, all is data.
func (r *Reader) ask() {
	begin, end, known := extent(r.file, r.at)
	switch {
	case !known:
		r.data = math.MaxInt64
	case begin > r.at:
		r.hole = min(begin, r.at+asked)
	default:
		r.data = max(end, r.at+1)
	}
}
