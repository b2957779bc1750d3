//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

func TestImages(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, registry := open(t, d), testutil.Registry(t)
		built := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		d.Import(t, testutil.TestImage(t, testutil.ImageOptions{
			Labels: map[string]string{"label": "yes"}, User: "app", StopSignal: "SIGINT", Env: []string{"EMPTY=", "BARE", "TWICE=1", "TWICE=a=b"},
			Change: func(i *ocispec.Image) {
				i.Created, i.Author, i.Config.WorkingDir = &built, "somebody", "/home/app"
				i.Config.ExposedPorts = map[string]struct{}{"8080/tcp": {}, "53/udp": {}}
				i.Config.Volumes = map[string]struct{}{"/data": {}}
				i.History = []ocispec.History{{CreatedBy: "ENV A=b", EmptyLayer: true}, {CreatedBy: "COPY all /"}}
			},
		}))
		remote := registry.Push("team/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Files: map[string]string{"/etc/other": "1"}}))
		runtimetest.Images(t, runtimetest.ImagesSetup{
			Images: engine, Local: testutil.ImageName, Label: "label", Remote: remote, Absent: registry.Host + "/team/app:v2",
			Push: registry.Host + "/team/pushed:v1",
			Config: runtime.ImageConfig{
				Entrypoint: []string{"/bin/testprog"}, Command: []string{"sleep"}, Workdir: "/home/app", User: "app", StopSignal: "SIGINT",
				ExposedPorts: []string{"53/udp", "8080/tcp"}, Volumes: []string{"/data"},
				Env: map[string]string{
					"PATH":           "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
					"IMAGE_VARIABLE": "from image", "EMPTY": "", "BARE": "", "TWICE": "a=b",
				},
			},
		})
		if details, err := engine.Details(t.Context(), testutil.ImageName); err != nil || !details.CreatedAt.Equal(built) || details.Author != "somebody" ||
			details.Layers[0].CreatedBy != "COPY all /" {
			t.Errorf("details %+v, %v", details, err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if blobs := strings.Count(d.Ctr(t, "content", "ls", "-q"), "sha256:"); blobs != 3 {
			t.Errorf("%d blobs are kept, want the 3 of the local image", blobs)
		}
	})
}

func TestPullFails(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, registry := open(t, d), testutil.Registry(t)
		closed := testutil.Registry(t)
		gone := closed.Push("team/app", "v1", testutil.TestImage(t, testutil.ImageOptions{}))
		closed.Close()
		secret := registry.Push("team/secret", "v1", testutil.TestImage(t, testutil.ImageOptions{}))
		registry.Answer("team/secret", http.StatusForbidden)
		private := registry.Push("team/private", "v1", testutil.TestImage(t, testutil.ImageOptions{}))
		registry.Answer("team/private", http.StatusUnauthorized)
		foreign := registry.Push("team/foreign", "v1", testutil.TestImage(t, testutil.ImageOptions{Architecture: "s390x"}))
		for ref, reason := range map[string]problem.Reason{
			gone: problem.RegistryUnavailable, secret: problem.RegistryDenied, private: problem.RegistryDenied,
			foreign: problem.ImagePlatform, "x y": problem.ImageReferenceBad,
		} {
			_, err := engine.Pull(t.Context(), ref, nil, nil)
			p, ok := errors.AsType[*problem.Problem](err)
			if !ok || p.Reason != reason || p.Field != "spec.image" || p.Hint == "" {
				t.Errorf("pull %s: %v, want %s with field and hint", ref, err, reason)
			}
			if _, err := engine.Image(t.Context(), ref); err == nil {
				t.Errorf("pull %s left an image", ref)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := engine.Pull(ctx, secret, nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled pull: %v", err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// A container is made of the image it names, pulled just before, and starts
// again when its image is gone.
func TestContainerOutlivesImage(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine, registry := open(t, d), testutil.Registry(t)
		image := testutil.TestImage(t, testutil.ImageOptions{
			User: "app", StopSignal: "SIGINT", Files: map[string]string{"/etc/mark": "marked"},
		})
		pulled, err := engine.Pull(t.Context(), registry.Push("team/app", "v1", image), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := runtime.Container{ID: "one", Image: pulled.Name, NetNS: netNS(t, d)()}
		start(t, engine, c)
		if err := engine.DeleteImage(t.Context(), pulled.Name); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := run(t, engine, "cat", "/etc/mark", ";", "echo", ";", "id"); got != "marked\nuid=1000 gid=1000 groups=[1000 2000]" {
				t.Errorf("inside: %q", got)
			}
			stop(t, engine, "one")
			if _, err := engine.Start(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// An image that is here and not unpacked is unpacked when a container is made
// from it; what that takes is known to be ours, and goes when it is cut off.
func TestCreateUnpacks(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		var layers []string
		for i := range 60 {
			layers = append(layers, strconv.Itoa(i))
		}
		image := testutil.TestImage(t, testutil.ImageOptions{Name: "docker.io/remotegpu/packed:latest", Upper: layers})
		path := filepath.Join(t.TempDir(), "packed.tar")
		if err := os.WriteFile(path, image.Tar(t), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Ctr(t, "images", "import", "--no-unpack", path)
		d.Ctr(t, "leases", "delete", "--sync", strings.TrimSpace(d.Ctr(t, "leases", "create"))) // the archive's index goes
		before := stored(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		created := make(chan error, 1)
		go func() {
			created <- engine.Create(ctx, runtime.Container{ID: "cut", Image: image.Name, NetNS: "/proc/self/ns/net"})
		}()
		for {
			parts, err := engine.Parts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range parts {
				if part.Kind == runtime.FoundLease {
					t.Errorf("the lease of a create is taken for one that nobody holds: %+v", part)
				}
			}
			if _, leased, _ := strings.Cut(d.Ctr(t, "leases", "ls"), "\n"); leased != "" {
				if !strings.Contains(leased, "remotegpu.dev/engine=") {
					t.Errorf("leases: %s", leased)
				}
				break
			}
			if len(created) > 0 {
				t.Fatalf("create was done before a lease was seen: %v", <-created)
			}
		}
		cancel()
		if err := <-created; !errors.Is(err, context.Canceled) {
			t.Errorf("create that is cut off: %v", err)
		}
		kept(t, d, "a create that is cut off", before)
		if snapshots := d.Ctr(t, "snapshots", "ls"); strings.Contains(snapshots, "extract-") {
			t.Errorf("snapshots: %s", snapshots)
		}
		if err := engine.Create(t.Context(), runtime.Container{ID: "made", Image: image.Name, NetNS: "/proc/self/ns/net"}); err != nil {
			t.Fatal(err)
		}
		kept(t, d, "a create", before)
		if err := engine.Delete(t.Context(), "made"); err != nil {
			t.Error(err)
		}
		if err := engine.DeleteImage(t.Context(), image.Name); err != nil {
			t.Error(err)
		}
	})
}
