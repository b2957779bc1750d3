package rfb_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/desktop/rfb"
)

func desktopSize(w, h uint16, screens ...[]byte) []byte {
	b := []byte{251, 0}
	b = binary.BigEndian.AppendUint16(b, w)
	b = binary.BigEndian.AppendUint16(b, h)
	return append(append(b, byte(len(screens)), 0), bytes.Join(screens, nil)...)
}

func screen(x, y, w, h uint16) []byte {
	b := []byte{0, 0, 0, 7}
	for _, v := range []uint16{x, y, w, h} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return append(b, 0, 0, 0, 1)
}

func cutText(length int32, n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{6, 0, 0, 0}, uint32(length)), make([]byte, n)...)
}

func encodings(list ...int32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{2, 0}, uint16(len(list)))
	for _, e := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(e))
	}
	return b
}

func TestFilterPassesAndRefuses(t *testing.T) {
	key := []byte{4, 1, 0, 0, 0, 0, 0, 'a'}
	pointer := []byte{5, 0x81, 0, 1, 0, 2}
	request := []byte{3, 1, 0, 0, 0, 0, 2, 0, 1, 0}
	format := append([]byte{0}, make([]byte, 19)...)
	continuous := append([]byte{150}, make([]byte, 9)...)
	fence := append([]byte{248, 0, 0, 0, 0, 0, 0, 1, 3}, 'a', 'b', 'c')
	xvp := []byte{250, 0, 1, 2}
	qemu := append([]byte{255, 0}, make([]byte, 10)...)
	layout := desktopSize(1280, 800, screen(0, 0, 1280, 800))
	watch := bytes.Join([][]byte{format, encodings(0, 7), request, continuous, fence}, nil)
	act := bytes.Join([][]byte{key, pointer, qemu, cutText(3, 3), cutText(-8, 8), layout}, nil)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, test := range map[string]struct {
		in, out  []byte
		viewOnly bool
		err      string
	}{
		"everything":            {in: join(watch, act, key), out: join(watch, act, key)},
		"view only":             {in: join(act, watch, act), out: watch, viewOnly: true},
		"view only, still sane": {in: desktopSize(1, 1), viewOnly: true, err: "0 screens"},
		"nothing":               {},
		"no reboot":             {in: join(xvp, key), out: key},
		"extended mouse":        {in: encodings(0, -316, 7), out: encodings(0, 7)},
		"largest":               {in: desktopSize(7680, 4320, screen(0, 0, 7680, 4320)), out: desktopSize(7680, 4320, screen(0, 0, 7680, 4320))},
		"portrait":              {in: desktopSize(4320, 7680, screen(0, 0, 4320, 7680)), out: desktopSize(4320, 7680, screen(0, 0, 4320, 7680))},
		"too large":             {in: desktopSize(16384, 16384, screen(0, 0, 16384, 16384)), out: desktopSize(7680, 4320, screen(0, 0, 7680, 4320))},
		"too large, moved":      {in: desktopSize(9000, 10, screen(5, 5, 9000, 10)), out: desktopSize(7680, 10, screen(0, 0, 7680, 10))},
		"two too large":         {in: desktopSize(16384, 10, screen(0, 0, 1, 1), screen(1, 0, 1, 1)), err: "desktop of size 16384x10"},
		"no size":               {in: desktopSize(0, 10, screen(0, 0, 1, 1)), err: "desktop of size 0x10"},
		"many screens":          {in: desktopSize(10, 10, make([]byte, 16*17)), err: "0 bytes"},
		"large paste":           {in: join(cutText(2<<20, 2<<20), key), out: key},
		"large extended paste":  {in: join(cutText(-2<<20, 2<<20), key), out: key},
		"small extended paste":  {in: cutText(-3, 3), err: "extended clipboard of 3 bytes"},
		"most negative length":  {in: cutText(-1<<31, 4), err: "EOF"},
		"long paste that ends":  {in: cutText(1<<30, 4), err: "EOF"},
		"many encodings":        {in: []byte{2, 0, 255, 255}, err: "65535 encodings"},
		"long fence":            {in: []byte{248, 0, 0, 0, 0, 0, 0, 1, 65}, err: "fence of 65"},
		"QEMU audio":            {in: []byte{255, 1, 0, 0}, err: "unknown QEMU message 1"},
		"unknown":               {in: join(key, []byte{99}), out: nil, err: "unknown message 99"},
		"ends in the middle":    {in: key[:3], err: "EOF"},
	} {
		if name == "many screens" { // the helper counts one screen; say 17
			test.in[6], test.err = 17, "17 screens"
		}
		var out bytes.Buffer
		err := rfb.Filter{ViewOnly: test.viewOnly}.Copy(&out, bytes.NewReader(test.in))
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: error %v, want %q", name, err, test.err)
			continue
		}
		if test.err == "" && !bytes.Equal(out.Bytes(), test.out) {
			t.Errorf("%s: passed %d bytes %x, want %d", name, out.Len(), out.Bytes()[:min(out.Len(), 64)], len(test.out))
		}
	}
}

// A view-only session passes nothing that acts, whatever is sent.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{4, 1, 0, 0, 0, 0, 0, 'a', 3, 1, 0, 0, 0, 0, 2, 0, 1, 0}, true)
	f.Add(encodings(0, -316, 7), false)
	f.Add(cutText(-8, 8), false)
	f.Add(desktopSize(16384, 16384, screen(0, 0, 16384, 16384)), false)
	f.Fuzz(func(t *testing.T, data []byte, viewOnly bool) {
		var out bytes.Buffer
		_ = rfb.Filter{ViewOnly: viewOnly}.Copy(&out, io.MultiReader(bytes.NewReader(data)))
		if out.Len() > len(data) {
			t.Fatalf("%d bytes became %d", len(data), out.Len())
		}
		// What came out passes a second time unchanged, bar an incomplete
		// message, which is never passed at all.
		var again bytes.Buffer
		if err := (rfb.Filter{ViewOnly: viewOnly}).Copy(&again, bytes.NewReader(out.Bytes())); err != nil {
			t.Fatalf("refused its own output: %v", err)
		}
		if !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Fatal("its own output changes")
		}
	})
}
