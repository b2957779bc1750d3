package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// gpuCheckImage is an image with gpucheck and the libraries of this host that
// it, and a driver's libraries, are linked to or open; no driver is in it.
func gpuCheckImage(tb testing.TB) *testutil.OCIImage {
	tb.Helper()
	program := filepath.Join(tb.TempDir(), "gpucheck")
	testutil.Sh(tb, "gcc -Wall -O1 -o "+program+" testdata/gpucheck.c -ldl -lm -lpthread -lrt")
	files := map[string]string{"/usr/bin/gpucheck": read(tb, program)}
	wanted := []string{program}
	linked := regexp.MustCompile(`(?m)(/\S+)(?: \(0x|$)`)
	for _, pattern := range []string{"libEGL.so.1", "libGLdispatch.so.0", "libvulkan.so.1", "libstdc++.so.6", "libX11.so.6", "libXext.so.6", "libxcb.so.1"} {
		found, err := filepath.Glob("/usr/lib/*-linux-gnu/" + pattern)
		if err != nil {
			tb.Fatal(err)
		}
		wanted = append(wanted, found...)
	}
	for _, file := range wanted {
		if file != program {
			files[file] = read(tb, file)
		}
		out, err := exec.CommandContext(tb.Context(), "ldd", file).Output()
		if err != nil {
			tb.Fatalf("ldd %s: %v", file, err)
		}
		for _, match := range linked.FindAllStringSubmatch(string(out), -1) {
			files[match[1]] = read(tb, match[1])
		}
	}
	files["/etc/ld.so.conf.d/here.conf"] = "/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n/lib/aarch64-linux-gnu\n/usr/lib/aarch64-linux-gnu\n"
	files["/etc/ld.so.conf"] = "include /etc/ld.so.conf.d/*.conf\n"
	return testutil.TestImage(tb, testutil.ImageOptions{Name: "docker.io/remotegpu/gpucheck:latest", Files: files})
}

func read(tb testing.TB, path string) string {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

// What the stand-ins of other tests stand in for: a real GPU, its driver and
// the toolkit. An environment computes, draws and encodes on its own GPU, and
// on no other.
func TestGPUHardware(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd, testutil.Programs, testutil.GPU)
	t.Run("driver", func(t *testing.T) {
		gputest.Run(t, func(t *testing.T) gputest.Subject {
			t.Helper()
			client := helper.New(helper.Config{
				Program: testutil.Program("remotegpud"), Settings: nvidia.Config{Hook: hookPath(t)},
			})
			t.Cleanup(func() { _ = client.Close() }) // its processes end with it
			return gputest.Subject{Driver: client}
		})
	})
	n := Start(t, testutil.Containerd, "[gpu]\nhook = \""+hookPath(t)+"\"\n")
	n.Containerd.Import(t, gpuCheckImage(t))
	var free []string
	for _, g := range n.gpus(t).GPUs {
		if !g.MIG && strings.HasPrefix(g.UUID, "GPU-") && len(free) < 2 {
			free = append(free, g.UUID)
		}
	}
	if len(free) == 0 {
		t.Fatal("no GPU is whole: turn MIG off on one")
	}
	for i, uuid := range free {
		name := []string{"first", "second"}[i]
		n.Must(t, "env", "create", name, "--image", "remotegpu/gpucheck", "--gpus", "uuid="+uuid,
			"--gpu-capabilities", "compute,utility,graphics,video")
		for _, library := range []string{"nvml", "cuda"} {
			if got := strings.TrimSpace(n.Must(t, "env", "exec", name, "--", "gpucheck", library)); got != uuid {
				t.Errorf("%s finds the GPUs %q in an environment with %s", library, got, uuid)
			}
		}
		for _, library := range []string{"egl", "vulkan"} {
			for renderer := range strings.Lines(n.Must(t, "env", "exec", name, "--", "gpucheck", library)) {
				if !strings.Contains(renderer, "NVIDIA") {
					t.Errorf("%s draws with %s", library, renderer)
				}
			}
		}
		if got := n.Must(t, "env", "exec", name, "--", "gpucheck", "nvenc"); strings.Count(got, "codecs") != 1 {
			t.Errorf("nvenc: %q", got)
		}
	}
	// After a stop and a start it computes as before.
	n.Must(t, "env", "stop", "first")
	n.Must(t, "env", "start", "first")
	if got := strings.TrimSpace(n.Must(t, "env", "exec", "first", "--", "gpucheck", "cuda")); got != free[0] {
		t.Errorf("after a stop and a start: %q", got)
	}
	n.Must(t, "env", "create", "none", "--image", "remotegpu/gpucheck")
	if out, _, code := n.CLI(t, "env", "exec", "none", "--", "gpucheck", "cuda"); code == 0 {
		t.Errorf("an environment without a GPU computes: %s", out)
	}
	for _, name := range []string{"first", "second", "none"} {
		if _, _, code := n.CLI(t, "env", "get", name); code == 0 {
			n.Must(t, "env", "rm", "--force", "--grace", "0s", name)
		}
	}
	Eventually(t, "the GPUs to be free", func() bool {
		for _, g := range n.gpus(t).GPUs {
			if len(g.Leases) > 0 {
				return false
			}
		}
		return true
	})
	n.NothingLeft(t)
}

func hookPath(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath("nvidia-cdi-hook")
	if err != nil {
		tb.Fatal(err)
	}
	if path, err = filepath.Abs(path); err != nil {
		tb.Fatal(err)
	}
	return path
}

// The program that looks at GPUs works where it can without one: in a
// container without a driver it names the library that is missing.
func TestGPUCheck(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd, testutil.Programs)
	n := Start(t, testutil.Containerd, "")
	n.Containerd.Import(t, gpuCheckImage(t))
	n.Must(t, "env", "create", "check", "--image", "remotegpu/gpucheck")
	for library, missing := range map[string]string{"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1", "nvenc": "libnvidia-encode.so.1"} {
		if _, errs, code := n.CLI(t, "env", "exec", "check", "--", "gpucheck", library); code != 1 || !strings.Contains(errs, missing) {
			t.Errorf("%s: exit %d, %s", library, code, errs)
		}
	}
}
