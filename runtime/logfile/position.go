package logfile

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// sampleSize is how much of a file's beginning, and of what was read last, a
// position knows a file by, in bytes. Our files begin with a number and a time
// in nanoseconds, so no two begin alike.
const sampleSize = 256

// Position is a place in a log where reading can go on, in another process
// too. The zero position is before the first file.
type Position struct {
	Number uint64 // of the file
	Offset int64  // of the first byte that was not read
	Sum    uint64 // of parts of what is before it: another file of the same number has another
	// Open are the streams of which a partial record was read last, as bits: a
	// line that is never finished is ended for those who have its beginning.
	Open uint8
	// Late is a stream whose records before a place further ahead, in file
	// LateNumber at LateOffset, were not asked for. 0: there is none.
	Late       Stream
	LateNumber uint64
	LateOffset int64
}

// IsZero says whether it is before the first file.
func (p Position) IsZero() bool { return p == Position{} }

// Mark is a place that a reading has come to. It is good until the function
// that it was given to returns.
type Mark struct {
	reader *reader
	offset int64
}

// File is the number of the file, as Position has it.
func (m Mark) File() (uint64, error) {
	r := m.reader
	switch {
	case r == nil || r.at == nil && r.selection.After == nil:
		return 0, nil
	case r.at == nil:
		return r.selection.After.Number, nil
	case r.at.number > 0:
		return r.at.number, nil
	case r.at.given == 0:
		given, err := r.numberToBe()
		if err != nil {
			return 0, err
		}
		r.at.given = given
	}
	return r.at.given, nil
}

// Position is the place as one that can be kept.
func (m Mark) Position() (Position, error) {
	number, err := m.File()
	if err != nil || number == 0 {
		return Position{}, err
	}
	r := m.reader
	if r.at == nil {
		return *r.selection.After, nil // what follows it is still waited for
	}
	sum, _, err := r.at.sum(m.offset)
	if err != nil {
		return Position{}, err
	}
	at := Position{Number: number, Offset: m.offset, Sum: sum}
	for _, stream := range []Stream{Stdout, Stderr} {
		if r.open[stream] {
			at.Open |= openBit(stream)
		}
		if from := r.from[stream]; from.after(place{number, m.offset}) {
			at.Late, at.LateNumber, at.LateOffset = stream, from.number, from.offset
		}
	}
	return at, nil
}

// openBit is the bit of a stream in Position.Open.
func openBit(stream Stream) uint8 { return 1 << (stream - 1) }

// numberToBe is what the open file, which has no header, is or will be called
// when it is rotated.
func (r *reader) numberToBe() (uint64, error) {
	numbers, err := rotated(r.path)
	if err != nil {
		return 0, fmt.Errorf("list logs: %w", err)
	}
	if len(numbers) == 0 {
		return 1, nil
	}
	last := numbers[len(numbers)-1]
	if info, err := os.Stat(rotatedName(r.path, last)); err == nil && os.SameFile(info, r.at.info) {
		return last, nil
	}
	return last + 1, nil
}

// sum is the Sum of a position in s, and whether the file reaches as far.
func (s *source) sum(offset int64) (sum uint64, whole bool, err error) {
	var sample [sampleSize]byte
	size := min(offset, sampleSize)
	hash := fnv.New64a()
	for _, from := range []int64{0, offset - size} {
		n, err := s.file.ReadAt(sample[:size], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, false, fmt.Errorf("read log: %w", err)
		}
		if int64(n) < size {
			return 0, false, nil // emptied meanwhile
		}
		_, _ = hash.Write(sample[:n]) // never fails
	}
	return hash.Sum64(), true, nil
}

// beginAfter finds the file that a position is in, or else begins behind it:
// what was in it and not read is told to be lost.
func (r *reader) beginAfter(p Position, current *source) error {
	if p.IsZero() {
		return closeSource(current)
	}
	for _, stream := range []Stream{Stdout, Stderr} {
		r.open[stream] = p.Open&openBit(stream) != 0
	}
	// The log was opened before: if it was rotated since, its new name is there.
	older, err := open(rotatedName(r.path, p.Number))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("open log: %w", err), closeSource(current))
	}
	if older != nil {
		older.number, older.final = p.Number, true
	}
	for _, candidate := range []*source{older, current} {
		if candidate == nil || candidate.number != p.Number && candidate.number != 0 || r.at != nil {
			continue
		}
		sum, whole, err := candidate.sum(p.Offset)
		if err != nil {
			return errors.Join(err, closeSource(older), closeSource(current))
		}
		if whole && sum == p.Sum {
			candidate.offset = max(candidate.offset, p.Offset)
			r.enter(candidate)
		}
	}
	if r.at == nil {
		r.after, r.lost = p.Number-1, true
	} else if p.Late != 0 {
		r.from[p.Late] = place{p.LateNumber, p.LateOffset}
	}
	var errs []error
	for _, candidate := range []*source{older, current} {
		if candidate != r.at {
			errs = append(errs, closeSource(candidate))
		}
	}
	return errors.Join(errs...)
}
