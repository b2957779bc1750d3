package cli_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func TestCareFlags(t *testing.T) {
	f := newFake(t)
	for _, test := range []struct {
		args    []string
		restart *remotegpuv1.RestartPolicy
		check   *remotegpuv1.HealthCheck
	}{
		{nil, nil, nil},
		{[]string{"--restart", "unless-stopped"}, &remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_UNLESS_STOPPED}, nil},
		{
			[]string{"--restart=on-failure:5", "--restart-unhealthy", "--health-http", "8080/ready?x=1", "--health-interval=5s", "--health-retries=2"},
			&remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE, MaxRetries: 5, OnUnhealthy: true},
			&remotegpuv1.HealthCheck{
				Check:    &remotegpuv1.HealthCheck_Http{Http: &remotegpuv1.HealthHTTP{Port: 8080, Path: "/ready?x=1"}},
				Interval: durationpb.New(5e9), Retries: 2,
			},
		},
		{
			[]string{"--health-cmd", "test", "--health-cmd", "-e", "--health-cmd", "/a b", "--health-start-period=1m", "--health-timeout=3s"},
			nil,
			&remotegpuv1.HealthCheck{
				Check:       &remotegpuv1.HealthCheck_Command{Command: &remotegpuv1.HealthCommand{Argv: []string{"test", "-e", "/a b"}}},
				StartPeriod: durationpb.New(60e9), Timeout: durationpb.New(3e9),
			},
		},
		{[]string{"--health-tcp=22"}, nil, &remotegpuv1.HealthCheck{Check: &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{Port: 22}}}},
		{[]string{"--health-desktop"}, nil, &remotegpuv1.HealthCheck{Check: &remotegpuv1.HealthCheck_Desktop{Desktop: &remotegpuv1.HealthDesktop{}}}},
	} {
		code, _, stderr := f.run(t, append([]string{"env", "create", "demo", "--image", "app", "--no-wait"}, test.args...)...)
		request, ok := f.last.(*remotegpuv1.CreateEnvironmentRequest)
		if code != 0 || !ok {
			t.Errorf("%q: code %d %s", test.args, code, stderr)
			continue
		}
		for _, pair := range [][2]proto.Message{{test.restart, request.GetSpec().GetRestart()}, {test.check, request.GetSpec().GetHealthCheck()}} {
			if diff := cmp.Diff(pair[0], pair[1], protocmp.Transform()); diff != "" {
				t.Errorf("%q:\n%s", test.args, diff)
			}
		}
	}
	for _, args := range []string{
		"--restart sometimes", "--restart always:3", "--restart on-failure:0", "--restart-unhealthy", "--health-http /ready",
		"--health-http 70000", "--health-tcp 1 --health-desktop", "--health-interval 5s",
	} {
		if code, _, stderr := f.run(t, append([]string{"env", "create", "demo", "--image", "app"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
}
