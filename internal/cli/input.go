package cli

import (
	"context"
	"io"
	"os"

	"golang.org/x/term"
)

// untilDone is a reader that ends with the cause of ctx, too, where the one
// below may wait for somebody to write for as long as it likes. What is read
// below and not asked for is lost.
func untilDone(ctx context.Context, below io.Reader) io.Reader {
	if file, ok := below.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			return below // never waits
		}
	}
	reader, writer := io.Pipe()
	stop := context.AfterFunc(ctx, func() { writer.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		_, err := io.Copy(writer, below)
		writer.CloseWithError(err) // nil: io.EOF
	}()
	return reader
}

// readPassword reads a line of a terminal without showing it. The terminal is
// as it was when it returns, also when ctx ends first.
func readPassword(ctx context.Context, terminal *os.File) ([]byte, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		_ = term.Restore(fd, before) // the cause counts
		return nil, context.Cause(ctx)
	}
}
