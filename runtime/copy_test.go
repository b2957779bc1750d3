package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// copyHost is a host with one environment, "desk", that runs.
func copyHost(t *testing.T) *daemon {
	t.Helper()
	h := newHost(t)
	h.engine.Dir = t.TempDir()
	d := start(t, h)
	if env, op := d.create(plain("desk")); env.State != runtime.Running {
		t.Fatalf("create: %+v", op.Problem)
	}
	return d
}

func at(path string) runtime.Place { return runtime.Place{Environment: "desk", Path: path} }

// mine is an upload that anybody may make.
func mine(path string) runtime.UploadRequest {
	return runtime.UploadRequest{Place: at(path), Owner: strconv.Itoa(os.Getuid()) + ":" + strconv.Itoa(os.Getgid())}
}

// whole gives data in small parts.
func whole(data []byte) func(context.Context) ([]byte, error) {
	reader := bytes.NewReader(data)
	return func(context.Context) ([]byte, error) {
		part := make([]byte, 700)
		n, err := reader.Read(part)
		return part[:n], err
	}
}

// endless never gives anything.
func endless(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (d *daemon) download(place runtime.Place) (map[string]string, error) {
	d.t.Helper()
	var data bytes.Buffer
	infos := 0
	_, err := d.Download(d.t.Context(), place, false, func(part runtime.DownloadPart) error {
		if part.Info != nil {
			infos++
		}
		data.Write(part.Data)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if infos != 1 {
		d.t.Errorf("%d infos came", infos)
	}
	return runtimetest.Unarchive(d.t, &data), nil
}

func copyRefused(t *testing.T, what string, err error, reason problem.Reason) {
	t.Helper()
	if p := problem.Of(err); p == nil || p.Reason != reason || p.Hint == "" {
		t.Errorf("%s: %v, want %s with a hint", what, err, reason)
	}
}

func TestCopy(t *testing.T) {
	d := copyHost(t)
	big := strings.Repeat("0123456789", 100_000)
	for _, stopped := range []bool{false, true} {
		if stopped {
			d.act(d.Stop, "desk")
		}
		done, err := d.Upload(t.Context(), mine("/home/app"), whole(runtimetest.Archive(t, map[string]string{"new/a": big})))
		if err != nil || done.Entries != 1 || done.Bytes != int64(len(big)) {
			t.Errorf("stopped %t: upload: %+v %v", stopped, done, err)
		}
		if files, err := d.download(at("home")); err != nil || files["home/app/new/a"] != big {
			t.Errorf("stopped %t: download: %d files, %v", stopped, len(files), err)
		}
		if info, err := d.StatFile(t.Context(), at("/home/app/new/a"), false); err != nil || info.Size != int64(len(big)) {
			t.Errorf("stopped %t: stat: %+v %v", stopped, info, err)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	d := copyHost(t)
	archive := runtimetest.Archive(t, map[string]string{"a": "a"})
	both := mine("/")
	both.KeepOwnership = true
	unknown := mine("/")
	unknown.Owner = "nobody-here"
	absent := mine("/")
	absent.Environment = "absent"
	for reason, req := range map[problem.Reason]runtime.UploadRequest{
		problem.FieldInvalid: both, problem.UserNotFound: unknown, problem.EnvNotFound: absent, problem.FileNotFound: mine("/nothing"),
		problem.FileConflict: mine("/etc/passwd"),
	} {
		_, err := d.Upload(t.Context(), req, whole(archive))
		copyRefused(t, string(reason), err, reason)
	}
	_, err := d.download(at("/nothing"))
	copyRefused(t, "download of nothing", err, problem.FileNotFound)
	_, err = d.StatFile(t.Context(), at("/nothing"), false)
	copyRefused(t, "stat of nothing", err, problem.FileNotFound)
	gone := errors.New("the caller left")
	if _, err := d.Upload(t.Context(), mine("/"), func(context.Context) ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("the caller's end: %v", err)
	}
	if _, err := d.Download(t.Context(), at("/"), false, func(runtime.DownloadPart) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("the receiver's end: %v", err)
	}

	d.host.faults.FailCall("Engine.Create", 1, errors.New("broken"))
	d.create(plain("failed"))
	_, err = d.StatFile(t.Context(), runtime.Place{Environment: "failed", Path: "/"}, false)
	copyRefused(t, "one that was never made", err, problem.EnvNotStartable)

	d.act(d.Stop, "desk")
	if err := os.Mkdir(d.host.engine.Dir+"/"+d.id("desk")+"/data", 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = d.StatFile(t.Context(), at("/data"), false)
	copyRefused(t, "a mount that is not there", err, problem.FileNotAllowed)
	reached, release := blockCall(t, d.host, "Engine.Start")
	_, op, err := d.Start(t.Context(), runtime.ActionRequest{Environment: "desk"})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "start", reached)
	_, err = d.StatFile(t.Context(), at("/"), false)
	copyRefused(t, "one that is being started", err, problem.EnvBusy)
	release()
	d.done(op)
	d.host.engine.Forget() // the store does not know yet that its process has ended
	_, err = d.StatFile(t.Context(), at("/"), false)
	copyRefused(t, "one that has just ended", err, problem.EnvBusy)
}

func (d *daemon) id(name string) string {
	d.t.Helper()
	env, err := d.Get(d.t.Context(), "", name)
	if err != nil {
		d.t.Fatal(err)
	}
	return env.ID
}

// What goes on in the environment does not wait for callers that do not move,
// and tells them.
func TestCopyIsInterrupted(t *testing.T) {
	d := copyHost(t)
	if err := os.WriteFile(d.host.engine.Dir+"/"+d.id("desk")+"/home/app/large", make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{"stop", "start", "delete"} {
		uploaded, downloaded := make(chan error, 1), make(chan error, 1)
		moving, stuck := make(chan struct{}, 1), make(chan struct{})
		go func() {
			_, err := d.Upload(t.Context(), mine("/home/app"), func(ctx context.Context) ([]byte, error) { moving <- struct{}{}; return endless(ctx) })
			uploaded <- err
		}()
		<-moving
		go func() {
			_, err := d.Download(t.Context(), at("/home"), false, func(part runtime.DownloadPart) error {
				if part.Info != nil {
					close(stuck)
					<-moving
				}
				return nil
			})
			downloaded <- err
		}()
		<-stuck
		switch action {
		case "stop":
			d.act(d.Stop, "desk")
		case "start":
			d.act(d.Start, "desk")
		case "delete":
			d.act(d.Delete, "desk")
		}
		copyRefused(t, action+": upload", <-uploaded, problem.CopyInterrupted)
		close(moving)
		copyRefused(t, action+": download", <-downloaded, problem.CopyInterrupted)
	}
	d.holdsNothing()
}

func TestCopyLimit(t *testing.T) {
	d := copyHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, runtime.CopyLimit)
	moving := make(chan struct{}, runtime.CopyLimit)
	for range runtime.CopyLimit {
		go func() {
			_, err := d.Upload(ctx, mine("/"), func(ctx context.Context) ([]byte, error) { moving <- struct{}{}; return endless(ctx) })
			ended <- err
		}()
	}
	for range runtime.CopyLimit {
		<-moving
	}
	_, err := d.download(at("/etc"))
	copyRefused(t, "one more", err, problem.CopyLimit)
	if _, err := d.StatFile(t.Context(), at("/etc"), false); err != nil {
		t.Errorf("stat: %v", err)
	}
	cancel()
	for range runtime.CopyLimit {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	if _, err := d.download(at("/etc")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// An upload that ends early keeps what was there.
func TestCopyThatBreaksOff(t *testing.T) {
	d := copyHost(t)
	archive := runtimetest.Archive(t, map[string]string{"passwd": strings.Repeat("x", 100_000)})
	before, err := d.download(at("/etc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []error{io.EOF, context.Canceled, errors.New("broken")} {
		sent := false
		_, err := d.Upload(t.Context(), mine("/etc"), func(context.Context) ([]byte, error) {
			if sent {
				return nil, end
			}
			sent = true
			return archive[:50_000], nil
		})
		if err == nil || !errors.Is(end, io.EOF) && !errors.Is(err, end) {
			t.Errorf("%v: %v", end, err)
		}
	}
	after, err := d.download(at("/etc"))
	if err != nil || len(after) != len(before) || after["etc/passwd"] != before["etc/passwd"] {
		t.Errorf("there is %d files, %v", len(after), err)
	}
}
