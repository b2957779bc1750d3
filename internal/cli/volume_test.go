package cli_test

import (
	"context"
	"strings"
	"testing"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (f *fake) GetVolume(_ context.Context, r *remotegpuv1.GetVolumeRequest) (*remotegpuv1.GetVolumeResponse, error) {
	return &remotegpuv1.GetVolumeResponse{Volume: &remotegpuv1.Volume{Name: r.GetName(), UsedBy: []string{"01ENV", "01GONE"}}}, nil
}

func (f *fake) DeleteVolume(_ context.Context, r *remotegpuv1.DeleteVolumeRequest) (*remotegpuv1.DeleteVolumeResponse, error) {
	if err := f.none(r.GetName()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteVolumeResponse{Name: r.GetName()}, f.got(r)
}

// People see the names of the environments that use a volume, and programs ids.
func TestVolumeIsUsedByNames(t *testing.T) {
	f := newFake(t)
	f.free = "01GONE"
	if code, stdout, stderr := f.run(t, "volume", "get", "data"); code != 0 || !strings.Contains(stdout, "demo, 01GONE") {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := f.run(t, "-o", "json", "volume", "get", "data"); code != 0 || !strings.Contains(stdout, "01ENV") {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
}
