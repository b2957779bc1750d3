package logfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newSuffix = ".new"      // a file that is about to become the log
	batchSize = 128 << 10   // bytes that are written at once
	tornLimit = 256 << 10   // how far back the last newline of a torn file is looked for
	retry     = time.Second // between attempts while the disk is full
)

// Config says where and how much a Writer writes. Zero numbers mean the
// default.
type Config struct {
	Path     string
	MaxSize  int64 // bytes
	MaxFiles int
}

// Writer appends to a log. It never fails for good: what cannot be written is
// dropped and counted, and the log says so once it can be written again. It is
// not safe for concurrent use.
type Writer struct {
	cfg     Config
	file    *os.File // nil: not open
	number  uint64
	size    int64
	batch   []byte
	lines   int // in batch
	lost    int64
	reason  error
	retryAt time.Time
	parts   [3][]byte    // by stream: the beginning of a line whose end has not come yet
	fed     [3]time.Time // by stream: when it wrote last
	open    [3]bool      // by stream: its last record is partial, and more must follow
	joined  bool         // lines that the writer before left unfinished are ended
	now     func() time.Time
}

// NewWriter returns a writer. Nothing is opened before there is something to
// write, except by Open.
func NewWriter(cfg Config) *Writer {
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	if cfg.MaxFiles <= 0 {
		cfg.MaxFiles = DefaultMaxFiles
	}
	cfg.MaxSize = max(cfg.MaxSize, MinMaxSize)
	return &Writer{cfg: cfg, batch: make([]byte, 0, batchSize+MaxLine+2*prefixLen), now: time.Now}
}

// Write takes what a stream has written, in pieces of any size. Whole lines
// are in the file when Flush has returned.
func (w *Writer) Write(stream Stream, data []byte) {
	if len(data) == 0 {
		return
	}
	at := w.now()
	w.fed[stream] = at
	prefix := appendPrefix(make([]byte, 0, prefixLen), at, stream)
	for len(data) > 0 {
		p := &w.parts[stream]
		end := bytes.IndexByte(data, '\n')
		room := MaxLine - len(*p)
		switch {
		case end >= 0 && end <= room:
			w.record(stream, prefix, data[:end], false)
			data = data[end+1:]
		case len(data) > room: // longer than a record
			w.record(stream, prefix, data[:room], true)
			data = data[room:]
		default:
			*p = append(*p, data...)
			return
		}
	}
}

// record adds one record to the batch.
func (w *Writer) record(stream Stream, prefix []byte, rest []byte, partial bool) {
	p := &w.parts[stream]
	w.open[stream] = partial
	start := len(w.batch)
	w.batch = append(w.batch, prefix...)
	if partial {
		w.batch[start+prefixLen-2] = 'P'
	}
	w.batch = append(append(w.batch, *p...), rest...)
	w.batch = append(w.batch, '\n')
	*p = (*p)[:0]
	w.lines++
	if len(w.batch) >= batchSize {
		w.Flush()
	}
}

func appendPrefix(to []byte, at time.Time, stream Stream) []byte {
	to = at.UTC().AppendFormat(to, timeLayout)
	if stream == Stderr {
		return append(to, " stderr F "...)
	}
	return append(to, " stdout F "...)
}

// End says that a stream has ended: a line without a newline is complete now.
func (w *Writer) End(stream Stream) {
	if len(w.parts[stream]) > 0 || w.open[stream] {
		w.record(stream, appendPrefix(make([]byte, 0, prefixLen), w.now(), stream), nil, false)
	}
	w.Flush()
}

// Pause writes the beginnings of lines whose streams have written nothing for
// that long, as partial records: a prompt has no newline, and is to be seen.
func (w *Writer) Pause(silent time.Duration) {
	for _, stream := range []Stream{Stdout, Stderr} {
		if at := w.now(); len(w.parts[stream]) > 0 && at.Sub(w.fed[stream]) >= silent {
			w.record(stream, appendPrefix(make([]byte, 0, prefixLen), at, stream), nil, true)
		}
	}
}

// Flush writes all whole lines, or drops and counts them.
func (w *Writer) Flush() {
	if len(w.batch) == 0 && w.lost == 0 {
		return
	}
	defer func() { w.batch, w.lines = w.batch[:0], 0 }()
	if w.lost > 0 {
		if w.now().Before(w.retryAt) {
			w.drop(w.lines, w.reason)
			return
		}
		if _, err := w.append(w.notice()); err != nil {
			w.drop(w.lines, err)
			return
		}
		w.lost = 0
	}
	if len(w.batch) == 0 {
		return
	}
	if written, err := w.append(w.batch); err != nil {
		w.drop(w.lines-written, err)
	}
}

// Lost is how many lines were dropped that the log does not tell of yet.
func (w *Writer) Lost() int64 { return w.lost }

func (w *Writer) drop(lines int, err error) {
	w.lost += int64(lines)
	w.reason = err
	w.open = [3]bool{} // the notice ends what is unfinished
	if now := w.now(); !now.Before(w.retryAt) {
		w.retryAt = now.Add(retry)
	}
}

// notice are the records that tell of lost lines, and that what is before them
// does not go on behind them.
func (w *Writer) notice() []byte {
	text := appendEnd(appendEnd(nil, w.now(), Stdout), w.now(), Stderr)
	text = appendPrefix(text, w.now(), Stderr)
	text = append(text, "remotegpu: "...)
	text = strconv.AppendInt(text, w.lost, 10)
	text = append(text, " lines were lost here: "...)
	return append(append(text, w.reason.Error()...), '\n')
}

// append writes whole records to the right file: a new one when the log was
// deleted, moved or emptied, or is full. With an error it returns how many made
// it all the same.
func (w *Writer) append(records []byte) (written int, err error) {
	if err := w.Open(); err != nil {
		return 0, err
	}
	if w.size > int64(len(header(w.number))) && w.size+int64(len(records)) > w.cfg.MaxSize {
		if err := w.rotate(); err != nil {
			return 0, err
		}
	}
	return w.put(records)
}

// put writes whole records to the open file.
func (w *Writer) put(records []byte) (written int, err error) {
	n, err := w.file.Write(records)
	if err == nil {
		w.size += int64(n)
		return 0, nil
	}
	// Whole records that made it stay; the torn one goes, or what comes next
	// would be glued to it.
	whole := bytes.LastIndexByte(records[:max(n, 0)], '\n') + 1
	w.size += int64(whole)
	if truncated := w.file.Truncate(w.size); truncated != nil {
		w.close() // opening it again cuts it off
	}
	return bytes.Count(records[:whole], []byte{'\n'}), cause(err)
}

// cause is the system's error without paths and verbs.
func cause(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

// Open opens the log unless the right file is open already, and makes it if
// it is not there.
func (w *Writer) Open() error {
	if w.file != nil {
		same, err := w.same()
		if err != nil || same {
			return err
		}
		w.close()
	}
	file, err := os.OpenFile(w.cfg.Path, os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return w.create()
	}
	if err != nil {
		return cause(err)
	}
	w.file = file
	if err := w.adopt(); err != nil {
		w.close()
		return cause(err)
	}
	return nil
}

// same says whether the open file is still the log and as this writer left it.
func (w *Writer) same() (bool, error) {
	var opened, named unix.Stat_t
	if err := unix.Fstat(int(w.file.Fd()), &opened); err != nil {
		return false, err
	}
	if err := unix.Lstat(w.cfg.Path, &named); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if opened.Ino != named.Ino || opened.Dev != named.Dev || opened.Size < w.size {
		return false, nil
	}
	w.size = opened.Size
	return true, nil
}

// adopt makes an existing file one that can be appended to.
func (w *Writer) adopt() error {
	info, err := w.file.Stat()
	if err != nil {
		return err
	}
	w.size = info.Size()
	start := make([]byte, min(w.size, int64(len(headerMark))+24))
	if _, err := w.file.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if line, _, whole := bytes.Cut(start, []byte{'\n'}); whole {
		if n, ok := parseHeader(line); ok {
			w.number = n
			tail, err := w.cutTorn()
			if err != nil {
				return err
			}
			return w.endLines(tail)
		}
	}
	last, err := w.lastNumber()
	if err != nil {
		return err
	}
	if w.size == 0 {
		w.number = last + 1
		return w.writeHeader(w.file)
	}
	// Another program wrote it: it becomes the last of the rotated files.
	w.number = last + 1
	return w.rotate()
}

func (w *Writer) writeHeader(file *os.File) error {
	text := header(w.number)
	if _, err := file.Write(text); err != nil {
		return errors.Join(err, file.Truncate(0))
	}
	w.size = int64(len(text))
	return nil
}

func (w *Writer) lastNumber() (uint64, error) {
	numbers, err := rotated(w.cfg.Path)
	if err != nil || len(numbers) == 0 {
		return w.number, err
	}
	return max(w.number, numbers[len(numbers)-1]), nil
}

// create makes the log anew. Its name appears when it is complete.
func (w *Writer) create() error {
	last, err := w.lastNumber()
	if err != nil {
		return cause(err)
	}
	file, err := w.fresh(last + 1)
	if err != nil {
		return cause(err)
	}
	return cause(w.become(file))
}

// fresh makes file number n under a name of passage.
func (w *Writer) fresh(n uint64) (*os.File, error) {
	if err := removeOne(w.cfg.Path + newSuffix); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(w.cfg.Path+newSuffix, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := file.Write(header(n)); err != nil {
		return nil, errors.Join(err, file.Close(), removeOne(w.cfg.Path+newSuffix))
	}
	return file, nil
}

// become makes a fresh file the log, if there is none.
func (w *Writer) become(file *os.File) error {
	if err := rename(w.cfg.Path+newSuffix, w.cfg.Path); err != nil {
		return errors.Join(err, file.Close(), removeOne(w.cfg.Path+newSuffix))
	}
	w.file = file
	return w.adopt()
}

// rotate gives the log its number and begins a new one. The oldest files go
// first: on a full disk they make the room. A crash between the two renames
// leaves no log, which the next Open makes.
func (w *Writer) rotate() error {
	numbers, err := rotated(w.cfg.Path)
	if err != nil {
		return cause(err)
	}
	for i := 0; i < len(numbers)-max(0, w.cfg.MaxFiles-2); i++ {
		if err := removeOne(rotatedName(w.cfg.Path, numbers[i])); err != nil {
			return cause(err)
		}
	}
	if last := len(numbers) - 1; last >= 0 && numbers[last] >= w.number {
		w.number = numbers[last] + 1 // somebody put a file there: it is not replaced, and stops nothing
	}
	file, err := w.fresh(w.number + 1)
	if err != nil {
		return cause(err)
	}
	kept := rotatedName(w.cfg.Path, w.number)
	if w.cfg.MaxFiles == 1 {
		err = os.Remove(w.cfg.Path)
	} else {
		err = rename(w.cfg.Path, kept)
	}
	if err != nil {
		return errors.Join(cause(err), file.Close(), removeOne(w.cfg.Path+newSuffix))
	}
	w.close()
	return cause(w.become(file))
}

// rename never replaces a file, where the filesystem can promise that.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	return err
}

func (w *Writer) close() {
	if w.file != nil {
		_ = w.file.Close() // every write was checked
		w.file = nil
	}
}

// Close ends both streams and closes the file.
func (w *Writer) Close() error {
	w.retryAt = time.Time{} // one last attempt
	w.End(Stdout)
	w.End(Stderr)
	w.close()
	if w.lost > 0 {
		return w.reason
	}
	return nil
}
