package containerd

import (
	"errors"
	"fmt"
	"io"
)

// endOfTransmission is what a terminal sends for the key that ends input.
const endOfTransmission = 0x04

// input is standard input. It tells when all of it was passed on. A terminal
// stays open then: the key that ends input is pressed.
//
// The end of an input that is empty must not be told before the shim reads the
// pipe: closing an end that is not open yet opens the other for a moment
// (containerd/fifo), which lets all writers through, and the shim's reader then
// waits for one forever.
type input struct {
	from     io.Reader
	terminal bool
	ended    chan struct{}
	over     <-chan struct{}
	done     bool
	last     byte   // that was passed on; 0: none was
	keys     []byte // that are still to be pressed
}

// WriteTo implements io.WriterTo for the one goroutine that copies.
func (i *input) WriteTo(pipe io.Writer) (int64, error) {
	if _, err := pipe.Write(nil); err != nil { // returns once the shim has its end open
		return 0, fmt.Errorf("open standard input: %w", err)
	}
	n, err := io.Copy(pipe, struct{ io.Reader }{i})
	if err != nil {
		return n, fmt.Errorf("pass on standard input: %w", err)
	}
	return n, nil
}

// Read implements io.Reader.
func (i *input) Read(p []byte) (int, error) {
	if i.done {
		return i.finish(p)
	}
	n, err := i.from.Read(p)
	if n > 0 {
		i.last = p[n-1]
	}
	if err == nil {
		return n, nil
	}
	// What is not the end of input is the end of the caller, which hangs up.
	i.done = true
	if !i.terminal {
		if errors.Is(err, io.EOF) {
			close(i.ended)
		} else {
			<-i.over
		}
		return n, io.EOF
	}
	if errors.Is(err, io.EOF) {
		i.keys = endKeys(i.last)
	}
	if n == 0 {
		return i.finish(p)
	}
	return n, nil
}

// finish presses the keys that are left, and keeps a terminal open.
func (i *input) finish(p []byte) (int, error) {
	if len(i.keys) > 0 {
		n := copy(p, i.keys)
		i.keys = i.keys[n:]
		return n, nil
	}
	if i.terminal {
		<-i.over
	}
	return 0, io.EOF
}

// endKeys is what ends the input of a terminal after last. The key passes on a
// line that was begun, and ends the input where none was: see termios(3), VEOF.
func endKeys(last byte) []byte {
	switch last {
	case 0, '\n', '\r', endOfTransmission: // the line is empty
		return []byte{endOfTransmission}
	}
	return []byte{endOfTransmission, endOfTransmission}
}
