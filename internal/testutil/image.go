package testutil

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageName is the name that TestImage has unless told otherwise.
const ImageName = "docker.io/remotegpu/test:latest"

// ImageOptions changes what TestImage makes. Zero fields mean the default.
type ImageOptions struct {
	Name         string            // full reference
	Labels       map[string]string // of the configuration
	User         string
	StopSignal   string
	Cmd          []string             // default: sleep
	Architecture string               // default: this machine's
	Files        map[string]string    // additional files by absolute path, mode 0644; ELF files have 0755
	Env          []string             // additional variables, "NAME=value"
	Layers       int                  // default: 1; the others have a file each
	Upper        []string             // more layers: each a file of this name below /upper, that holds it
	Change       func(*ocispec.Image) // changes the configuration last
}

// OCIImage is an image that exists only in memory.
type OCIImage struct {
	Name     string
	Manifest ocispec.Descriptor
	Blobs    map[digest.Digest][]byte // layer, configuration and manifest
}

// TestImage makes an image of one static program, testprog, as /bin/testprog
// (also as true and cat), with users root, app (1000, in group extra, 2000)
// and other (1001), the variable IMAGE_VARIABLE and the entrypoint testprog.
func TestImage(tb testing.TB, options ImageOptions) *OCIImage {
	tb.Helper()
	image := &OCIImage{Name: options.Name, Blobs: make(map[digest.Digest][]byte)}
	if image.Name == "" {
		image.Name = ImageName
	}
	if options.Architecture == "" {
		options.Architecture = goruntime.GOARCH
	}
	if options.Cmd == nil {
		options.Cmd = []string{"sleep"}
	}
	var layers []ocispec.Descriptor
	var diffs []digest.Digest
	plains := [][]byte{layer(tb, options.Files)}
	for _, name := range options.Upper {
		plains = append(plains, upper(tb, name))
	}
	for _, plain := range plains {
		layers = append(layers, image.add(ocispec.MediaTypeImageLayerGzip, compress(tb, plain)))
		diffs = append(diffs, digest.FromBytes(plain))
	}
	for i := 1; i < options.Layers; i++ {
		var more bytes.Buffer
		writer := tar.NewWriter(&more)
		writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("layer-%d", i), Mode: 0o644}, nil)
		must(tb, "close layer", writer.Close)
		diffs = append(diffs, digest.FromBytes(more.Bytes()))
		layers = append(layers, image.add(ocispec.MediaTypeImageLayer, more.Bytes()))
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: options.Architecture},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffs},
		Config: ocispec.ImageConfig{
			Entrypoint: []string{"/bin/testprog"}, Cmd: options.Cmd, User: options.User, StopSignal: options.StopSignal,
			Env: append([]string{
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"IMAGE_VARIABLE=from image",
			}, options.Env...),
			Labels: options.Labels,
		},
	}
	if options.Change != nil {
		options.Change(&config)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: image.add(ocispec.MediaTypeImageConfig, encode(tb, config)),
		Layers: layers,
	}
	image.Manifest = image.add(ocispec.MediaTypeImageManifest, encode(tb, manifest))
	image.Manifest.Platform = &config.Platform
	return image
}

func (i *OCIImage) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	i.Blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Tar is the image as an OCI layout, as "ctr images import" takes it.
func (i *OCIImage) Tar(tb testing.TB) []byte {
	tb.Helper()
	named := i.Manifest
	named.Annotations = map[string]string{
		"io.containerd.image.name":           i.Name,
		ocispec.AnnotationRefName:            "latest",
		"org.opencontainers.image.base.name": i.Name,
	}
	files := map[string][]byte{
		ocispec.ImageLayoutFile: encode(tb, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
		ocispec.ImageIndexFile: encode(tb, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{named},
		}),
	}
	for d, data := range i.Blobs {
		files["blobs/sha256/"+d.Encoded()] = data
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for name, data := range files {
		writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data)
	}
	must(tb, "close archive", writer.Close)
	return buffer.Bytes()
}

// compressed are the layers that were compressed before, by their digest: most
// tests begin with the same image, and under the race detector it takes a second.
var compressed sync.Map

// compress is a layer under gzip. Nobody may change what it returns.
func compress(tb testing.TB, plain []byte) []byte {
	tb.Helper()
	key := digest.FromBytes(plain)
	if known, ok := compressed.Load(key); ok {
		if zipped, ok := known.([]byte); ok {
			return zipped
		}
	}
	var zipped bytes.Buffer
	must(tb, "compress", func() error {
		writer, err := gzip.NewWriterLevel(&zipped, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if _, err := writer.Write(plain); err != nil {
			return err
		}
		return writer.Close()
	})
	compressed.Store(key, zipped.Bytes())
	return zipped.Bytes()
}

// upper is a layer of one file.
func upper(tb testing.TB, name string) []byte {
	tb.Helper()
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeDir, Name: "upper/", Mode: 0o755}, nil)
	writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: "upper/" + name, Mode: 0o644}, []byte(name))
	must(tb, "close layer", writer.Close)
	return buffer.Bytes()
}

func layer(tb testing.TB, files map[string]string) []byte {
	tb.Helper()
	program, err := os.ReadFile(TestProgram(tb))
	if err != nil {
		tb.Fatalf("read testprog: %v", err)
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, dir := range []string{"bin", "etc", "root", "home", "home/app", "run", "var", "var/log", "proc", "sys", "dev"} {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}
		if dir == "home/app" {
			header.Uid, header.Gid = 1000, 1000
		}
		writeTar(tb, writer, header, nil)
	}
	writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: "bin/testprog", Mode: 0o755}, program)
	for _, name := range []string{"true", "cat"} {
		writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "testprog", Mode: 0o777}, nil)
	}
	all := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/testprog\napp:x:1000:1000::/home/app:/bin/testprog\n" +
			"other:x:1001:1001::/:/bin/testprog\n",
		"/etc/group": "root:x:0:\napp:x:1000:\nother:x:1001:\nextra:x:2000:app\n",
	}
	maps.Copy(all, files)
	for _, path := range slices.Sorted(maps.Keys(all)) { // the same files make the same layer
		mode := int64(0o644)
		if strings.HasPrefix(all[path], "\x7fELF") {
			mode = 0o755
		}
		writeTar(tb, writer, &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: mode}, []byte(all[path]))
	}
	must(tb, "close layer", writer.Close)
	return buffer.Bytes()
}

func writeTar(tb testing.TB, writer *tar.Writer, header *tar.Header, data []byte) {
	tb.Helper()
	header.Size = int64(len(data))
	header.ModTime = time.Unix(1e9, 0)
	must(tb, "write archive", func() error {
		if err := writer.WriteHeader(header); err != nil {
			return err
		}
		_, err := writer.Write(data)
		return err
	})
}

// testProgramVariable names a testprog that was built before, for machines
// without Go and the source.
const testProgramVariable = "REMOTEGPU_TEST_PROGRAM"

// TestProgram builds testprog, once for each state of its source, and returns
// its path. REMOTEGPU_TEST_PROGRAM names one that is there already.
func TestProgram(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv(testProgramVariable); path != "" {
		return path
	}
	dir := filepath.Join(Repository(), "internal", "testutil", "testprog")
	hash := sha256.New()
	hash.Write([]byte(goruntime.Version() + goruntime.GOARCH))
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(sources) == 0 {
		tb.Fatalf("find testprog's source: %v", err)
	}
	for _, source := range sources {
		data, err := os.ReadFile(source)
		if err != nil {
			tb.Fatalf("read testprog's source: %v", err)
		}
		hash.Write(data)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	path := filepath.Join(cache, "remotegpu-test", "testprog-"+hex.EncodeToString(hash.Sum(nil))[:16])
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatalf("make cache: %v", err)
	}
	built := filepath.Join(tb.TempDir(), "testprog")
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", built, "./internal/testutil/testprog")
	cmd.Dir = Repository()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build testprog: %v\n%s", err, out)
	}
	program, err := os.ReadFile(built)
	if err != nil {
		tb.Fatalf("read testprog: %v", err)
	}
	// Another test may be here at the same time: whoever renames last wins,
	// and both have built the same.
	file, err := os.CreateTemp(filepath.Dir(path), "new-*")
	if err != nil {
		tb.Fatalf("keep testprog: %v", err)
	}
	must(tb, "keep testprog", func() error {
		if _, err := file.Write(program); err != nil {
			return err
		}
		if err := file.Chmod(0o755); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
		return os.Rename(file.Name(), path)
	})
	return path
}

func encode(tb testing.TB, value any) []byte {
	tb.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		tb.Fatalf("encode: %v", err)
	}
	return data
}

func must(tb testing.TB, what string, do func() error) {
	tb.Helper()
	if err := do(); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}
