package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// buildKind has a table of faults of its own: it needs BuildKit, whose cache
// lies beside what the node holds, and minutes.
const buildKind = "image.build"

// A build is what TestFaultTable is for the other kinds. The first one makes a
// base and fills BuildKit's cache; the table goes through builds that find both.
func TestFaultTableBuild(t *testing.T) {
	if !long() {
		t.Skip("a part of make test-all: REMOTEGPU_TEST_LONG=1")
	}
	testutil.Require(t, testutil.Root, testutil.BuildKit)
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			containerd := testutil.StartContainerd(t, kind)
			address := testutil.StartBuildKit(t, containerd.Address, containerd.Namespace)
			// The node's own network namespace has no way to the mirror of packages.
			f := testDaemonOn(t, containerd, fmt.Sprintf("[buildkit]\naddress = %q\nnetns = \"/proc/%d/ns/net\"\n", address, os.Getpid()))
			f.cached = true
			t.Log(f.Must(t, "image", "build", "desktop-base"))
			f.table(t, faultScenario{
				kind: buildKind, before: nothing, keep: true,
				method: "ImageService/BuildImage", body: `{"request_id":%s,"wait":"90s","source":"desktop-base","tag":"team/desktop:1"}`,
				more: func(tb testing.TB, f *faultNode) {
					tb.Helper()
					if images := f.Must(tb, "image", "ls"); !strings.Contains(images, "team/desktop:1") {
						tb.Errorf("the image is not there:\n%s", images)
					}
					f.Must(tb, "image", "rm", "team/desktop:1")
				},
			})
		})
	}
}
