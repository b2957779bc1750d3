package rfb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits of what a client may send. A clipboard beyond MaxClipboard is dropped
// and the session goes on; everything else beyond its limit ends the session.
const (
	MaxClipboard = 1 << 20 // bytes
	maxScreens   = 16
	maxEncodings = 1024
	maxFence     = 64
)

// Filter copies the messages of a client to a server, one whole message at a
// time, and lets through only what it knows and what is within the limits.
type Filter struct {
	// ViewOnly drops what acts on the desktop: keys, pointer, clipboard and
	// size. The server refuses these from a view-only password as well.
	ViewOnly bool
}

// Copy copies messages until the client ends (nil), an error, or a message
// that is not allowed (*ProtocolError).
func (f Filter) Copy(dst io.Writer, src io.Reader) error {
	c := &clientStream{r: bufio.NewReaderSize(src, 1<<16), w: bufio.NewWriterSize(dst, 1<<16), viewOnly: f.ViewOnly}
	for {
		if err := c.message(); err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
		if c.r.Buffered() > 0 { // more of the same packet: send it in one go
			continue
		}
		if err := c.w.Flush(); err != nil {
			return fmt.Errorf("write to the server: %w", err)
		}
	}
}

type clientStream struct {
	r        *bufio.Reader
	w        *bufio.Writer
	viewOnly bool
	buf      []byte // of the present message, reused
}

// message reads one message and passes it on or drops it. io.EOF only between
// messages.
func (c *clientStream) message() error {
	kind, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	c.buf = append(c.buf[:0], kind)
	switch kind {
	case clientSetPixelFormat:
		return c.fixed(19, false)
	case clientSetEncodings:
		return c.encodings()
	case clientUpdateRequest, clientContinuous:
		return c.fixed(9, false)
	case clientKeyEvent:
		return c.fixed(7, true)
	case clientPointerEvent:
		return c.fixed(5, true)
	case clientCutText:
		return c.cutText()
	case clientFence:
		return c.fence()
	case clientXVP: // would shut the desktop's machine down; nobody offers it
		return c.more(3)
	case clientSetDesktopSize:
		return c.desktopSize()
	case clientQEMU:
		return c.qemu()
	default:
		return violation("unknown message %d from the client", kind)
	}
}

// more reads n more bytes of the message into buf.
func (c *clientStream) more(n int) error {
	start := len(c.buf)
	c.buf = append(c.buf, make([]byte, n)...)
	if _, err := io.ReadFull(c.r, c.buf[start:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read from the client: %w", err)
	}
	return nil
}

// pass sends buf on, unless it acts on the desktop and the session may not.
func (c *clientStream) pass(acts bool) error {
	if acts && c.viewOnly {
		return nil
	}
	if _, err := c.w.Write(c.buf); err != nil {
		return fmt.Errorf("write to the server: %w", err)
	}
	return nil
}

func (c *clientStream) fixed(n int, acts bool) error {
	if err := c.more(n); err != nil {
		return err
	}
	return c.pass(acts)
}

// encodings removes the extended mouse buttons from what the client offers:
// with them a pointer event may be a byte longer, and whether it is depends on
// what the server said.
func (c *clientStream) encodings() error {
	if err := c.more(3); err != nil {
		return err
	}
	count := int(binary.BigEndian.Uint16(c.buf[2:]))
	if count > maxEncodings {
		return violation("%d encodings, the limit is %d", count, maxEncodings)
	}
	if err := c.more(4 * count); err != nil {
		return err
	}
	kept := c.buf[:4]
	for i := 4; i < 4+4*count; i += 4 {
		if int32(binary.BigEndian.Uint32(c.buf[i:])) != encodingExtendedMouse {
			kept = append(kept, c.buf[i:i+4]...)
		}
	}
	c.buf = kept
	binary.BigEndian.PutUint16(c.buf[2:], uint16((len(kept)-4)/4))
	return c.pass(false)
}

// cutText bounds a clipboard. A negative length is that of the extended
// clipboard's message (community extension 0xc0a1e5ce).
func (c *clientStream) cutText() error {
	if err := c.more(7); err != nil {
		return err
	}
	length := int64(int32(binary.BigEndian.Uint32(c.buf[4:])))
	if length < 0 {
		if length = -length; length < 4 {
			return violation("extended clipboard of %d bytes", length)
		}
	}
	if length > MaxClipboard {
		if _, err := io.CopyN(io.Discard, c.r, length); err != nil {
			return fmt.Errorf("read from the client: %w", noEOF(err))
		}
		return nil
	}
	if err := c.more(int(length)); err != nil {
		return err
	}
	err := c.pass(true)
	if cap(c.buf) > 1<<16 {
		c.buf = nil // one large paste should not stay in memory
	}
	return err
}

func (c *clientStream) fence() error {
	if err := c.more(8); err != nil {
		return err
	}
	length := int(c.buf[8])
	if length > maxFence {
		return violation("fence of %d bytes, the limit is %d", length, maxFence)
	}
	if err := c.more(length); err != nil {
		return err
	}
	return c.pass(false)
}

// desktopSize bounds the framebuffer: a server takes 16384x16384 and would
// allocate a gigabyte. One screen that is too large is made to fit, since a
// browser waits for an answer; anything else is refused.
func (c *clientStream) desktopSize() error {
	if err := c.more(7); err != nil {
		return err
	}
	screens := int(c.buf[6])
	if screens < 1 || screens > maxScreens {
		return violation("%d screens, 1 to %d are possible", screens, maxScreens)
	}
	if err := c.more(16 * screens); err != nil {
		return err
	}
	width, height := int(binary.BigEndian.Uint16(c.buf[2:])), int(binary.BigEndian.Uint16(c.buf[4:]))
	if width == 0 || height == 0 {
		return violation("desktop of size %dx%d", width, height)
	}
	if checkSize(width, height) != nil {
		if screens != 1 {
			return violation("desktop of size %dx%d, the limit is %dx%d", width, height, MaxWidth, MaxHeight)
		}
		fitted := binary.BigEndian.AppendUint16(nil, uint16(min(width, MaxWidth)))
		fitted = binary.BigEndian.AppendUint16(fitted, uint16(min(height, MaxHeight)))
		copy(c.buf[2:], fitted)           // the framebuffer
		copy(c.buf[12:], make([]byte, 4)) // the screen's position
		copy(c.buf[16:], fitted)          // the screen's size
	}
	return c.pass(true)
}

func (c *clientStream) qemu() error {
	if err := c.more(1); err != nil {
		return err
	}
	if c.buf[1] != 0 { // 1 is audio, which nobody offers
		return violation("unknown QEMU message %d from the client", c.buf[1])
	}
	return c.fixed(10, true)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
