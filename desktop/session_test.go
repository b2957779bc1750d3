package desktop_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/desktop"
	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// newSeveral prepares desktops whose sockets this process may listen on, each
// served by its function after the login.
func newSeveral(t *testing.T, width, height int, served map[string]func(net.Conn)) *desktop.Desktops {
	t.Helper()
	testutil.Require(t, testutil.Root) // a tmpfs is mounted
	dir := filepath.Join(shortDir(t), "desktop")
	d := desktop.New(desktop.Config{
		Dir: dir, Log: slog.New(slog.DiscardHandler),
		InEnvironment: func(pid int, _ string) (bool, error) { return pid == os.Getpid(), nil },
	})
	for id, serve := range served {
		if _, _, err := d.Prepare(t.Context(), id, runtime.Desktop{Width: 100, Height: 50, Depth: 24}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Remove(context.WithoutCancel(t.Context()), id); err != nil {
				t.Error(err)
			}
		})
		listener, err := net.Listen("unix", filepath.Join(dir, id, "rfb", "rfb.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					login(conn, width, height)
					serve(conn)
				}()
			}
		}()
	}
	return d
}

func login(conn net.Conn, width, height int) {
	in := make([]byte, 64)
	_, _ = conn.Write([]byte("RFB 003.008\n\x01\x02"))
	_, _ = io.ReadFull(conn, in[:13])
	_, _ = conn.Write(make([]byte, 16))
	_, _ = io.ReadFull(conn, in[:16])
	_, _ = conn.Write(make([]byte, 4))
	_, _ = io.ReadFull(conn, in[:1])
	_, _ = conn.Write(rfb.ServerInit{Width: width, Height: height, Name: "test"}.Append(nil))
}

// frame is one of noise, as a server sends it.
func frame(width, height int) []byte {
	b := []byte{0, 0, 0, 1, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(width))
	b = binary.BigEndian.AppendUint16(b, uint16(height))
	b = binary.BigEndian.AppendUint32(b, 0)
	noise := rand.NewChaCha8([32]byte{})
	for range width * height {
		b = binary.BigEndian.AppendUint32(b, uint32(noise.Uint64()))
	}
	return b
}

// A picture takes memory until it is encoded, which takes longer than to
// receive it.
func TestFewLargePicturesAreInMemory(t *testing.T) {
	const width, height, callers = 2600, 1700, 8 // larger than small ones
	var asked, returned, most atomic.Int64
	served, noise := make(map[string]func(net.Conn)), frame(width, height)
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		served[id] = func(conn net.Conn) {
			_, _ = io.ReadFull(conn, make([]byte, 20)) // whoever sends it has the picture's memory
			now := asked.Add(1) - returned.Load()
			for most.Load() < now {
				most.Store(now)
			}
			_, _ = conn.Write(noise)
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	d := newSeveral(t, width, height, served)
	var all sync.WaitGroup
	for id := range served {
		all.Go(func() {
			if _, _, _, err := d.ScreenshotPNG(t.Context(), id); err != nil {
				t.Error(err)
			}
			returned.Add(1)
		})
	}
	all.Wait()
	// One that was done a moment ago may not have been counted as such.
	if most.Load() > callers/2 {
		t.Errorf("%d pictures of %d were in memory", most.Load(), callers)
	}
}

// Desktops that let nobody in, or show a picture that never ends, keep nobody
// from seeing another one.
func TestSlowDesktopsHoldUpOnlyThemselves(t *testing.T) {
	stall := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	d := newSeveral(t, 100, 50, map[string]func(net.Conn){
		"slow-1": stall, "slow-2": stall, "slow-3": stall,
		"fine": func(conn net.Conn) {
			_, _ = conn.Write(frame(100, 50))
			stall(conn)
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	defer slow.Wait()
	defer cancel()
	for _, id := range []string{"slow-1", "slow-1", "slow-1", "slow-1", "slow-2", "slow-2", "slow-2", "slow-3", "slow-3", "slow-3"} {
		slow.Go(func() { _ = d.AwaitDrawn(ctx, id) }) // until ctx ends
	}
	time.Sleep(300 * time.Millisecond) // they ask first
	// A slow picture ends after 10 s; before, this one waited for several.
	short, done := context.WithTimeout(t.Context(), 8*time.Second)
	defer done()
	ready, err := d.Readiness(short, "fine")
	if err != nil || ready.Level != desktop.Drawn {
		t.Errorf("beside slow ones: %+v, %v", ready, err)
	}
}

// Pictures of others are told from a desktop that has not drawn, and hold up nobody
// who asks only whether it can be connected to.
func TestNoRoomForAPicture(t *testing.T) {
	stall := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	served := map[string]func(net.Conn){"mine": stall}
	for i := range 8 {
		served[fmt.Sprintf("slow-%d", i)] = stall
	}
	d := newSeveral(t, 100, 50, served)
	short, done := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer done()
	if err := d.AwaitDrawn(short, "mine"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, runtime.ErrUnseen) {
		t.Errorf("with room for it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	defer slow.Wait()
	defer cancel()
	for id := range served {
		if id != "mine" {
			slow.Go(func() { _ = d.AwaitDrawn(ctx, id) }) // until ctx ends
		}
	}
	time.Sleep(300 * time.Millisecond) // they ask first
	short, done = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer done()
	if err := d.AwaitDrawn(short, "mine"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, runtime.ErrUnseen) {
		t.Errorf("without room: %v", err)
	}
	if err := d.AwaitConnectable(t.Context(), "mine"); err != nil {
		t.Errorf("connect: %v", err)
	}
}
