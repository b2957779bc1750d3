package build_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/build/buildkit"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// BuildKit sets the record of a name anew, without its labels. It has a name
// beside the tag to do so with.
func TestBuildKitLeavesTag(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd2, testutil.BuildKit)
	d := testutil.StartContainerd(t, testutil.Containerd2)
	d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
	const tag, label = testutil.ImageName, "io.cri-containerd.pinned=pinned"
	d.Ctr(t, "images", "label", tag, label)
	store, name := ctrImages{t, d}, runtime.BuildName(tag)
	before, err := store.Image(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	backend := buildkit.New(buildkit.Config{Address: testutil.StartBuildKit(t, d.Address, d.Namespace)})
	for range 2 { // the second finds what the first has left
		digest, err := backend.Build(t.Context(), build.Job{
			Source: fstest.MapFS{"Dockerfile": {Data: []byte("FROM scratch\nCOPY Dockerfile /\n")}}, Tag: tag, Name: name,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if image, err := store.Image(t.Context(), name); err != nil || image.Digest != digest || digest == before.Digest {
			t.Errorf("image %s is %+v, %v, want %s", name, image, err, digest)
		}
	}
	if image, err := store.Image(t.Context(), tag); err != nil || image.Digest != before.Digest {
		t.Errorf("image %s is %+v, %v, want still %+v", tag, image, err, before)
	}
	if record := d.Ctr(t, "images", "ls", "name=="+tag); !strings.Contains(record, label) {
		t.Errorf("the pin is gone: %s", record)
	}
}
