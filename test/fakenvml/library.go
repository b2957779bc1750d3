package fakenvml

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Version is the driver's version where a test names none.
const Version = "999.88.77"

// Library is a stand-in that was built.
type Library struct {
	Path string // of libnvidia-ml.so.1
	dir  string
}

// Build builds the stand-in for a version of the driver into a directory, as
// libnvidia-ml.so.VERSION with the link that programs ask for. It lacks the
// symbols that without names.
func Build(tb testing.TB, dir, version string, without ...string) *Library {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	file := "libnvidia-ml.so." + version
	// It may be replaced while a process has it mapped.
	if err := os.WriteFile(filepath.Join(dir, file+".new"), built(tb, version, without), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, file+".new"), filepath.Join(dir, file)); err != nil {
		tb.Fatal(err)
	}
	link := filepath.Join(dir, "libnvidia-ml.so.1")
	_ = os.Remove(link) // of a former version
	if err := os.Symlink(file, link); err != nil {
		tb.Fatal(err)
	}
	return &Library{Path: link, dir: dir}
}

var cache = struct { //nolint:gochecknoglobals // a build takes a moment, and tests need few
	sync.Mutex
	libraries map[string][]byte
}{libraries: map[string][]byte{}}

// built is the stand-in for a version, compiled once.
func built(tb testing.TB, version string, without []string) []byte {
	tb.Helper()
	cache.Lock()
	defer cache.Unlock()
	key := version + " " + strings.Join(without, " ")
	if library := cache.libraries[key]; library != nil {
		return library
	}
	sources, err := filepath.Glob(filepath.Join(testutil.Repository(), "test/fakenvml/library/*.c"))
	if err != nil || len(sources) == 0 {
		tb.Fatalf("no sources of the stand-in: %v", err)
	}
	out := filepath.Join(tb.TempDir(), "library.so")
	args := []string{
		"-shared", "-fPIC", "-O1", "-Wall", "-Wno-deprecated-declarations", "-Wl,-soname,libnvidia-ml.so.1", "-Wl,-Bsymbolic",
		"-DNVML_NO_UNVERSIONED_FUNC_DEFS", `-DVERSION="` + version + `"`, "-I", headers(tb), "-o", out,
	}
	for _, symbol := range without {
		args = append(args, "-D"+symbol+"=without_"+symbol)
	}
	if text, err := exec.CommandContext(tb.Context(), "gcc", append(args, sources...)...).CombinedOutput(); err != nil {
		tb.Fatalf("build the stand-in of NVML: %v\n%s", err, text)
	}
	library, err := os.ReadFile(out)
	if err != nil {
		tb.Fatal(err)
	}
	cache.libraries[key] = library
	return library
}

// headers is where go-nvml has nvml.h.
func headers(tb testing.TB) string {
	tb.Helper()
	list := exec.CommandContext(tb.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml")
	list.Dir = testutil.Repository()
	dir, err := list.Output()
	if err != nil {
		tb.Fatalf("find go-nvml: %v", err)
	}
	return filepath.Join(string(bytes.TrimSpace(dir)), "pkg/nvml")
}

// Log is what calls changed that the stand-in only writes down, line by line.
func (l *Library) Log(tb testing.TB) []string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "fakenvml.log"))
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}
