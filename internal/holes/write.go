package holes

import (
	"bytes"
	"io"
	"os"
)

// Size is how many bytes of zeros, at a multiple of as many, become a hole.
// Less is written: a hole in the midst of data costs more than it saves.
const Size = 64 << 10

var zeros [Size]byte

// Writer writes a new file from its beginning. Finish must follow.
type Writer struct {
	file *os.File
	at   int64 // of the next byte
	end  int64 // how long the file is
}

// NewWriter returns a writer of a file that is empty and stays the caller's.
func NewWriter(file *os.File) *Writer { return &Writer{file: file} }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (written int, err error) {
	for written < len(p) {
		block := p[written:]
		block = block[:min(int64(len(block)), Size-w.at%Size)]
		// What is before the first whole block decides for itself.
		if hole := len(block) == Size && bytes.Equal(block, zeros[:]); !hole {
			// One call for all that is no hole.
			block = p[written : written+w.dense(p[written:])]
			n, err := w.file.WriteAt(block, w.at)
			written, w.at = written+n, w.at+int64(n)
			w.end = max(w.end, w.at)
			if err != nil {
				return written, err
			}
			continue
		}
		written, w.at = written+Size, w.at+Size
	}
	return written, nil
}

// dense is how many bytes of p, of which the first block is no hole, come before
// one.
func (w *Writer) dense(p []byte) int {
	n := int(min(int64(len(p)), Size-w.at%Size))
	for n < len(p) {
		next := min(len(p)-n, Size)
		if next == Size && bytes.Equal(p[n:n+Size], zeros[:]) {
			break
		}
		n += next
	}
	return n
}

// Written is how many bytes the file has, holes included, when it is finished.
func (w *Writer) Written() int64 { return w.at }

// Finish gives the file its length, where it ends with a hole.
func (w *Writer) Finish() error {
	if w.end >= w.at {
		return nil
	}
	return w.file.Truncate(w.at)
}

var _ io.Writer = (*Writer)(nil)
