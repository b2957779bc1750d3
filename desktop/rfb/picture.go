package rfb

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"image"
	"io"
)

const (
	msgFramebufferUpdate  = 0
	msgSetColourMap       = 1
	msgBell               = 2
	msgServerCutText      = 3
	encodingRaw           = 0
	encodingDesktopSize   = -223
	encodingExtendedSize  = -308
	maxServerCutText      = 16 << 20 // bytes, read and dropped
	maxResizes            = 8        // of one picture
	clientSetPixelFormat  = 0
	clientSetEncodings    = 2
	clientUpdateRequest   = 3
	clientKeyEvent        = 4
	clientPointerEvent    = 5
	clientCutText         = 6
	clientContinuous      = 150
	clientFence           = 248
	clientXVP             = 250
	clientSetDesktopSize  = 251
	clientQEMU            = 255
	encodingExtendedMouse = -316
)

// Picture takes a whole picture of the framebuffer of a server that has
// answered Login with init. It asks for raw pixels, so what it allocates is
// decided by the checked size alone; one of more than maxPixels, if it gets so
// large meanwhile, is refused. The caller bounds it in time.
func Picture(rw io.ReadWriter, init ServerInit, maxPixels int) (*image.RGBA, error) {
	p := &picture{r: bufio.NewReaderSize(rw, 1<<16), w: rw, maxPixels: maxPixels}
	if err := p.resize(init.Width, init.Height); err != nil {
		return nil, err
	}
	if err := p.setup(); err != nil {
		return nil, err
	}
	if err := p.request(false); err != nil {
		return nil, err
	}
	for {
		updated, err := p.message()
		if err != nil {
			return nil, err
		}
		if p.missing == 0 {
			return p.img, nil
		}
		// TigerVNC answers the first request with the screen layout alone. A
		// second full request would get the same answer again, for ever.
		if updated {
			if err := p.request(true); err != nil {
				return nil, err
			}
		}
	}
}

type picture struct {
	r       *bufio.Reader
	w       io.Writer
	img     *image.RGBA // alpha 0: not received yet
	missing int         // pixels
	resizes int
	line    []byte // of the present rectangle, reused

	maxPixels int
}

func (p *picture) resize(width, height int) error {
	if err := checkSize(width, height); err != nil {
		return err
	}
	if width*height > p.maxPixels {
		return violation("framebuffer of %dx%d while a picture of %d pixels was taken", width, height, p.maxPixels)
	}
	if p.img != nil && p.img.Rect.Dx() == width && p.img.Rect.Dy() == height {
		return nil
	}
	if p.resizes++; p.resizes > maxResizes {
		return violation("more than %d changes of size within one picture", maxResizes)
	}
	p.img = image.NewRGBA(image.Rect(0, 0, width, height))
	p.missing = width * height
	return nil
}

// setup asks for pixels whose four bytes are red, green, blue and nothing.
func (p *picture) setup() error {
	b := []byte{clientSetPixelFormat, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0}
	encodings := []int32{encodingRaw, encodingDesktopSize, encodingExtendedSize}
	b = append(b, clientSetEncodings, 0, 0, byte(len(encodings)))
	for _, encoding := range encodings {
		b = binary.BigEndian.AppendUint32(b, uint32(encoding))
	}
	if _, err := p.w.Write(b); err != nil {
		return fmt.Errorf("set pixel format and encodings: %w", err)
	}
	return nil
}

func (p *picture) request(incremental bool) error {
	b := []byte{clientUpdateRequest, 0, 0, 0, 0, 0}
	if incremental {
		b[1] = 1
	}
	b = binary.BigEndian.AppendUint16(b, uint16(p.img.Rect.Dx()))
	b = binary.BigEndian.AppendUint16(b, uint16(p.img.Rect.Dy()))
	if _, err := p.w.Write(b); err != nil {
		return fmt.Errorf("request framebuffer: %w", err)
	}
	return nil
}

// message reads one message; updated says that it answered a request.
func (p *picture) message() (updated bool, err error) {
	kind, err := p.r.ReadByte()
	if err != nil {
		return false, fmt.Errorf("read message: %w", err)
	}
	switch kind {
	case msgFramebufferUpdate:
		return true, p.update()
	case msgBell:
		return false, nil
	case msgSetColourMap:
		var head [5]byte
		if err := p.read(head[:]); err != nil {
			return false, err
		}
		return false, p.skip(6 * int(binary.BigEndian.Uint16(head[3:])))
	case msgServerCutText:
		var head [7]byte
		if err := p.read(head[:]); err != nil {
			return false, err
		}
		length := binary.BigEndian.Uint32(head[3:])
		if length > maxServerCutText {
			return false, violation("clipboard of %d bytes, the limit is %d", length, maxServerCutText)
		}
		return false, p.skip(int(length))
	default:
		return false, violation("unknown message %d from the server", kind)
	}
}

func (p *picture) update() error {
	var head [3]byte
	if err := p.read(head[:]); err != nil {
		return err
	}
	for range binary.BigEndian.Uint16(head[1:]) {
		if err := p.rectangle(); err != nil {
			return err
		}
	}
	return nil
}

func (p *picture) rectangle() error {
	var head [12]byte
	if err := p.read(head[:]); err != nil {
		return err
	}
	x, y := int(binary.BigEndian.Uint16(head[0:])), int(binary.BigEndian.Uint16(head[2:]))
	width, height := int(binary.BigEndian.Uint16(head[4:])), int(binary.BigEndian.Uint16(head[6:]))
	switch encoding := int32(binary.BigEndian.Uint32(head[8:])); encoding {
	case encodingRaw:
		return p.raw(x, y, width, height)
	case encodingDesktopSize:
		return p.resize(width, height)
	case encodingExtendedSize:
		var screens [4]byte
		if err := p.read(screens[:]); err != nil {
			return err
		}
		if err := p.skip(16 * int(screens[0])); err != nil {
			return err
		}
		return p.resize(width, height)
	default:
		return violation("encoding %d, which was not asked for", encoding)
	}
}

func (p *picture) raw(x, y, width, height int) error {
	if !image.Rect(x, y, x+width, y+height).In(p.img.Rect) {
		return violation("rectangle %dx%d at %d,%d outside of the framebuffer %v", width, height, x, y, p.img.Rect.Max)
	}
	if width == 0 {
		return nil
	}
	if cap(p.line) < 4*width {
		p.line = make([]byte, 4*width)
	}
	line := p.line[:4*width]
	for row := y; row < y+height; row++ {
		if err := p.read(line); err != nil {
			return err
		}
		start := p.img.PixOffset(x, row)
		pixels := p.img.Pix[start : start+4*width]
		for i := 0; i < len(line); i += 4 {
			if pixels[i+3] == 0 {
				p.missing--
			}
			line[i+3] = 255
		}
		copy(pixels, line)
	}
	return nil
}

func (p *picture) read(b []byte) error {
	if _, err := io.ReadFull(p.r, b); err != nil {
		return fmt.Errorf("read from the server: %w", err)
	}
	return nil
}

func (p *picture) skip(n int) error {
	if _, err := p.r.Discard(n); err != nil {
		return fmt.Errorf("read from the server: %w", err)
	}
	return nil
}

// Colours counts the colours of a picture, up to limit.
func Colours(img *image.RGBA, limit int) int {
	seen := make(map[[3]byte]struct{}, min(limit, 256))
	var last [3]byte
	for i := 0; i+3 < len(img.Pix); i += 4 {
		colour := [3]byte(img.Pix[i : i+3])
		if colour == last && i > 0 {
			continue
		}
		last = colour
		seen[colour] = struct{}{}
		if len(seen) >= limit {
			return limit
		}
	}
	return len(seen)
}
