//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// openWith opens an engine with a configuration of its own.
func openWith(t *testing.T, d *testutil.ContainerdDaemon, change func(*containerd.Config)) *containerd.Engine {
	t.Helper()
	cfg := containerd.Config{
		Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, LogDir: logs(d), FIFODir: filepath.Join(d.Dir, "fifo"),
	}
	change(&cfg)
	engine, err := containerd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

// stored names what containerd has of images: leases, ingests, blobs.
func stored(t *testing.T, d *testutil.ContainerdDaemon) string {
	t.Helper()
	return strings.Join([]string{
		"leases", d.Ctr(t, "leases", "ls", "-q"), "ingests", d.Ctr(t, "content", "active"), "blobs", d.Ctr(t, "content", "ls", "-q"),
		"images", d.Ctr(t, "images", "ls", "-q"),
	}, "\n")
}

// kept fails the test unless containerd has what it had before, once it has
// collected what nobody holds.
func kept(t *testing.T, d *testutil.ContainerdDaemon, what, before string) {
	t.Helper()
	var after string
	for range 20 {
		if after = stored(t, d); after == before {
			return
		}
		d.Ctr(t, "leases", "delete", "--sync", strings.TrimSpace(d.Ctr(t, "leases", "create")))
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s left something:\n%s\nbefore:\n%s", what, after, before)
}

func wantReason(t *testing.T, what string, err error, reason problem.Reason) {
	t.Helper()
	p, ok := errors.AsType[*problem.Problem](err)
	if !ok || p.Reason != reason || p.Hint == "" {
		t.Errorf("%s: %v, want %s with a hint", what, err, reason)
	}
}

func TestTransfers(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		// What is left of how the test image came is collected with the next that goes.
		engine := open(t, d)
		if _, err := engine.Tag(t.Context(), testutil.ImageName, "remotegpu/going"); err != nil {
			t.Fatal(err)
		}
		if err := engine.DeleteImage(t.Context(), "remotegpu/going"); err != nil {
			t.Fatal(err)
		}
		for name, test := range map[string]func(*testing.T, *testutil.ContainerdDaemon){
			"Credentials": testCredentials, "Hosts": testHosts, "Layers": testLayers, "Cancel": testCancel, "Shutdown": testShutdown,
			"Cut": testCut, "Standstill": testStandstill, "Platforms": testPlatforms, "Archives": testArchives, "Held": testHeld,
		} {
			t.Run(name, func(t *testing.T) {
				before := stored(t, d)
				test(t, d)
				kept(t, d, name, before)
			})
		}
	})
}

// testCredentials: those of the call come first, then those of the node.
func testCredentials(t *testing.T, d *testutil.ContainerdDaemon) {
	var asked []string
	var fail error
	engine := openWith(t, d, func(cfg *containerd.Config) {
		cfg.Credentials = func(_ context.Context, host string) (string, string, error) {
			asked = append(asked, host)
			return "node", "of the node", fail
		}
	})
	image := testutil.TestImage(t, testutil.ImageOptions{})
	basic, token, identity := testutil.Registry(t), testutil.Registry(t), testutil.Registry(t)
	basic.AskBasic("ann", "secret one")
	token.AskToken("ann", "secret two", "")
	identity.AskToken("nobody", "knows", "of the node")
	identityEngine := openWith(t, d, func(cfg *containerd.Config) {
		cfg.Credentials = func(context.Context, string) (string, string, error) { return "", "of the node", nil }
	})
	for name, test := range map[string]struct {
		registry *testutil.ImageRegistry
		login    *runtime.Login
		reason   problem.Reason
	}{
		"basic":           {basic, &runtime.Login{Username: "ann", Password: "secret one"}, ""},
		"basic, wrong":    {basic, &runtime.Login{Username: "ann", Password: "wrong"}, problem.RegistryDenied},
		"basic, of node":  {basic, nil, problem.RegistryDenied},
		"token":           {token, &runtime.Login{Username: "ann", Password: "secret two"}, ""},
		"token, wrong":    {token, &runtime.Login{Username: "ann", Password: "wrong"}, problem.RegistryDenied},
		"token, of node":  {token, nil, problem.RegistryDenied},
		"nothing usable":  {token, nil, problem.CredentialsUnusable},
		"nothing, basic":  {basic, nil, problem.CredentialsUnusable},
		"token, identity": {identity, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			asked, fail = nil, nil
			if test.reason == problem.CredentialsUnusable {
				fail = problem.New(problem.CredentialsUnusable, "the helper fails").WithHint("mend it")
			}
			engine := engine
			if test.registry == identity {
				engine = identityEngine
			}
			ref := test.registry.Push("team/app", "v1", image)
			_, err := engine.Pull(t.Context(), ref, test.login, nil)
			pushed := test.registry.Host + "/team/pushed:" + strings.NewReplacer(", ", "-", " ", "-").Replace(name)
			_, pushErr := engine.Push(t.Context(), testutil.ImageName, pushed, test.login, nil)
			if test.reason == "" {
				if err != nil || pushErr != nil {
					t.Fatalf("pull: %v, push: %v", err, pushErr)
				}
				if err := engine.DeleteImage(t.Context(), ref); err != nil {
					t.Error(err)
				}
			} else {
				wantReason(t, "pull", err, test.reason)
				wantReason(t, "push", pushErr, test.reason)
			}
			if login := test.login; login != nil && err != nil && strings.Contains(err.Error(), login.Password) {
				t.Errorf("the error has the password: %v", err)
			}
			if given := test.login != nil; given == (len(asked) > 0) && test.registry != identity {
				t.Errorf("the node's credentials were asked for with %q", asked)
			}
		})
	}
}

// testHosts: a certificate authority and a mirror of hosts.toml; the mirror does
// not get what was given for the registry.
func testHosts(t *testing.T, d *testutil.ContainerdDaemon) {
	secure, mirror := testutil.SecureRegistry(t), testutil.Registry(t)
	image := testutil.TestImage(t, testutil.ImageOptions{})
	ref := secure.Push("team/app", "v1", image)
	dir := t.TempDir()
	own := filepath.Join(dir, strings.ReplaceAll(secure.Host, ":", "_")+"_") // as containerd writes a port
	if err := os.MkdirAll(own, 0o700); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.pem")
	hosts := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(own, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	engine := openWith(t, d, func(cfg *containerd.Config) { cfg.HostsDir = dir })
	login := &runtime.Login{Username: "ann", Password: "hunter2"}
	secure.AskBasic(login.Username, login.Password)
	mirror.AskBasic("somebody", "else")

	hosts(`server = "https://` + secure.Host + `"` + "\n")
	_, err := engine.Pull(t.Context(), ref, login, nil)
	wantReason(t, "pull without the authority", err, problem.RegistryUnavailable)
	if err := os.WriteFile(ca, secure.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	hosts(`server = "https://` + secure.Host + `"
ca = "` + ca + `"
[host."http://` + mirror.Host + `"]
  capabilities = ["pull", "resolve"]
`)
	pulled, err := engine.Pull(t.Context(), ref, login, nil)
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	if mirror.Saw(login.Password) {
		t.Error("the mirror was sent the password")
	}
	if !mirror.Saw("") || !secure.Saw(login.Password) {
		t.Error("mirror and registry were not both asked")
	}
	if err := engine.DeleteImage(t.Context(), pulled.Name); err != nil {
		t.Error(err)
	}
}

// testLayers: a pull and a push say of each layer how far it is.
func testLayers(t *testing.T, d *testutil.ContainerdDaemon) {
	engine, registry := open(t, d), testutil.Registry(t)
	small := registry.Push("team/small", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"one"}}))
	large := registry.Push("team/large", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"one", "two", "three"}}))
	if _, err := engine.Pull(t.Context(), small, nil, nil); err != nil {
		t.Fatal(err)
	}
	release := registry.Hold("team/large")
	defer release()
	var seen operation.Progress
	pulled, err := engine.Pull(t.Context(), large, nil, func(at operation.Progress) {
		if states(at.Layers) == "present present transferring transferring" {
			if at.Layers[3].Done >= at.Layers[3].Total || at.Done >= at.Total {
				t.Errorf("while it is held: %+v", at)
			}
			release()
		}
		seen = at
	})
	if err != nil {
		t.Fatal(err)
	}
	if states(seen.Layers) != "present present unpacked unpacked" || seen.Done != seen.Total || seen.Step != "pull" {
		t.Errorf("at the end: %+v", seen)
	}
	for _, layer := range seen.Layers {
		if layer.Done != layer.Total || layer.Total <= 0 || !strings.HasPrefix(layer.Digest, "sha256:") {
			t.Errorf("layer %+v", layer)
		}
	}
	other := testutil.Registry(t)
	if _, err := engine.Push(t.Context(), small, other.Host+"/a/b:1", nil, nil); err != nil {
		t.Fatal(err)
	}
	digest, err := engine.Push(t.Context(), large, other.Host+"/a/b:2", nil, func(at operation.Progress) { seen = at })
	if err != nil || digest != pulled.Digest || other.Tagged("a/b", "2") != pulled.Digest {
		t.Errorf("pushed %s, %v; the registry has %s, want %s", digest, err, other.Tagged("a/b", "2"), pulled.Digest)
	}
	if states(seen.Layers) != "present present transferred transferred" || seen.Done != seen.Total || seen.Step != "push" {
		t.Errorf("at the end of the push: %+v", seen)
	}
	for _, name := range []string{small, large} {
		if err := engine.DeleteImage(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func states(layers []operation.Layer) string {
	var all []string
	for _, layer := range layers {
		all = append(all, string(layer.State))
	}
	return strings.Join(all, " ")
}

// testCancel: whatever ends early leaves nothing.
func testCancel(t *testing.T, d *testutil.ContainerdDaemon) {
	engine, registry := open(t, d), testutil.Registry(t)
	ref := registry.Push("held/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"cancelled"}}))
	defer registry.Hold("held/app")()
	before := stored(t, d)

	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := engine.Pull(ctx, ref, nil, func(at operation.Progress) {
		if states(at.Layers) == "present transferring" { // something is here
			cancel(operation.ErrCancelled)
		}
	})
	if !errors.Is(err, operation.ErrCancelled) {
		t.Errorf("cancelled pull: %v", err)
	}
	kept(t, d, "a cancelled pull", before)

	empty := testutil.Registry(t)
	defer empty.Hold("held/app")()
	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = engine.Push(ctx, testutil.ImageName, empty.Host+"/held/app:v2", nil, func(at operation.Progress) {
		if strings.Contains(states(at.Layers), string(operation.LayerTransferring)) {
			cancel(operation.ErrCancelled)
		}
	})
	if !errors.Is(err, operation.ErrCancelled) {
		t.Errorf("cancelled push: %v", err)
	}
	if tagged := empty.Tagged("held/app", "v2"); tagged != "" {
		t.Errorf("the registry has %s", tagged)
	}
	kept(t, d, "a cancelled push", before)

	// An import whose sender stops in the middle, and one that is cancelled.
	layout := testutil.TestImage(t, testutil.ImageOptions{Name: "docker.io/remotegpu/half:latest", Upper: []string{"half"}}).Tar(t)
	broken := errors.New("the sender is gone")
	_, err = engine.ImportImages(t.Context(), io.MultiReader(bytes.NewReader(layout[:len(layout)/2]), readerFunc(func([]byte) (int, error) {
		return 0, broken
	})), "")
	if !errors.Is(err, broken) {
		t.Errorf("import from one who left: %v", err)
	}
	kept(t, d, "an import from one who left", before)
	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = engine.ImportImages(ctx, io.MultiReader(bytes.NewReader(layout[:len(layout)/2]), readerFunc(func([]byte) (int, error) {
		cancel(operation.ErrCancelled)
		return 0, context.Cause(ctx)
	})), "")
	if !errors.Is(err, operation.ErrCancelled) {
		t.Errorf("cancelled import: %v", err)
	}
	kept(t, d, "a cancelled import", before)

	err = engine.ExportImages(t.Context(), []string{testutil.ImageName}, writerFunc(func([]byte) (int, error) { return 0, broken }))
	if !errors.Is(err, broken) {
		t.Errorf("export to one who left: %v", err)
	}
	kept(t, d, "an export to one who left", before)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// testShutdown: what a pull got until the daemon stopped is there for its next
// attempt, and goes when there is none.
func testShutdown(t *testing.T, d *testutil.ContainerdDaemon) {
	registry := testutil.Registry(t)
	ref := registry.Push("held/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"shutdown"}}))
	before := stored(t, d)
	interrupt := func() {
		t.Helper()
		defer registry.Hold("held/app")()
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := open(t, d).Pull(ctx, ref, nil, func(at operation.Progress) {
			if states(at.Layers) == "present transferring" {
				cancel(operation.ErrShutdown)
			}
		})
		if !errors.Is(err, operation.ErrShutdown) {
			t.Errorf("pull when the daemon stops: %v", err)
		}
	}
	interrupt()
	next := open(t, d)
	sweep(t, next, ref)
	if d.Ctr(t, "leases", "ls", "-q") == "" || d.Ctr(t, "content", "ls", "-q") == "" || !strings.Contains(d.Ctr(t, "content", "active"), "layer-") {
		t.Errorf("what came is gone: %s", stored(t, d))
	}
	if _, err := next.Pull(t.Context(), ref, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := next.DeleteImage(t.Context(), ref); err != nil {
		t.Error(err)
	}
	kept(t, d, "the next attempt", before)

	interrupt()
	sweep(t, next)
	kept(t, d, "a pull without a next attempt", before)

	// A call that is at work keeps what it holds.
	release := registry.Hold("held/app")
	tidied := false
	if _, err := next.Pull(t.Context(), ref, nil, func(at operation.Progress) {
		if !tidied && states(at.Layers) == "present transferring" {
			tidied = true
			sweep(t, next)
			release()
		}
	}); err != nil || !tidied {
		t.Errorf("pull while it is tidied (%v): %v", tidied, err)
	}
	if err := next.DeleteImage(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// testCut: a layer that breaks off in the middle is the registry's fault, and
// what came is there for the next attempt.
func testCut(t *testing.T, d *testutil.ContainerdDaemon) {
	engine, registry := open(t, d), testutil.Registry(t)
	ref := registry.Push("team/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"cut"}}))
	mend := registry.Cut("team/app")
	_, err := engine.Pull(t.Context(), ref, nil, nil)
	again(t, d, engine, ref, err, mend)
}

// testStandstill: a registry that stops sending or taking is not waited for
// without end.
func testStandstill(t *testing.T, d *testutil.ContainerdDaemon) {
	registry := testutil.Registry(t)
	engine := openWith(t, d, func(cfg *containerd.Config) { cfg.RegistryIdle = 500 * time.Millisecond })
	ref := registry.Push("held/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"standstill"}}))
	release := registry.Hold("held/app")
	defer release()
	_, err := engine.Pull(t.Context(), ref, nil, nil)
	again(t, d, engine, ref, err, release)
}

// again fails the test unless a pull failed so that it is tried again, and goes
// on from what it got once the registry was mended.
func again(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, ref string, err error, mend func()) {
	t.Helper()
	wantReason(t, "pull", err, problem.RegistryUnavailable)
	if !errdefs.IsUnavailable(err) {
		t.Errorf("%v is not tried again", err)
	}
	sweep(t, engine, ref)
	if !strings.Contains(d.Ctr(t, "content", "active"), "layer-") {
		t.Errorf("what came is gone: %s", stored(t, d))
	}
	mend()
	if _, err := engine.Pull(t.Context(), ref, nil, nil); err != nil {
		t.Fatalf("the next attempt: %v", err)
	}
	if err := engine.DeleteImage(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// sweep removes the leases of engines that died, as the reconciler does.
func sweep(t *testing.T, engine *containerd.Engine, pulling ...string) {
	t.Helper()
	parts, err := engine.Parts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if part.Kind != runtime.FoundLease || part.Foreign != "" || slices.Contains(pulling, part.Pulling) {
			continue
		}
		if err := engine.RemovePart(t.Context(), part); err != nil {
			t.Errorf("remove lease %s: %v", part.Name, err)
		}
	}
}

// testPlatforms: of an image for several platforms there is the node's; what is
// for none of ours is refused wherever it comes from.
func testPlatforms(t *testing.T, d *testutil.ContainerdDaemon) {
	engine, registry := open(t, d), testutil.Registry(t)
	ours := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"ours"}})
	foreign := testutil.TestImage(t, testutil.ImageOptions{Architecture: "s390x", Upper: []string{"foreign"}, Change: func(i *ocispec.Image) {
		i.Created = &time.Time{} // it is not said
		*i.Created = i.Created.AddDate(-1, 0, 0)
	}})
	attested := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"attested"}})
	attested.Manifest.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index := testutil.Index(t, foreign, ours, attested)
	ref := registry.PushDescriptor("team/many", "v1", index.Manifest, index.Blobs)
	pulled, err := engine.Pull(t.Context(), ref, nil, nil)
	if err != nil || pulled.Digest != index.Manifest.Digest.String() {
		t.Fatalf("pull: %+v, %v", pulled, err)
	}
	wantPlatforms(t, engine, ref, []runtime.ImagePlatform{
		{Platform: "linux/s390x", Digest: foreign.Manifest.Digest.String()},
		{Platform: pulled.Platform, Digest: ours.Manifest.Digest.String(), Present: true},
	})
	other := testutil.Registry(t)
	if digest, err := engine.Push(t.Context(), ref, other.Host+"/a/ours:1", nil, nil); err != nil || digest != ours.Manifest.Digest.String() {
		t.Errorf("pushed %s, %v, want our manifest %s", digest, err, ours.Manifest.Digest)
	}
	var archive bytes.Buffer
	if err := engine.ExportImages(t.Context(), []string{ref}, &archive); err != nil {
		t.Errorf("export: %v", err)
	}
	if imported, err := engine.ImportImages(t.Context(), &archive, "remotegpu/ours"); err != nil || imported[0].Digest != ours.Manifest.Digest.String() {
		t.Errorf("imported %+v, %v", imported, err)
	}
	for _, name := range []string{ref, "remotegpu/ours"} {
		if err := engine.DeleteImage(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	// By its digest, too: what is exported is another one, and is named so.
	digested := strings.TrimSuffix(ref, ":v1") + "@" + index.Manifest.Digest.String()
	if _, err := engine.Pull(t.Context(), digested, nil, nil); err != nil {
		t.Fatal(err)
	}
	archive.Reset()
	if err := engine.ExportImages(t.Context(), []string{digested}, &archive); err != nil {
		t.Errorf("export by digest: %v", err)
	}
	imported, err := engine.ImportImages(t.Context(), &archive, "")
	if want := strings.TrimSuffix(ref, ":v1") + "@" + ours.Manifest.Digest.String(); err != nil || len(imported) != 1 || imported[0].Name != want {
		t.Fatalf("imported %+v, %v, want %s", imported, err, want)
	}
	for _, name := range []string{digested, imported[0].Name} {
		if err := engine.DeleteImage(t.Context(), name); err != nil {
			t.Error(err)
		}
	}

	before := stored(t, d)
	_, err = engine.Pull(t.Context(), registry.Push("team/foreign", "v1", foreign), nil, nil)
	wantReason(t, "pull", err, problem.ImagePlatform)
	alone := testutil.Index(t, foreign)
	_, err = engine.Pull(t.Context(), registry.PushDescriptor("team/foreign", "v2", alone.Manifest, alone.Blobs), nil, nil)
	wantReason(t, "pull of an index", err, problem.ImagePlatform)
	for name, image := range map[string]*testutil.OCIImage{"manifest": foreign, "index": alone} {
		_, err = engine.ImportImages(t.Context(), bytes.NewReader(testutil.Layout(t, map[string]*testutil.OCIImage{"remotegpu/foreign": image}, nil)), "")
		wantReason(t, "import of a "+name, err, problem.ImagePlatform)
		if said := problem.Of(err).Said(); !strings.HasSuffix(said, "not for "+pulled.Platform) {
			t.Errorf("import of a %s says %q", name, said)
		}
	}
	kept(t, d, "what is refused", before)

	// Somebody else put one there: it is seen, but nothing is made from it.
	foreign.Name = "docker.io/remotegpu/foreign:latest"
	path := filepath.Join(t.TempDir(), "foreign.tar")
	if err := os.WriteFile(path, foreign.Tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Ctr(t, "images", "import", "--all-platforms", "--no-unpack", path)
	_, err = engine.Image(t.Context(), foreign.Name)
	wantReason(t, "image", err, problem.ImagePlatform)
	wantReason(t, "create", engine.Create(t.Context(), runtime.Container{ID: "foreign", Image: foreign.Name}), problem.ImagePlatform)
	if all, err := engine.Images(t.Context()); err != nil || len(all) != 2 || all[0].Platform != "linux/s390x" {
		t.Errorf("Images() = %+v, %v", all, err)
	}
	wantPlatforms(t, engine, foreign.Name, []runtime.ImagePlatform{{Platform: "linux/s390x", Digest: foreign.Manifest.Digest.String(), Present: true}})
	if err := engine.DeleteImage(t.Context(), foreign.Name); err != nil {
		t.Error(err)
	}
}

func wantPlatforms(t *testing.T, engine *containerd.Engine, ref string, want []runtime.ImagePlatform) {
	t.Helper()
	details, err := engine.Details(t.Context(), ref)
	if err != nil || !slices.Equal(details.Platforms, want) || !details.CreatedAt.IsZero() {
		t.Errorf("Details(%s) = %+v, %v, want platforms %+v", ref, details, err, want)
	}
}

// testArchives: what can be imported, and what cannot.
func testArchives(t *testing.T, d *testutil.ContainerdDaemon) {
	engine := open(t, d)
	one := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"one"}})
	two := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"two"}})
	layout := testutil.Layout(t, map[string]*testutil.OCIImage{"example.org/one:1": one}, nil)
	for name, test := range map[string]struct {
		archive []byte
		ref     string
		want    string
	}{
		"layout":         {layout, "", "example.org/one:1"},
		"layout, gzip":   {testutil.Compressed(t, layout), "", "example.org/one:1"},
		"another name":   {layout, "team/one", "docker.io/team/one:latest"},
		"docker":         {one.DockerArchive(t, "team/one:2"), "", "docker.io/team/one:2"},
		"docker, tags":   {one.DockerArchive(t, "team/one:2", "team/one:1"), "", "docker.io/team/one:1 docker.io/team/one:2"},
		"tags, renamed":  {one.DockerArchive(t, "team/one:2", "team/one:1"), "team/one:3", "docker.io/team/one:3"},
		"docker no tag":  {one.DockerArchive(t), "team/one:4", "docker.io/team/one:4"},
		"several images": {testutil.Layout(t, map[string]*testutil.OCIImage{"a.b/one:1": one, "a.b/two:2": two}, nil), "", "a.b/one:1 a.b/two:2"},
	} {
		imported, err := engine.ImportImages(t.Context(), bytes.NewReader(test.archive), test.ref)
		var names []string
		for _, image := range imported {
			names = append(names, image.Name)
			if err := engine.DeleteImage(t.Context(), image.Name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err != nil || strings.Join(names, " ") != test.want {
			t.Errorf("%s: imported %q, %v, want %s", name, names, err, test.want)
		}
	}
	before := stored(t, d)
	config := one.Manifest.Digest
	for d := range one.Blobs { // its layer is the test image's, and so it is there
		if d != one.Manifest.Digest && !strings.Contains(before, d.String()) {
			config = d
		}
	}
	if config == one.Manifest.Digest {
		t.Fatal("all of the image is there already")
	}
	var docker bytes.Buffer
	docker.Write(one.DockerArchive(t, "NOT A NAME"))
	for name, test := range map[string]struct {
		archive []byte
		ref     string
	}{
		"nothing":        {nil, ""},
		"no archive":     {bytes.Repeat([]byte("no archive "), 200), ""},
		"cut":            {layout[:len(layout)/2], ""},
		"cut, gzip":      {testutil.Compressed(t, layout)[:1000], ""},
		"manifest lacks": {testutil.Layout(t, map[string]*testutil.OCIImage{"example.org/one:1": one}, func(d digest.Digest) bool { return d != one.Manifest.Digest }), ""},
		"blob lacks":     {testutil.Layout(t, map[string]*testutil.OCIImage{"example.org/one:1": one}, func(d digest.Digest) bool { return d != config }), ""},
		"no name":        {testutil.Layout(t, map[string]*testutil.OCIImage{"": one}, nil), ""},
		"no tag":         {one.DockerArchive(t), ""},
		"bad name":       {docker.Bytes(), ""},
		"two, one name":  {testutil.Layout(t, map[string]*testutil.OCIImage{"a.b/one:1": one, "a.b/two:2": two}, nil), "team/one"},
		"one is broken": {testutil.Layout(t, map[string]*testutil.OCIImage{"a.b/one:1": one, "a.b/two:2": two},
			func(d digest.Digest) bool { return d != two.Manifest.Digest }), ""},
	} {
		_, err := engine.ImportImages(t.Context(), bytes.NewReader(test.archive), test.ref)
		wantReason(t, name, err, problem.ImageArchiveInvalid)
		kept(t, d, name, before) // what one leaves would be there for the next
	}
	lying := testutil.Layout(t, map[string]*testutil.OCIImage{"a.b/one@" + two.Manifest.Digest.String(): one}, nil)
	_, err := engine.ImportImages(t.Context(), bytes.NewReader(lying), "")
	wantReason(t, "a name with another's digest", err, problem.ImageReferenceBad)
	kept(t, d, "a name with another's digest", before)
}

// testHeld: layers that a container is made on are said to be held, and an
// image that is not all here is neither pushed nor exported.
func testHeld(t *testing.T, d *testutil.ContainerdDaemon) {
	engine := open(t, d)
	if err := engine.Create(t.Context(), runtime.Container{ID: "holder", Image: testutil.ImageName, NetNS: netNS(t, d)()}); err != nil {
		t.Fatal(err)
	}
	contents, err := engine.Contents(t.Context())
	if err != nil || len(contents.Images) != 1 || len(contents.Snapshots) != 1 {
		t.Fatalf("Contents() = %+v, %v", contents, err)
	}
	for _, snapshot := range contents.Images[0].Snapshots {
		if !contents.Snapshots[snapshot].Held {
			t.Errorf("snapshot %s is not held: %+v", snapshot, contents)
		}
	}
	if err := engine.Delete(t.Context(), "holder"); err != nil {
		t.Error(err)
	}
	image := testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"lost"}})
	ref := "docker.io/team/lost:latest"
	if _, err := engine.ImportImages(t.Context(), bytes.NewReader(image.Tar(t)), ref); err != nil {
		t.Fatal(err)
	}
	for blob := range image.Blobs {
		if !strings.Contains(d.Ctr(t, "content", "ls", "-q"), blob.String()) || blob == image.Manifest.Digest {
			continue
		}
		if bytes.HasPrefix(image.Blobs[blob], []byte{0x1f, 0x8b}) && !local(t, engine, blob.String()) { // a layer of this image only
			d.Ctr(t, "content", "rm", blob.String())
		}
	}
	_, err = engine.Push(t.Context(), ref, testutil.Registry(t).Host+"/a/b:1", nil, nil)
	wantReason(t, "push", err, problem.ImageIncomplete)
	wantReason(t, "export", engine.ExportImages(t.Context(), []string{ref}, io.Discard), problem.ImageIncomplete)
	if err := engine.DeleteImage(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// local says whether the test image has a blob.
func local(t *testing.T, engine *containerd.Engine, blob string) bool {
	t.Helper()
	contents, err := engine.Contents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range contents.Images {
		if image.Name == testutil.ImageName && slices.Contains(image.Blobs, blob) {
			return true
		}
	}
	return false
}
