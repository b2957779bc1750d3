package build_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/images"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// fakeBackend records the last job.
type fakeBackend struct {
	job   build.Job
	leave func(name string) // nil: no image
	err   error
}

func (b *fakeBackend) Build(_ context.Context, job build.Job, progress func(operation.Progress)) (string, error) {
	b.job = job
	if b.leave != nil {
		b.leave(job.Name)
	}
	progress(operation.Progress{Step: "built", Done: 1, Total: 1})
	return "sha256:1", b.err
}

// fakeImages is an image store whose registry answers as told.
type fakeImages struct {
	local    map[string]runtime.Image
	lookup   error
	registry error
	resolved int
	imported []string // names of the files of the last archive
	config   ocispec.Image
	refuse   error
	untagged error // what Tag fails with
}

func (f *fakeImages) Image(_ context.Context, ref string) (runtime.Image, error) {
	if f.lookup != nil {
		return runtime.Image{}, f.lookup
	}
	if image, ok := f.local[ref]; ok {
		return image, nil
	}
	return runtime.Image{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (f *fakeImages) Resolve(context.Context, string) error { f.resolved++; return f.registry }

func (f *fakeImages) Import(_ context.Context, r io.Reader, name string) (runtime.Image, error) {
	if f.refuse != nil {
		return runtime.Image{}, f.refuse
	}
	archive := tar.NewReader(r)
	files := make(map[string][]byte)
	f.imported = nil
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return runtime.Image{}, err
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return runtime.Image{}, err
		}
		files[header.Name] = content
		f.imported = append(f.imported, header.Name)
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	if err := errors.Join(
		json.Unmarshal(files["index.json"], &index),
		json.Unmarshal(files["blobs/sha256/"+index.Manifests[0].Digest.Encoded()], &manifest),
		json.Unmarshal(files["blobs/sha256/"+manifest.Config.Digest.Encoded()], &f.config),
	); err != nil {
		return runtime.Image{}, err
	}
	image := runtime.Image{Name: name, Labels: f.config.Config.Labels}
	f.local[name] = image
	return image, nil
}

func (f *fakeImages) Tag(_ context.Context, ref, tag string) (runtime.Image, error) {
	if f.untagged != nil {
		return runtime.Image{}, f.untagged
	}
	image := f.local[ref]
	image.Name, image.Pinned = tag, f.local[tag].Pinned
	if f.local == nil {
		f.local = make(map[string]runtime.Image)
	}
	f.local[tag] = image
	return image, nil
}

// host makes a host's /etc below a directory.
func host(t *testing.T, release, sources string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"etc/os-release":                    release,
		"etc/apt/sources.list":              sources,
		"etc/apt/auth.conf":                 "machine other.example login a password b\n",
		"etc/apt/apt.conf":                  "Dir::Etc \"" + filepath.Join(root, "etc/apt") + "\";\n",
		"etc/apt/apt.conf.d/10proxy":        "Acquire::http::Proxy \"http://proxy.example:3128\";\nAPT::Install-Recommends \"false\";\n",
		"etc/ssl/certs/ca-certificates.crt": "CERTIFICATE\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	bookworm = "ID=debian\nVERSION_CODENAME=bookworm\n"
	mirror   = "deb http://user:secret@mirror.example/debian bookworm main\n"
)

// debootstrap puts a program in the path that does as mmdebstrap and leaves
// what it was told in a file.
func debootstrap(t *testing.T, script string) (record string) {
	t.Helper()
	dir := t.TempDir()
	record = filepath.Join(dir, "record")
	content := "#!/bin/sh\nfor last; do before=$out; out=$last; done\n{ printf '%s\\n' \"$@\"; cat \"$last\"; } > " + record +
		"\necho 'I: at work' >&2\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return record
}

func TestBaseChoice(t *testing.T) {
	const base = "docker.io/remotegpu/base:trixie"
	present := map[string]runtime.Image{images.DefaultBase: {Name: images.DefaultBase}}
	tests := []struct {
		name     string
		asked    string
		local    map[string]runtime.Image
		registry error
		script   string
		base     string
		reason   string
		resolves int
		problem  problem.Reason
	}{
		{name: "asked for", asked: "docker.io/library/debian:13", base: "docker.io/library/debian:13", reason: "asked for"},
		{name: "present", local: present, base: images.DefaultBase, reason: "the default, present"},
		{name: "from the registry", base: images.DefaultBase, reason: "the default, from its registry", resolves: 1},
		{
			name: "no registry", registry: errdefs.ErrUnavailable, script: `printf rootfs > "$before"`,
			base: base, reason: "registry unreachable: bootstrapped trixie from mirror.example", resolves: 1,
		},
		{
			name: "refusing registry", registry: errdefs.ErrPermissionDenied, script: `printf rootfs > "$before"`,
			base: base, reason: "registry refuses: bootstrapped trixie from mirror.example", resolves: 1,
		},
		{
			name: "silent registry", registry: context.DeadlineExceeded, script: `printf rootfs > "$before"`,
			base: base, reason: "registry does not answer: bootstrapped trixie from mirror.example", resolves: 1,
		},
		{
			name: "no mirror either", registry: errdefs.ErrUnavailable, script: "echo 'E: no network' >&2; exit 25",
			resolves: 1, problem: problem.BaseBootstrapFailed,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			record := debootstrap(t, test.script)
			backend := &fakeBackend{}
			store := &fakeImages{local: make(map[string]runtime.Image), registry: test.registry}
			maps.Copy(store.local, test.local)
			cache := t.TempDir()
			b := build.New(build.Config{Backend: backend, Images: store, CacheDir: cache, Root: host(t, bookworm, mirror)})
			result, err := b.Build(t.Context(), runtime.BuildRequest{Source: images.DesktopBase, Tag: "docker.io/x/y:z", Base: test.asked}, nil)
			if store.resolved != test.resolves {
				t.Errorf("the registry was asked %d times, want %d", store.resolved, test.resolves)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "bootstrap-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if test.problem != "" {
				if p := problem.Of(err); p == nil || p.Reason != test.problem || p.Hint == "" {
					t.Fatalf("error is %v, want %s with a hint", err, test.problem)
				}
				if !strings.Contains(err.Error(), "E: no network") || strings.Contains(err.Error(), "secret") {
					t.Errorf("error does not say what the program said, or says too much: %v", err)
				}
				if backend.job.Tag != "" {
					t.Error("it went on to build")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if result.Base != test.base || result.BaseReason != test.reason || backend.job.Args["BASE"] != test.base {
				t.Errorf("base is %q because %q, built on %q; want %q because %q",
					result.Base, result.BaseReason, backend.job.Args["BASE"], test.base, test.reason)
			}
			if test.base != base {
				return
			}
			told, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(told), "secret") || !strings.Contains(string(told), "deb http://mirror.example/debian trixie main\n") {
				t.Errorf("mmdebstrap was told\n%s", told)
			}
		})
	}
}

func TestBaseIsReused(t *testing.T) {
	debootstrap(t, `printf rootfs > "$before"`)
	store := &fakeImages{local: make(map[string]runtime.Image), registry: errdefs.ErrUnavailable}
	cfg := build.Config{Backend: &fakeBackend{}, Images: store, CacheDir: t.TempDir(), Root: host(t, bookworm, mirror)}
	request := runtime.BuildRequest{Source: images.DesktopBase, Tag: "docker.io/x/y:z"}
	if _, err := build.New(cfg).Build(t.Context(), request, nil); err != nil {
		t.Fatal(err)
	}
	if len(store.imported) != 5 || store.config.OS != "linux" || len(store.config.RootFS.DiffIDs) != 1 {
		t.Errorf("imported %v with config %+v", store.imported, store.config)
	}

	// The image is recent: nothing may be made or imported.
	debootstrap(t, "exit 1")
	store.refuse = errors.New("no import expected")
	result, err := build.New(cfg).Build(t.Context(), request, nil)
	if err != nil || !strings.Contains(result.BaseReason, "trixie bootstrapped from mirror.example on "+time.Now().UTC().Format("2006-")) {
		t.Errorf("second build: %+v, %v", result, err)
	}

	// Only the image is gone: the root file system in the cache serves.
	delete(store.local, result.Base)
	store.refuse = nil
	if _, err := build.New(cfg).Build(t.Context(), request, nil); err != nil {
		t.Errorf("build from the cache: %v", err)
	}

	// All is old and the mirror does not answer: the old image serves.
	old := store.local[result.Base]
	old.Labels["io.remotegpu.base.created"] = "2020-01-01T00:00:00Z"
	cfg.CacheDir = t.TempDir()
	result, err = build.New(cfg).Build(t.Context(), request, nil)
	if err != nil || !strings.Contains(result.BaseReason, "2020-01-01, since it could not be renewed") {
		t.Errorf("build on the old base: %+v, %v", result, err)
	}

	// Made from another mirror, it does not.
	cfg.Root = host(t, bookworm, "deb http://other.example/debian bookworm main\n")
	if _, err = build.New(cfg).Build(t.Context(), request, nil); problem.Of(err) == nil || problem.Of(err).Reason != problem.BaseBootstrapFailed {
		t.Errorf("build with another mirror: %v", err)
	}
}

func TestBuildCarriesWhatTheHostNeeds(t *testing.T) {
	backend := &fakeBackend{}
	b := build.New(build.Config{
		Backend: backend, Images: &fakeImages{}, CacheDir: t.TempDir(), Root: host(t, bookworm, mirror),
	})
	var steps []string
	result, err := b.Build(t.Context(), runtime.BuildRequest{Source: images.DesktopBase, Tag: "docker.io/x/y:z", NoCache: true},
		func(p operation.Progress) { steps = append(steps, p.Step) })
	if err != nil || result.Digest != "sha256:1" || result.Image != "docker.io/x/y:z" {
		t.Fatalf("result is %+v, %v", result, err)
	}
	job := backend.job
	if !job.NoCache || !job.HostNetwork || len(job.Args) != 1 {
		t.Errorf("job is %+v", job)
	}
	for id, want := range map[string]string{
		"apt.conf":        `Acquire::http::Proxy "http://proxy.example:3128";`,
		"apt-auth":        "machine other.example login a password b\n",
		"ca-certificates": "CERTIFICATE",
	} {
		if !strings.Contains(string(job.Secrets[id]), want) {
			t.Errorf("secret %s is %q, want it to contain %q", id, job.Secrets[id], want)
		}
	}
	if !strings.Contains(string(job.Secrets["apt-auth"]), "machine http://mirror.example/debian login user password secret") {
		t.Errorf("apt-auth is %q", job.Secrets["apt-auth"])
	}
	if strings.Contains(string(job.Secrets["apt.conf"]), "Recommends") {
		t.Errorf("apt.conf carries what is not about the network: %q", job.Secrets["apt.conf"])
	}
	if steps[len(steps)-1] != "built" {
		t.Errorf("steps are %q", steps)
	}
}

// A build sets its tag when the image is whole, and leaves the pin: what a
// backend does to the name it is given stays with that.
func TestBuildKeepsPin(t *testing.T) {
	const tag = "docker.io/x/y:z"
	before := runtime.Image{Name: tag, Digest: "sha256:0", Pinned: true}
	failed := errors.New("it fails")
	for name, test := range map[string]struct {
		backend, tag error
		digest       string
	}{
		"built": {nil, nil, "sha256:1"}, "not unpacked": {failed, nil, "sha256:0"}, "not named": {nil, failed, "sha256:0"},
	} {
		t.Run(name, func(t *testing.T) {
			store := &fakeImages{local: map[string]runtime.Image{tag: before}, untagged: test.tag}
			backend := &fakeBackend{err: test.backend, leave: func(name string) { store.local[name] = runtime.Image{Name: name, Digest: "sha256:1"} }}
			b := build.New(build.Config{Backend: backend, Images: store, CacheDir: t.TempDir(), Root: host(t, bookworm, mirror)})
			_, err := b.Build(t.Context(), runtime.BuildRequest{Source: images.DesktopBase, Tag: tag}, nil)
			if fails := test.digest == before.Digest; fails != errors.Is(err, failed) {
				t.Errorf("build: %v", err)
			}
			if image := store.local[tag]; len(store.local) != 2 || store.local[runtime.BuildName(tag)].Digest != "sha256:1" || image.Digest != test.digest || !image.Pinned {
				t.Errorf("the images are %+v, want %s to be %s and pinned", store.local, tag, test.digest)
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	debootstrap(t, "exit 1")
	down := errors.New("store is down")
	for name, test := range map[string]struct {
		source string
		images *fakeImages
		root   string
		want   error
	}{
		"unknown source":     {"nothing", &fakeImages{}, host(t, bookworm, mirror), errdefs.ErrNotFound},
		"store that is down": {images.DesktopBase, &fakeImages{lookup: down}, host(t, bookworm, mirror), down},
		"other distribution": {
			images.DesktopBase, &fakeImages{registry: errdefs.ErrUnavailable},
			host(t, "ID=fedora\n", ""), problem.BaseBootstrapFailed.Kind(),
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := build.New(build.Config{Backend: &fakeBackend{}, Images: test.images, CacheDir: t.TempDir(), Root: test.root})
			_, err := b.Build(t.Context(), runtime.BuildRequest{Source: test.source, Tag: "docker.io/x/y:z"}, nil)
			if !errors.Is(err, test.want) {
				t.Errorf("error is %v, want %v", err, test.want)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b := build.New(build.Config{Backend: &fakeBackend{}, Images: &fakeImages{registry: context.Canceled}, CacheDir: t.TempDir(), Root: host(t, bookworm, mirror)})
		if _, err := b.Build(ctx, runtime.BuildRequest{Source: images.DesktopBase, Tag: "docker.io/x/y:z"}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}
