package desktop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"net"
	"time"

	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

const (
	loginTimeout   = 5 * time.Second
	pictureTimeout = 10 * time.Second
)

// Connect connects to the desktop of an environment, with the password that
// sees and acts or with the one that only sees, and returns the connection as
// it is after ServerInit. ctx bounds the login only. Errors are DESKTOP_ABSENT,
// DESKTOP_UNAVAILABLE and DESKTOP_SOCKET_REJECTED.
func (d *Desktops) Connect(ctx context.Context, envID string, viewOnly bool) (net.Conn, rfb.ServerInit, error) {
	if err := checkID(envID); err != nil {
		return nil, rfb.ServerInit{}, err
	}
	passwords, err := d.passwords(envID)
	if err != nil {
		return nil, rfb.ServerInit{}, err
	}
	conn, err := d.dialer.Dial(ctx, envID)
	if err != nil {
		return nil, rfb.ServerInit{}, err
	}
	password := passwords.Full
	if viewOnly {
		password = passwords.ViewOnly
	}
	var init rfb.ServerInit
	err = bounded(ctx, conn, loginTimeout, func() (err error) {
		init, err = rfb.Login(conn, password)
		return err
	})
	if err != nil {
		return nil, rfb.ServerInit{}, errors.Join(unavailable(envID, err), conn.Close())
	}
	return conn, init, nil
}

// bounded runs do, which uses conn, for at most timeout and while ctx lasts.
func bounded(ctx context.Context, conn net.Conn, timeout time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0)) // only a closed connection refuses, and that ends do as well
	})
	err := do()
	if !stop() {
		<-done
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// How many pictures are in memory at a time: what is shown is a tenant's
// choice, and so is how fast it comes. A small one takes up to 16 MB, a large
// one 130 MB, as much again as a PNG of noise.
const (
	smallPixels   = 4 << 20
	smallPictures = 8
	largePictures = 2
)

// errWaiting says that the end of ctx came while a picture waited for others.
var errWaiting = errors.New("other pictures were in the way")

// picture takes a picture of the desktop and calls use with it, which must not
// keep it. A desktop that is slow holds up nobody but those who look at it,
// until it has let us in: only then a slot is taken, which is held until use
// is done. errWaiting when ctx ends before.
func (d *Desktops) picture(ctx context.Context, envID string, use func(*image.RGBA) error) error {
	done, err := d.turns.Lock(ctx, envID)
	if err != nil {
		return errors.Join(errWaiting, err)
	}
	defer done()
	// The view-only password will do.
	conn, init, err := d.Connect(ctx, envID, true)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it was only read from
	slots, limit := d.small, smallPixels
	if init.Width*init.Height > smallPixels {
		slots, limit = d.large, rfb.MaxPixels
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return errors.Join(errWaiting, context.Cause(ctx))
	}
	var picture *image.RGBA
	err = bounded(ctx, conn, pictureTimeout, func() (err error) {
		picture, err = rfb.Picture(conn, init, limit)
		return err
	})
	if err != nil {
		return unavailable(envID, fmt.Errorf("take picture: %w", err))
	}
	return use(picture)
}

// ScreenshotPNG takes a picture of the desktop as a PNG, with its size in
// pixels. It does not disturb whoever uses it. Errors as Connect.
func (d *Desktops) ScreenshotPNG(ctx context.Context, envID string) (data []byte, width, height int, err error) {
	var b bytes.Buffer
	err = d.picture(ctx, envID, func(picture *image.RGBA) error {
		width, height = picture.Rect.Dx(), picture.Rect.Dy()
		encoder := png.Encoder{CompressionLevel: png.BestSpeed}
		if err := encoder.Encode(&b, picture); err != nil {
			return fmt.Errorf("encode screenshot of environment %s: %w", envID, err)
		}
		return nil
	})
	if err != nil {
		return nil, 0, 0, err
	}
	return b.Bytes(), width, height, nil
}

// Level is how far a desktop is; each includes those before.
type Level int

// The levels.
const (
	Starting    Level = iota // nothing answers yet
	Connectable              // its server speaks and takes our password
	Drawn                    // a frame with more than DrawnColours colours was seen
)

// A desktop that has drawn shows more than DrawnColours colours: black is one,
// one that is starting shows a few dozen, one that is there a thousand. Colours
// are counted up to MaxColours.
const (
	DrawnColours = 50
	MaxColours   = 4096
)

// Readiness is how far a desktop is.
type Readiness struct {
	Level         Level
	Width, Height int    // pixels; 0 while unknown
	Colours       int    // of the last frame, at most MaxColours
	Detail        string // why it has not drawn; "" when it has
}

// Readiness tells how far a desktop is. That it does not answer is a level,
// not an error; DESKTOP_ABSENT is one, and so is the end of ctx.
func (d *Desktops) Readiness(ctx context.Context, envID string) (Readiness, error) {
	var ready Readiness
	err := d.picture(ctx, envID, func(picture *image.RGBA) error {
		ready = Readiness{
			Level: Drawn, Width: picture.Rect.Dx(), Height: picture.Rect.Dy(),
			Colours: rfb.Colours(picture, MaxColours),
		}
		return nil
	})
	if err != nil {
		return notYet(ctx, err)
	}
	if ready.Colours <= DrawnColours {
		ready.Level = Connectable
		ready.Detail = fmt.Sprintf("its screen shows %d colours; more than %d mean that it has drawn", ready.Colours, DrawnColours)
	}
	return ready, nil
}

// notYet is how far a desktop is that lets nobody in. Other errors are ones.
func notYet(ctx context.Context, err error) (Readiness, error) {
	reason := problem.Of(err).Reason
	if ctx.Err() == nil && (reason == problem.DesktopUnavailable || reason == problem.DesktopSocketBad) {
		return Readiness{Detail: err.Error()}, nil
	}
	return Readiness{}, err
}

// AwaitDrawn blocks until the desktop has drawn or ctx ends; the error then
// says how far it came. It is runtime.ErrUnseen where nothing could be seen of
// it, since others' pictures were in the way.
func (d *Desktops) AwaitDrawn(ctx context.Context, envID string) error {
	return await(ctx, envID, Drawn, func() (Readiness, error) { return d.Readiness(ctx, envID) })
}

// AwaitConnectable blocks until the desktop can be connected to or ctx ends; the
// error then says why it cannot. No picture is taken.
func (d *Desktops) AwaitConnectable(ctx context.Context, envID string) error {
	return await(ctx, envID, Connectable, func() (Readiness, error) {
		conn, init, err := d.Connect(ctx, envID, true)
		if err != nil {
			return notYet(ctx, err)
		}
		return Readiness{Level: Connectable, Width: init.Width, Height: init.Height}, conn.Close()
	})
}

func await(ctx context.Context, envID string, level Level, look func() (Readiness, error)) error {
	const first, longest = 100 * time.Millisecond, time.Second
	last, unseen := "it was not looked at", true
	for wait := first; ; wait = min(wait*3/2, longest) {
		ready, err := look()
		switch {
		case err == nil && ready.Level >= level:
			return nil
		case err == nil:
			last, unseen = ready.Detail, false
		case ctx.Err() == nil:
			return err
		}
		select {
		case <-ctx.Done():
			end := fmt.Errorf("await desktop of environment %s (%s): %w", envID, last, context.Cause(ctx))
			if unseen && errors.Is(err, errWaiting) {
				end = errors.Join(end, runtime.ErrUnseen)
			}
			return end
		case <-time.After(wait):
		}
	}
}
