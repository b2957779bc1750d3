package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	blockSize = 64 << 10               // bytes read at once; also the longest line of a foreign file
	pollEvery = 100 * time.Millisecond // of a follower that has read everything
	askEvery  = time.Second            // between two calls of Gone
)

// Selection says which lines to read. Zero fields select all there is.
type Selection struct {
	Since  time.Time // lines written then or later
	Until  time.Time // lines written before
	Stream Stream    // 0: both
	// Tail is how many lines of what there is to begin with; nil means all.
	Tail *int64
	// After is where an earlier reading of this log ended: this one begins
	// there, or tells that it cannot. Tail must be nil then. nil: at the oldest
	// line.
	After *Position
	// Follow goes on with what is written from then on, until Until, ctx's
	// end, or Gone.
	Follow bool
	// Gone is asked while there is no file: true ends a follower. nil: never.
	Gone func(context.Context) bool
	// Idle is called when everything that is there has been read: before a
	// follower waits for more, and at the end of a reading that nothing has
	// failed. nil: not.
	Idle func(Mark) error
}

func (s *Selection) takes(line *Line) bool {
	if s.Stream != 0 && line.Stream != s.Stream {
		return false
	}
	// Lines without a time are of a file that has none.
	return line.Time.IsZero() || !line.Time.Before(s.Since) && (s.Until.IsZero() || line.Time.Before(s.Until))
}

// Read calls emit with each selected line, oldest first, each exactly once as
// long as its file is kept. Where a file was removed before it was read, a line
// of ours on standard error says so, whatever the selection. A line whose end was
// never written, as its writer was killed, is ended by a record without data and
// without Partial where that writer's run ended. The line's data
// and mark are emit's until it returns. A log that is not there has no lines.
// An error of emit ends the reading and is returned as it is; the end of ctx is
// ctx's cause.
func Read(ctx context.Context, path string, s Selection, emit func(Line) error) error {
	r := &reader{path: path, selection: s, emit: emit, block: make([]byte, blockSize)}
	defer r.close()
	err := r.begin()
	if err == nil {
		err = r.run(ctx)
	}
	if err == nil || errors.Is(err, errDone) {
		return r.idle()
	}
	return err
}

// errDone ends a reading that has everything it was to read.
var errDone = errors.New("done")

type reader struct {
	path      string
	selection Selection
	emit      func(Line) error
	block     []byte

	at    *source  // nil: before the first file, or the log was not there
	after uint64   // number of the last file that was read, 0: none
	lost  bool     // the file to go on in is gone, and nobody was told
	open  [3]bool  // by stream: what was emitted last was partial
	from  [3]place // by stream: records before it are not wanted
	end   *bound   // where a reading without Follow ends; nil: where there is no more
	asked time.Time
}

// source is one file of a log.
type source struct {
	file   *os.File
	info   os.FileInfo // as it was when opened
	number uint64      // 0: not known
	given  uint64      // the number it gets when it is rotated, where number is 0; 0: not asked for
	alien  bool        // it has no header: another program wrote it
	offset int64       // of the first byte that was not consumed
	final  bool        // nothing will be written to it any more
}

// bound is the last byte there was when reading began.
type bound struct {
	info   os.FileInfo
	number uint64
	size   int64
}

// is says whether the bound is in s. Inodes of deleted files are used again,
// numbers are not.
func (b *bound) is(s *source) bool {
	return os.SameFile(s.info, b.info) && (s.number == b.number || b.number == 0 || s.number == 0)
}

// open opens a file of the log and reads its header.
func open(name string) (*source, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	s := &source{file: file, info: info}
	if err := s.readHeader(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}

func (s *source) readHeader() error {
	var start [len(headerMark) + 24]byte
	n, err := s.file.ReadAt(start[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read log: %w", err)
	}
	s.number, s.offset, s.alien = 0, 0, true
	if end := bytes.IndexByte(start[:n], '\n'); end >= 0 {
		if number, ok := parseHeader(start[:end]); ok {
			s.number, s.offset, s.alien = number, int64(end)+1, false
		}
	}
	return nil
}

func (r *reader) close() {
	if r.at != nil {
		_ = r.at.file.Close() // it was only read
		r.at = nil
	}
}

// run reads file after file.
func (r *reader) run(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if r.at != nil {
			if err := r.drain(ctx); err != nil {
				return err
			}
			if r.atEnd() {
				return nil
			}
			if !r.at.final {
				if r.at.final = r.superseded(); r.at.final {
					continue // the last lines may have come before it was
				}
			}
		}
		if r.at == nil || r.at.final {
			moved, err := r.advance()
			if err != nil {
				return err
			}
			if moved {
				continue
			}
		}
		if !r.selection.Follow {
			return nil
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
}

// atEnd says whether a reading without Follow has read what there was.
func (r *reader) atEnd() bool {
	if r.end == nil || r.selection.Follow {
		return false
	}
	if r.end.is(r.at) {
		return true // drain stops at the bound
	}
	return r.at.number > r.end.number && r.end.number > 0
}

// drain emits the whole lines of the open file.
func (r *reader) drain(ctx context.Context) error {
	s := r.at
	limit := int64(-1)
	if r.end != nil && !r.selection.Follow && r.end.is(s) {
		limit = r.end.size
	}
	emptied, err := s.checkEmptied()
	if err != nil {
		return err
	}
	if emptied {
		r.from = [3]place{}
	}
	for ctx.Err() == nil {
		block := r.block
		if limit >= 0 {
			block = block[:max(0, min(int64(len(block)), limit-s.offset))]
		}
		n, err := s.file.ReadAt(block, s.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read log: %w", err)
		}
		consumed, err := r.lines(block[:n], n == len(r.block))
		s.offset += int64(consumed)
		if err != nil {
			return err
		}
		if consumed > 0 {
			continue
		}
		if n == 0 {
			return nil
		}
		if s.alien && (s.final || !r.selection.Follow) {
			// Only our own writer ends lines: what another one left without
			// a newline is a line.
			s.offset += int64(n)
			return r.line(block[:n], false, s.offset-int64(n), s.offset)
		}
		return nil
	}
	return context.Cause(ctx)
}

// lines emits the whole lines of a block and returns their size. A full block
// without a newline is a piece of a line that no writer of ours has written.
func (r *reader) lines(block []byte, full bool) (int, error) {
	consumed := 0
	for {
		end := bytes.IndexByte(block[consumed:], '\n')
		if end < 0 {
			break
		}
		record, next := block[consumed:consumed+end], consumed+end+1
		if err := r.line(record, false, r.at.offset+int64(consumed), r.at.offset+int64(next)); err != nil {
			return consumed, err
		}
		consumed = next
	}
	if consumed == 0 && full {
		return len(block), r.line(block, true, r.at.offset, r.at.offset+int64(len(block)))
	}
	return consumed, nil
}

// line emits a record that is between two offsets.
func (r *reader) line(record []byte, piece bool, start, end int64) error {
	line := parse(record)
	line.End = Mark{reader: r, offset: end}
	line.Partial = line.Partial || piece
	if until := r.selection.Until; r.selection.Follow && !until.IsZero() && !line.Time.IsZero() && !line.Time.Before(until) {
		return errDone
	}
	if !r.selection.takes(&line) || line.ends && !r.open[line.Stream] {
		return nil
	}
	if from := r.from[line.Stream]; from != (place{}) {
		number, err := line.End.File()
		if err != nil {
			return err
		}
		if from.after(place{number, start}) {
			return nil
		}
		r.from[line.Stream] = place{}
	}
	r.open[line.Stream] = line.Partial
	return r.emit(line)
}

// checkEmptied begins anew when somebody has emptied the file: its writer has
// given it another number then. One that has begun since may give it the same.
func (s *source) checkEmptied() (emptied bool, err error) {
	if s.final {
		return false, nil
	}
	now := source{file: s.file}
	if err := now.readHeader(); err != nil {
		return false, err
	}
	info, err := s.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	if now.number != s.number || info.Size() < s.offset {
		s.number, s.offset, s.alien, s.given = now.number, now.offset, now.alien, 0
		return true, nil
	}
	return false, nil
}

// superseded says whether the open file is not the one that is written.
func (r *reader) superseded() bool {
	info, err := os.Stat(r.path)
	if err != nil {
		// Between two files; or deleted, and its writer may not know yet.
		return false
	}
	return !os.SameFile(info, r.at.info)
}

// advance opens the file that follows the last one, if there is one. The log
// is opened before the others are listed: whatever is rotated in between is in
// the list.
func (r *reader) advance() (bool, error) {
	current, err := open(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("open log: %w", err)
	}
	numbers, err := rotated(r.path)
	if err != nil {
		return false, errors.Join(fmt.Errorf("list logs: %w", err), closeSource(current))
	}
	r.settle(numbers)
	for _, n := range numbers {
		if n <= r.after {
			continue
		}
		older, err := open(rotatedName(r.path, n))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile, with its lines
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("open log: %w", err), closeSource(current))
		}
		if r.skips(older) {
			r.after = n
			_ = older.file.Close()
			continue
		}
		_ = closeSource(current)
		older.number, older.final = n, true
		return true, r.move(older)
	}
	if current == nil || r.at != nil && os.SameFile(current.info, r.at.info) {
		return false, closeSource(current)
	}
	// Its number is higher, or the log was deleted and numbers began anew.
	return true, r.move(current)
}

// skips says whether a rotated file ends before the first line that is wanted.
func (r *reader) skips(s *source) bool {
	return !r.selection.Since.IsZero() && s.info.ModTime().Before(r.selection.Since)
}

// settle finds out the number that the open file was given, when it had none.
func (r *reader) settle(numbers []uint64) {
	if r.at == nil {
		return
	}
	if r.at.number > 0 {
		r.after = r.at.number
		return
	}
	for _, n := range numbers {
		if info, err := os.Stat(rotatedName(r.path, n)); err == nil && os.SameFile(info, r.at.info) {
			r.after = n
			return
		}
	}
}

// move goes on with another file, and tells when files between the last one
// and this were removed: their lines came faster than they were read.
func (r *reader) move(to *source) error {
	missing := int64(to.number) - int64(r.after) - 1
	told := r.after > 0 && missing > 0 || r.lost
	// A writer's numbers never go back: another one has begun.
	anew := r.after > 0 && to.number > 0 && to.number <= r.after
	r.lost = false
	r.enter(to)
	if told || anew {
		if anew {
			r.from = [3]place{}
		}
		if err := r.endLines(); err != nil {
			return err
		}
	}
	if !told {
		return nil
	}
	text := "remotegpu: lines were lost here: "
	if missing > 0 {
		text = fmt.Sprintf("%s%d files of the log were removed before they were read", text, missing)
	} else {
		text += "the log was removed and begun anew before it was read"
	}
	return r.emit(Line{Time: time.Now(), Stream: Stderr, Data: []byte(text), End: r.mark()})
}

func (r *reader) enter(to *source) {
	r.close()
	r.at = to
	if to.number > 0 {
		r.after = to.number
	}
}

func closeSource(s *source) error {
	if s == nil {
		return nil
	}
	return s.file.Close()
}

func (r *reader) idle() error {
	if r.selection.Idle == nil {
		return nil
	}
	return r.selection.Idle(r.mark())
}

// mark is where the reading is, between two lines.
func (r *reader) mark() Mark {
	if r.at == nil {
		return Mark{reader: r}
	}
	return Mark{reader: r, offset: r.at.offset}
}

// wait lets some time pass, or ends a follower.
func (r *reader) wait(ctx context.Context) error {
	if err := r.idle(); err != nil {
		return err
	}
	if until := r.selection.Until; !until.IsZero() && time.Now().After(until.Add(askEvery)) {
		return errDone
	}
	if r.selection.Gone != nil && time.Since(r.asked) >= askEvery {
		if _, err := os.Stat(r.path); errors.Is(err, os.ErrNotExist) {
			r.asked = time.Now()
			if r.selection.Gone(ctx) {
				return errDone
			}
		}
	}
	timer := time.NewTimer(pollEvery)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
