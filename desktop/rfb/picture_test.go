package rfb_test

import (
	"bytes"
	"encoding/binary"
	"image/color"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/desktop/rfb"
)

func rectangle(x, y, w, h uint16, encoding int32, body ...byte) []byte {
	var b []byte
	for _, v := range []uint16{x, y, w, h} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(encoding)), body...)
}

func update(rectangles ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(rectangles)))
	return append(b, bytes.Join(rectangles, nil)...)
}

func TestPictureIsPutTogether(t *testing.T) {
	server := says(
		update(rectangle(0, 0, 3, 2, -308, append([]byte{1, 0, 0, 0}, make([]byte, 16)...)...)), // the layout alone, first
		[]byte{2}, // bell
		[]byte{3, 0, 0, 0, 0, 0, 0, 2, 'h', 'i'},
		[]byte{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0},
		update(rectangle(0, 0, 3, 1, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0)),
		update(rectangle(0, 0, 2, 1, -223)), // it changed its mind
		update(rectangle(0, 0, 1, 1, 0, 10, 20, 30, 0), rectangle(0, 0, 0, 0, 0)),
		update(rectangle(1, 0, 1, 1, 0, 40, 50, 60, 77)),
	)
	img, err := rfb.Picture(server, rfb.ServerInit{Width: 9, Height: 9}, rfb.MaxPixels)
	if err != nil {
		t.Fatal(err)
	}
	if img.Rect.Dx() != 2 || img.Rect.Dy() != 1 {
		t.Fatalf("picture is %v", img.Rect)
	}
	for x, want := range []color.RGBA{{10, 20, 30, 255}, {40, 50, 60, 255}} {
		if got := img.RGBAAt(x, 0); got != want {
			t.Errorf("pixel %d is %v, want %v", x, got, want)
		}
	}
	// SetPixelFormat, SetEncodings, one full request, then incremental ones:
	// a second full one would be answered with the layout for ever.
	sent := server.written.Bytes()[20+4+12:]
	for i := 0; len(sent) > 0; i++ {
		if incremental := sent[1] == 1; incremental != (i > 0) {
			t.Errorf("request %d is incremental: %v", i, incremental)
		}
		sent = sent[10:]
	}
	if n := rfb.Colours(img, 4096); n != 2 {
		t.Errorf("%d colours", n)
	}
	if n := rfb.Colours(img, 1); n != 1 {
		t.Errorf("%d colours of at most 1", n)
	}
}

func TestPictureBoundsWhatAServerSends(t *testing.T) {
	var resizing []byte
	for i := range uint16(20) {
		resizing = append(resizing, update(rectangle(0, 0, 10+i, 10, -223))...)
	}
	for name, test := range map[string]struct {
		sent []byte
		want string
	}{
		"outside":          {update(rectangle(5, 5, 6, 6, 0)), "outside of the framebuffer"},
		"overflows":        {update(rectangle(65535, 65535, 65535, 65535, 0)), "outside of the framebuffer"},
		"grows too large":  {update(rectangle(0, 0, 65535, 65535, -223)), "framebuffer of 65535x65535"},
		"keeps resizing":   {resizing, "changes of size"},
		"other encoding":   {update(rectangle(0, 0, 1, 1, 7)), "encoding 7"},
		"unknown message":  {[]byte{200}, "unknown message 200"},
		"endless cut text": {[]byte{3, 0, 0, 0, 255, 255, 255, 255}, "clipboard of"},
		"ends":             {nil, "EOF"},
		"ends in a row":    {update(rectangle(0, 0, 10, 10, 0, 1, 2, 3)), "EOF"},
	} {
		if _, err := rfb.Picture(says(test.sent), rfb.ServerInit{Width: 10, Height: 10}, rfb.MaxPixels); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := rfb.Picture(says(), rfb.ServerInit{Width: 10, Height: 11}, 109); err == nil {
		t.Error("a picture beyond the caller's limit was taken")
	}
	if _, err := rfb.Picture(says(), rfb.ServerInit{Width: 60000, Height: 60000}, rfb.MaxPixels); err == nil {
		t.Error("a framebuffer of 60000x60000 was begun")
	}
}

func FuzzPicture(f *testing.F) {
	f.Add(update(rectangle(0, 0, 2, 2, 0, make([]byte, 16)...)))
	f.Add(update(rectangle(0, 0, 3, 2, -308, append([]byte{1, 0, 0, 0}, make([]byte, 16)...)...)))
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 2, 'h', 'i', 2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := rfb.Picture(says(data), rfb.ServerInit{Width: 2, Height: 2}, rfb.MaxPixels)
		if (img == nil) == (err == nil) {
			t.Errorf("picture %v, error %v", img != nil, err)
		}
	})
}
