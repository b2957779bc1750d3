package build_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/build/buildkit"
	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/images"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ctrImages is an image store without a registry, on a real containerd.
type ctrImages struct {
	t *testing.T
	d *testutil.ContainerdDaemon
}

func (i ctrImages) Image(_ context.Context, ref string) (runtime.Image, error) {
	for line := range strings.Lines(i.d.Ctr(i.t, "images", "ls")) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != ref {
			continue
		}
		var manifest ocispec.Manifest
		var config ocispec.Image
		i.content(fields[2], &manifest)
		i.content(manifest.Config.Digest.String(), &config)
		return runtime.Image{Name: ref, Digest: fields[2], Labels: config.Config.Labels}, nil
	}
	return runtime.Image{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (i ctrImages) content(digest string, into any) {
	i.t.Helper()
	if err := json.Unmarshal([]byte(i.d.Ctr(i.t, "content", "get", digest)), into); err != nil {
		i.t.Fatalf("read %s: %v", digest, err)
	}
}

func (i ctrImages) Tag(ctx context.Context, ref, tag string) (runtime.Image, error) {
	i.d.Ctr(i.t, "images", "tag", "--force", ref, tag)
	return i.Image(ctx, tag)
}

func (ctrImages) Resolve(context.Context, string) error {
	return fmt.Errorf("no route to it: %w", errdefs.ErrUnavailable)
}

func (i ctrImages) Import(ctx context.Context, archive io.Reader, name string) (runtime.Image, error) {
	file, err := os.Create(filepath.Join(i.d.Dir, "import.tar"))
	if err != nil {
		return runtime.Image{}, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := io.Copy(file, archive); err != nil {
		return runtime.Image{}, err
	}
	i.d.Ctr(i.t, "images", "import", "--no-unpack", file.Name())
	return i.Image(ctx, name)
}

// TestDesktopBase builds the real thing from the package mirror and looks at
// its desktop.
func TestDesktopBase(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd2, testutil.BuildKit)
	d := testutil.StartContainerd(t, testutil.Containerd2)
	store := ctrImages{t, d}
	cache := os.Getenv("REMOTEGPU_CACHE") // keeps the bootstrapped base between runs
	if cache == "" {
		cache = t.TempDir()
	}
	b := build.New(build.Config{
		Backend:  buildkit.New(buildkit.Config{Address: testutil.StartBuildKit(t, d.Address, d.Namespace)}),
		Images:   store,
		CacheDir: cache,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	const tag = "docker.io/remotegpu/desktop-base:latest"
	steps := make(map[string]bool)
	result, err := b.Build(ctx, runtime.BuildRequest{Source: images.DesktopBase, Tag: tag}, func(p operation.Progress) {
		if !steps[p.Step] {
			steps[p.Step] = true
			t.Logf("%d/%d %s", p.Done, p.Total, p.Step)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built on %s: %s", result.Base, result.BaseReason)
	if !strings.HasPrefix(result.Base, "docker.io/remotegpu/base:") || !strings.HasPrefix(result.BaseReason, "registry unreachable: ") {
		t.Errorf("base is %s because %s", result.Base, result.BaseReason)
	}
	image, err := store.Image(ctx, tag)
	if err != nil || image.Digest != result.Digest {
		t.Fatalf("image is %+v, %v; want digest %s", image, err, result.Digest)
	}
	if image.Labels["io.remotegpu.desktop"] != "vnc" || image.Labels["io.remotegpu.min-memory"] == "" || image.Labels["io.remotegpu.user"] != "gpu" {
		t.Errorf("labels are %v", image.Labels)
	}

	// Another builder finds the base in the store.
	again := build.New(build.Config{
		Backend: &fakeBackend{leave: func(name string) { d.Ctr(t, "images", "tag", tag, name) }}, Images: store, CacheDir: t.TempDir(),
	})
	if r, err := again.Build(ctx, runtime.BuildRequest{Source: images.DesktopBase, Tag: tag}, nil); err != nil || r.Base != result.Base {
		t.Errorf("second build: %+v, %v", r, err)
	}
	watchDesktop(ctx, t, d, tag)
}

// watchDesktop runs the image as the node does, but without a network, and
// waits until its desktop has drawn; then twice more, after a restart of the
// killed container and after the X server died.
func watchDesktop(ctx context.Context, t *testing.T, d *testutil.ContainerdDaemon, tag string) {
	t.Helper()
	rfbDir, secret := filepath.Join(d.Dir, "rfb"), filepath.Join(d.Dir, "secret")
	passwords := rfb.Passwords{Full: "full-pwd", ViewOnly: "view-pwd"}
	file, err := passwords.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{rfbDir, secret} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(secret, "vncpasswd"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(d.Dir, "desktop.log")
	t.Cleanup(func() {
		if data, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("the container said:\n%s", data)
		}
	})
	d.Ctr(t, "run", "--detach", "--cgroup", d.Cgroup+"/desktop", "--log-uri", "file://"+log,
		"--mount", "type=bind,src="+rfbDir+",dst=/run/remotegpu/rfb,options=rbind:rw",
		"--mount", "type=bind,src="+secret+",dst=/run/remotegpu/secret,options=rbind:ro",
		"--env", "REMOTEGPU_RFB_SOCKET=/run/remotegpu/rfb/rfb.sock", "--env", "VNC_RESOLUTION=1280x720",
		tag, "desktop")
	t.Cleanup(func() { d.Ctr(t, "container", "rm", "desktop") })
	stop := func(signal string) {
		d.Ctr(t, "task", "kill", "--signal", signal, "desktop")
		for deadline := time.Now().Add(time.Minute); !strings.Contains(d.Ctr(t, "task", "ls"), "STOPPED"); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the container does not stop on %s", signal)
			}
		}
		d.Ctr(t, "task", "rm", "desktop")
	}
	socket := filepath.Join(rfbDir, "rfb.sock")
	awaitDrawn(ctx, t, socket, passwords.Full)
	if d.Ctr(t, "task", "exec", "--exec-id", "listen", "desktop", "sh", "-c", "ss -Hltn | grep -c -e :5901 -e :6080 || true") != "0" {
		t.Error("a port is open that nobody asked for")
	}

	// A kill leaves locks behind; the next start must not mind.
	stop("SIGKILL")
	d.Ctr(t, "task", "start", "--detach", "--log-uri", "file://"+log, "desktop")
	awaitDrawn(ctx, t, socket, passwords.ViewOnly)

	// The session follows an X server that died.
	d.Ctr(t, "task", "exec", "--exec-id", "kill", "desktop", "s6-svc", "-k", "/run/service/xvnc")
	awaitDrawn(ctx, t, socket, passwords.Full)
	stop("SIGTERM")
}

// awaitDrawn waits until a picture of the desktop has more than 50 colours.
func awaitDrawn(ctx context.Context, t *testing.T, socket, password string) {
	t.Helper()
	begin := time.Now()
	last := "nothing yet"
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		colours, err := colours(ctx, socket, password)
		if colours > 50 {
			t.Logf("drawn after %s", time.Since(begin).Round(10*time.Millisecond))
			return
		}
		last = fmt.Sprintf("%d colours, %v", colours, err)
	}
	t.Fatalf("the desktop does not draw: %s", last)
}

func colours(ctx context.Context, socket, password string) (int, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, err
	}
	init, err := rfb.Login(conn, password)
	if err != nil {
		return 0, err
	}
	picture, err := rfb.Picture(conn, init, rfb.MaxPixels)
	if err != nil {
		return 0, err
	}
	return rfb.Colours(picture, 1000), nil
}
