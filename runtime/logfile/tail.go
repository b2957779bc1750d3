package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// begin finds where reading begins and, without Follow, where it ends.
func (r *reader) begin() error {
	current, err := open(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open log: %w", err)
	}
	if current != nil {
		r.end = &bound{info: current.info, number: current.number, size: current.info.Size()}
	}
	if r.selection.After != nil {
		return r.beginAfter(*r.selection.After, current)
	}
	if r.selection.Tail == nil {
		return closeSource(current) // from the oldest file on
	}
	return r.beginAtTail(current)
}

// beginAtTail goes backwards from the end, without reading what comes before
// the first line that is wanted.
func (r *reader) beginAtTail(current *source) error {
	numbers, err := rotated(r.path)
	if err != nil {
		return errors.Join(fmt.Errorf("list logs: %w", err), closeSource(current))
	}
	slices.Reverse(numbers)
	search := tailSearch{selection: &r.selection, wanted: *r.selection.Tail}
	if current != nil {
		done, err := search.file(current)
		if err != nil {
			return errors.Join(err, closeSource(current))
		}
		r.enter(current)
		if done {
			return nil
		}
	}
	for _, n := range numbers {
		older, err := open(rotatedName(r.path, n))
		if errors.Is(err, os.ErrNotExist) {
			return nil // removed meanwhile, and so will be the older ones
		}
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		if r.at != nil && os.SameFile(older.info, r.at.info) {
			_ = older.file.Close() // rotated since it was opened
			continue
		}
		older.number, older.final = n, true
		done, err := search.file(older)
		if err != nil {
			return errors.Join(err, closeSource(older))
		}
		r.enter(older)
		if done {
			return nil
		}
	}
	return nil
}

// tailSearch counts lines backwards.
type tailSearch struct {
	selection *Selection
	wanted    int64
	below     [3]bool // by stream: a record of it was counted, further down
}

// file sets where to begin in s, and says whether that is the beginning of
// all.
func (t *tailSearch) file(s *source) (done bool, err error) {
	first := s.offset // behind the header
	end := s.info.Size()
	begin := int64(-1) // of the last line looked at
	var rest []byte    // the beginning of a line whose own beginning is further ahead
	for end > first {
		from := max(first, end-blockSize)
		block := make([]byte, end-from, end-from+int64(len(rest)))
		if _, err := s.file.ReadAt(block, from); err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read log: %w", err)
		}
		block = append(block, rest...)
		if begin < 0 { // whatever is behind the last newline is torn, or not yet whole
			last := bytes.LastIndexByte(block, '\n')
			if last < 0 && from > first && len(block) <= 2*blockSize {
				rest, end = block, from
				continue
			}
			block = block[:last+1]
			begin = from + int64(len(block))
		}
		for len(block) > 0 {
			start := bytes.LastIndexByte(block[:len(block)-1], '\n') + 1
			if start == 0 && from > first && len(block) <= 2*blockSize {
				break
			}
			if t.passed(block[start : len(block)-1]) {
				s.offset = from + int64(len(block))
				return true, nil
			}
			block = block[:start]
			begin = from + int64(start)
		}
		rest, end = bytes.Clone(block), from
	}
	if begin >= 0 {
		s.offset = max(first, begin)
	}
	return false, nil
}

// passed takes one line and says whether reading begins behind it.
func (t *tailSearch) passed(record []byte) bool {
	line := parse(record)
	if !line.Time.IsZero() && line.Time.Before(t.selection.Since) {
		return true
	}
	if !t.selection.takes(&line) {
		return false
	}
	if line.ends {
		t.below[line.Stream] = false // a partial record before it is all of its line
		return false
	}
	if counted := t.below[line.Stream]; line.Partial && counted {
		return false // its last part was
	}
	t.below[line.Stream] = true
	if t.wanted == 0 {
		return true
	}
	t.wanted--
	return false
}
