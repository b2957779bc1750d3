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
	defer func() { r.from = search.places() }()
	if current != nil {
		r.enter(current)
		number, err := r.mark().File()
		if err != nil {
			return err
		}
		if _, done, err := search.file(current, number); done || err != nil {
			return err
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
		if current != nil && os.SameFile(older.info, current.info) {
			_ = older.file.Close() // rotated since it was opened
			continue
		}
		older.number, older.final = n, true
		found, done, err := search.file(older, n)
		if err != nil {
			return errors.Join(err, closeSource(older))
		}
		if found || r.at == nil {
			r.enter(older)
		} else {
			_ = older.file.Close() // it was only searched for the beginning of a line
		}
		if done {
			return nil
		}
	}
	return nil
}

// place is the beginning of a record: number of its file, and offset. The zero
// place is before all.
type place struct {
	number uint64
	offset int64
}

func (p place) after(other place) bool {
	return p.number > other.number || p.number == other.number && p.offset > other.offset
}

// tailSearch counts lines backwards, by their last records. Where the other
// stream has come between the parts of a line, it goes on to the first one and
// leaves out what the other stream wrote in between: each stream has a place of
// its own to begin at.
type tailSearch struct {
	selection *Selection
	wanted    int64
	below     [3]bool  // by stream: what was met last is of a line that is wanted
	at        [3]place // by stream: of the first record that is wanted
	end       place    // behind the last record of all
}

// places are where the streams begin.
func (t *tailSearch) places() [3]place {
	at := t.at
	for _, stream := range []Stream{Stdout, Stderr} {
		if at[stream] == (place{}) {
			at[stream] = t.end // nothing of it is wanted
		}
	}
	return at
}

// file searches file number n, and sets where to begin in it: at the first
// record that is wanted, if one was found, or else behind the last one. done
// says that there is no more to look for.
func (t *tailSearch) file(s *source, n uint64) (found, done bool, err error) {
	first := s.offset // behind the header
	end := s.info.Size()
	if t.end == (place{}) {
		t.end = place{n, first}
	}
	whole := false  // what is behind the last newline was cut off
	var rest []byte // the beginning of a line whose own beginning is further ahead
	for end > first {
		from := max(first, end-blockSize)
		block := make([]byte, end-from, end-from+int64(len(rest)))
		if _, err := s.file.ReadAt(block, from); err != nil && !errors.Is(err, io.EOF) {
			return found, false, fmt.Errorf("read log: %w", err)
		}
		block = append(block, rest...)
		if !whole { // whatever is behind the last newline is torn, or not yet whole
			last := bytes.LastIndexByte(block, '\n')
			if last < 0 && from > first && len(block) <= 2*blockSize {
				rest, end = block, from
				continue
			}
			block = block[:last+1]
			whole = true
			s.offset = max(first, from+int64(len(block)))
			if t.end.number == n {
				t.end.offset = s.offset
			}
		}
		for len(block) > 0 {
			start := bytes.LastIndexByte(block[:len(block)-1], '\n') + 1
			if start == 0 && from > first && len(block) <= 2*blockSize {
				break
			}
			record := place{n, from + int64(start)}
			wanted, done := t.passed(block[start:len(block)-1], record)
			if wanted {
				found, s.offset = true, max(first, record.offset)
			}
			if done {
				return found, true, nil
			}
			block = block[:start]
		}
		rest, end = bytes.Clone(block), from
	}
	return found, false, nil
}

// passed takes one record, and says whether it is wanted and whether no other
// one before it is.
func (t *tailSearch) passed(record []byte, at place) (wanted, done bool) {
	line := parse(record)
	if !line.Time.IsZero() && line.Time.Before(t.selection.Since) {
		return false, true
	}
	if !t.selection.takes(&line) {
		return false, false
	}
	switch {
	case line.ends:
		t.below[line.Stream] = false // a partial record before it is all of its line
	case line.Partial && t.below[line.Stream]:
		wanted = true // its last part was counted
	case t.wanted == 0:
		t.below[line.Stream] = false
	default:
		t.wanted--
		t.below[line.Stream], wanted = true, true
	}
	if wanted {
		t.at[line.Stream] = at
	}
	return wanted, t.wanted == 0 && !t.below[Stdout] && !t.below[Stderr]
}
