package cli_test

import (
	"strings"
	"testing"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// Whether a limit of the writable layer is in force is shown wherever the
// limit is.
func TestDiskLimitIsShown(t *testing.T) {
	f := newFake(t)
	f.env.Spec.Resources.DiskBytes = 20 << 30
	for _, test := range []struct {
		limit *remotegpuv1.DiskLimit
		want  string
	}{
		{nil, ""},
		{&remotegpuv1.DiskLimit{Enforced: true, Bytes: 20 << 30}, "Disk limit:      20 GiB, enforced"},
		{&remotegpuv1.DiskLimit{Reason: "filesystem tmpfs of /x has no project quotas"}, "not enforced, because filesystem tmpfs of /x has no project quotas"},
	} {
		f.env.DiskLimit = test.limit
		code, stdout, _ := f.run(t, "env", "get", "demo")
		if code != 0 || !strings.Contains(stdout, "20 GiB disk") || strings.Contains(stdout, "Disk limit") != (test.limit != nil) ||
			!strings.Contains(strings.Join(strings.Fields(stdout), " "), strings.Join(strings.Fields(test.want), " ")) {
			t.Errorf("%v: code %d\n%s", test.limit, code, stdout)
		}
	}
	for _, test := range []struct {
		quota *remotegpuv1.DiskQuota
		want  string
	}{
		{&remotegpuv1.DiskQuota{Supported: true, Method: "project quota", Filesystem: "xfs"}, "project quota on xfs"},
		{&remotegpuv1.DiskQuota{Filesystem: "ext4", Reason: "filesystem ext4 of / is mounted without prjquota"}, "not enforceable, because filesystem ext4 of / is mounted without prjquota"},
	} {
		f.quota = test.quota
		if code, stdout, _ := f.run(t, "node", "info"); code != 0 || !strings.Contains(stdout, test.want) {
			t.Errorf("code %d\n%s", code, stdout)
		}
	}
}
