package rfb_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/desktop/rfb"
)

// stream is a peer that said everything beforehand and swallows the answers.
type stream struct {
	io.Reader
	written bytes.Buffer
}

func (s *stream) Write(b []byte) (int, error) { return s.written.Write(b) }

func says(parts ...any) *stream {
	var b bytes.Buffer
	for _, part := range parts {
		switch p := part.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		default:
			if err := binary.Write(&b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return &stream{Reader: &b}
}

func TestPasswordFileIsWhatVNCServersRead(t *testing.T) {
	file, err := rfb.Passwords{Full: "secret12", ViewOnly: "look"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(file[:8]); got != "24b5ae4ce15503c6" { // what vncpasswd -f writes
		t.Errorf("first half is %s", got)
	}
	back, err := rfb.DecodePasswords(file)
	if err != nil || back != (rfb.Passwords{Full: "secret12", ViewOnly: "look"}) {
		t.Errorf("decoded %+v, %v", back, err)
	}
	for _, bad := range []rfb.Passwords{{}, {Full: "a"}, {Full: "123456789", ViewOnly: "a"}, {Full: "a\x00", ViewOnly: "a"}} {
		if _, err := bad.Encode(); err == nil {
			t.Errorf("%+v was encoded", bad)
		}
	}
	if _, err := rfb.DecodePasswords(file[:8]); err == nil {
		t.Error("half a file was decoded")
	}
}

func TestLoginAndWelcomeSpeakToEachOther(t *testing.T) {
	want := rfb.ServerInit{Width: 1920, Height: 1080, PixelFormat: rfb.PixelFormat{32, 24}, Name: "desk"}
	ours, theirs := net.Pipe()
	defer ours.Close()
	failed := make(chan error, 1)
	go func() {
		defer theirs.Close()
		failed <- rfb.Welcome(theirs, want)
	}()
	// Welcome offers no VNC authentication, which Login must refuse.
	if _, err := rfb.Login(ours, "secret12"); err == nil || !strings.Contains(err.Error(), "not VNC authentication") {
		t.Errorf("login without authentication: %v", err)
	}
	ours.Close()
	if err := <-failed; err == nil {
		t.Error("welcome succeeded without a client")
	}

	client := says("RFB 003.008\n", []byte{1, 0})
	if err := rfb.Welcome(client, want); err != nil {
		t.Fatal(err)
	}
	got := client.written.Bytes()
	init, err := rfb.ReadServerInit(bytes.NewReader(got[12+2+4:]))
	if err != nil || init != want {
		t.Errorf("client sees %+v, %v", init, err)
	}
	for name, client := range map[string]*stream{
		"old version":        says("RFB 003.003\n", []byte{1, 0}),
		"other security":     says("RFB 003.008\n", []byte{2, 0}),
		"ends in the middle": says("RFB 003.008\n"),
	} {
		if err := rfb.Welcome(client, want); err == nil {
			t.Errorf("%s: welcome succeeded", name)
		}
	}
}

func TestLoginBoundsWhatAServerSays(t *testing.T) {
	const hello = "RFB 003.008\n"
	challenge := make([]byte, 16)
	format := make([]byte, 16)
	for name, test := range map[string]struct {
		server *stream
		want   string // in the error; "" for none
	}{
		"good":            {says(hello, []byte{2, 1, 2}, challenge, uint32(0), uint16(640), uint16(480), format, uint32(2), "ab"), ""},
		"not RFB":         {says("HTTP/1.1 400 Bad Request\r\n"), "begins with"},
		"locked out":      {says("RFB 003.003\n", uint32(0), uint32(26), "Too many security failures"), "Too many security failures"},
		"version 3.3":     {says("RFB 003.003\n", uint32(2)), "version 3.3"},
		"refuses":         {says(hello, []byte{0}, uint32(4), "busy"), "busy"},
		"endless reason":  {says(hello, []byte{0}, uint32(1<<31)), "the limit is 1024"},
		"no VncAuth":      {says(hello, []byte{1, 1}), "not VNC authentication"},
		"wrong password":  {says(hello, []byte{1, 2}, challenge, uint32(1), uint32(4), "nope"), "nope"},
		"too wide":        {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(65535), uint16(1), format, uint32(0)), "framebuffer of 65535x1"},
		"too large":       {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(7680), uint16(7680), format, uint32(0)), "framebuffer of 7680x7680"},
		"empty":           {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(0), uint16(480), format, uint32(0)), "framebuffer of 0x480"},
		"endless name":    {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(640), uint16(480), format, ^uint32(0)), "desktop name of"},
		"ends early":      {says(hello, []byte{1, 2}, challenge[:5]), "challenge"},
		"says nothing":    {says(), "read version"},
		"half a result":   {says(hello, []byte{1, 2}, challenge, []byte{0}), "security result"},
		"half a name":     {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(640), uint16(480), format, uint32(9), "a"), "desktop name"},
		"half ServerInit": {says(hello, []byte{1, 2}, challenge, uint32(0), uint16(640)), "ServerInit"},
	} {
		_, err := rfb.Login(test.server, "secret12")
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if name == "wrong password" && !errors.Is(err, rfb.ErrAuthentication) {
			t.Errorf("%s is not ErrAuthentication: %v", name, err)
		}
	}
}

func FuzzLogin(f *testing.F) {
	f.Add([]byte("RFB 003.008\n\x01\x020123456789abcdef\x00\x00\x00\x00\x02\x80\x01\xe00123456789abcdef\x00\x00\x00\x01a"))
	f.Add([]byte("RFB 003.003\n\x00\x00\x00\x00\x00\x00\x00\x01a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		init, err := rfb.Login(&stream{Reader: bytes.NewReader(data)}, "secret12")
		if err == nil && (init.Width < 1 || init.Height < 1 || init.Width*init.Height > rfb.MaxPixels) {
			t.Errorf("accepted %+v", init)
		}
	})
}
