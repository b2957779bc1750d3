package cli_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// TestNetworkFlags: what the flags say of a new environment, and what they
// change of one that has a policy.
func TestNetworkFlags(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	network := func(cidr string) *remotegpuv1.EgressDestination { return &remotegpuv1.EgressDestination{Cidr: cidr} }
	web := &remotegpuv1.EgressDestination{Cidr: "192.168.7.20", FirstPort: 5000, LastPort: 5000, Protocol: remotegpuv1.Protocol_PROTOCOL_TCP}
	span := &remotegpuv1.EgressDestination{Cidr: "10.0.0.0/8", FirstPort: 1, LastPort: 9}
	for _, test := range []struct {
		args string
		want *remotegpuv1.NetworkPolicy
	}{
		{"", nil},
		{"--egress open", &remotegpuv1.NetworkPolicy{Egress: remotegpuv1.EgressMode_EGRESS_MODE_OPEN}},
		{
			"--egress allow --allow 198.51.100.0/24 --allow 192.168.7.20:5000/tcp --allow 10.0.0.0/8:1-9",
			&remotegpuv1.NetworkPolicy{
				Egress: remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST, Allow: []*remotegpuv1.EgressDestination{network("198.51.100.0/24"), web, span},
			},
		},
		{
			"--allow 2001:db8::/32 --allow [2001:DB8::7]:5000/tcp --allow [2001:db8::7]:5000/tcp --allow [fd00::1]",
			&remotegpuv1.NetworkPolicy{Allow: []*remotegpuv1.EgressDestination{
				network("2001:db8::/32"), {Cidr: "2001:DB8::7", FirstPort: 5000, LastPort: 5000, Protocol: remotegpuv1.Protocol_PROTOCOL_TCP}, network("fd00::1"),
			}},
		},
		{
			"--egress none --group web --group db --bandwidth-in 1.5G --bandwidth-out 500k",
			&remotegpuv1.NetworkPolicy{
				Egress: remotegpuv1.EgressMode_EGRESS_MODE_NONE, Groups: []string{"web", "db"},
				IngressBitsPerSecond: 1_500_000_000, EgressBitsPerSecond: 500_000,
			},
		},
	} {
		code, _, stderr := f.run(t, append([]string{"env", "create", "demo", "--image", "app"}, strings.Fields(test.args)...)...)
		if code != 0 {
			t.Errorf("%s: code %d, %s", test.args, code, stderr)
			continue
		}
		created, _ := f.last.(*remotegpuv1.CreateEnvironmentRequest)
		if diff := cmp.Diff(test.want, created.GetSpec().GetNetwork(), protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
	}
	f.env.Spec.Network = &remotegpuv1.NetworkPolicy{
		Egress: remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST, Groups: []string{"web"}, EgressBitsPerSecond: 64000,
		Allow: []*remotegpuv1.EgressDestination{network("198.51.100.7/32"), web},
	}
	for _, test := range []struct {
		args string
		want *remotegpuv1.NetworkPolicy
	}{
		{
			"--allow 10.0.0.0/8:1-9 --allow 192.168.7.20:5000/tcp --disallow 198.51.100.7 --group db",
			&remotegpuv1.NetworkPolicy{
				Egress: remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST, Groups: []string{"web", "db"}, EgressBitsPerSecond: 64000,
				Allow: []*remotegpuv1.EgressDestination{web, span},
			},
		},
		{
			"--egress none --ungroup web --bandwidth-out 0 --bandwidth-in 100M",
			&remotegpuv1.NetworkPolicy{Egress: remotegpuv1.EgressMode_EGRESS_MODE_NONE, IngressBitsPerSecond: 100_000_000},
		},
	} {
		code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(test.args)...)...)
		if code != 0 {
			t.Errorf("%s: code %d, %s", test.args, code, stderr)
			continue
		}
		update, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
		if diff := cmp.Diff(test.want, update.GetSpec().GetNetwork(), protocmp.Transform()); diff != "" || update.GetEtag() != "3" {
			t.Errorf("%s, etag %q: %s", test.args, update.GetEtag(), diff)
		}
		if paths := update.GetUpdateMask().GetPaths(); len(paths) != 1 || paths[0] != "spec.network" {
			t.Errorf("%s: fields %q", test.args, paths)
		}
	}
	for args, warned := range map[string]bool{
		"--egress open": true, "--egress open --disallow 198.51.100.7 --disallow 192.168.7.20:5000/tcp --allow 10.1.1.1": false,
		"--egress none": false, "--allow 10.1.1.1": false,
	} {
		code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(args)...)...)
		if got := strings.Contains(stderr, "stays allowed to reach 198.51.100.7, 192.168.7.20:5000/tcp"); code != 0 || got != warned {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	for _, args := range []string{
		"--egress some", "--allow 10.0.0.1:0", "--allow 10.0.0.1:9-8", "--allow :80", "--allow [2001:db8::1", "--allow [2001:db8::1]:x", "--allow 10.0.0.1:x", "--disallow 10.9.9.9",
		"--ungroup absent", "--bandwidth-in fast", "--bandwidth-out -1", "--bandwidth-out 0x10",
	} {
		if code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	f.env.Spec.Network.IngressBitsPerSecond = 1_500_000_000
	_, stdout, _ := f.run(t, "env", "get", "demo")
	for _, row := range []string{"allow", "198.51.100.7", "192.168.7.20:5000/tcp", "web", "64 kbit/s", "1.5 Gbit/s"} {
		if !strings.Contains(stdout, row) {
			t.Errorf("env get does not show %q:\n%s", row, stdout)
		}
	}
}
