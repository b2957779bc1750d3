// Package rfb is as much of the RFB protocol (RFC 6143, version 3.8) as a
// desktop needs: the VNC authentication of a client, the handshake of a server
// that asks nothing, a picture of the framebuffer, the password file, and a
// filter of what clients send. Both sides are strangers: a tenant runs the
// server and a browser is the client, so every length is bounded before
// anything is allocated.
package rfb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The largest framebuffer that is accepted from a server or asked for by a
// client: 8K UHD. Each side alone may be at most MaxSide.
const (
	MaxWidth  = 7680
	MaxHeight = 4320
	MaxPixels = MaxWidth * MaxHeight
	MaxSide   = MaxWidth
)

const (
	maxName   = 4096 // bytes of a desktop's name
	maxReason = 1024 // bytes of a failure's reason
)

// ErrAuthentication says that the server refused the password.
var ErrAuthentication = errors.New("the VNC server refused the password")

// ProtocolError is what a peer sent against the protocol or beyond a limit.
type ProtocolError struct{ What string }

// Error says what was wrong.
func (e *ProtocolError) Error() string { return "rfb: " + e.What }

func violation(format string, args ...any) error {
	return &ProtocolError{What: fmt.Sprintf(format, args...)}
}

// ServerInit is what a server tells about its desktop (RFC 6143, 7.3.2).
type ServerInit struct {
	Width, Height int // pixels
	PixelFormat   PixelFormat
	Name          string
}

// PixelFormat is the 16 bytes of RFC 6143, 7.4, with the padding.
type PixelFormat [16]byte

// checkSize refuses a framebuffer beyond the limits.
func checkSize(width, height int) error {
	if width < 1 || height < 1 || width > MaxSide || height > MaxSide || width*height > MaxPixels {
		return violation("framebuffer of %dx%d, the limit is %dx%d", width, height, MaxWidth, MaxHeight)
	}
	return nil
}

// ReadServerInit reads and checks a ServerInit.
func ReadServerInit(r io.Reader) (ServerInit, error) {
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return ServerInit{}, fmt.Errorf("read ServerInit: %w", err)
	}
	init := ServerInit{
		Width:       int(binary.BigEndian.Uint16(head[0:])),
		Height:      int(binary.BigEndian.Uint16(head[2:])),
		PixelFormat: PixelFormat(head[4:20]),
	}
	if err := checkSize(init.Width, init.Height); err != nil {
		return ServerInit{}, err
	}
	length := binary.BigEndian.Uint32(head[20:])
	if length > maxName {
		return ServerInit{}, violation("desktop name of %d bytes, the limit is %d", length, maxName)
	}
	name := make([]byte, length)
	if _, err := io.ReadFull(r, name); err != nil {
		return ServerInit{}, fmt.Errorf("read desktop name: %w", err)
	}
	init.Name = string(name)
	return init, nil
}

// Append appends the wire form of init.
func (init ServerInit) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(init.Width))
	b = binary.BigEndian.AppendUint16(b, uint16(init.Height))
	b = append(b, init.PixelFormat[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(init.Name)))
	return append(b, init.Name...)
}
