package gpu_test

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// A GPU that is hot for a moment is given all the same; one that stays hot is
// not, until it has been cool for a while.
func TestHeatPasses(t *testing.T) {
	t.Parallel()
	var heat gpu.Heat
	began := time.Unix(1000, 0)
	for _, step := range []struct {
		second    int
		vitals    gpu.Vitals
		unhealthy bool
	}{
		{0, gpu.Vitals{Temperature: 70}, false},
		{10, gpu.Vitals{Temperature: 95}, false},
		{100, gpu.Vitals{Temperature: 94}, false}, // a break
		{110, gpu.Vitals{Temperature: 96}, false},
		{200, gpu.Vitals{Temperature: 70, Throttled: true}, false},
		{230, gpu.Vitals{Temperature: 96}, true},
		{240, gpu.Vitals{Temperature: 94}, true}, // neither hot nor cool
		{900, gpu.Vitals{Temperature: 91}, true},
		{910, gpu.Vitals{Temperature: 90}, true},
		{1000, gpu.Vitals{Temperature: 91}, true},
		{1010, gpu.Vitals{Temperature: 60}, true},
		{1309, gpu.Vitals{Temperature: 60}, true},
		{1310, gpu.Vitals{Temperature: 60}, false},
		{1320, gpu.Vitals{Temperature: 95}, false},
		{1330, gpu.Vitals{Temperature: 100}, true}, // it is about to switch itself off
		{1340, gpu.Vitals{}, true},                 // one that tells nothing is not kept for good
		{1640, gpu.Vitals{}, false},
	} {
		if step.vitals.Temperature > 0 {
			step.vitals.SlowdownAt, step.vitals.ShutdownAt = 95, 100
		}
		got := heat.Look(&step.vitals, began.Add(time.Duration(step.second)*time.Second), gpu.HotFor, gpu.CoolFor)
		if got.Unhealthy != step.unhealthy || got.Passing != step.unhealthy || got.Since.IsZero() == step.unhealthy {
			t.Errorf("second %d, %+v: %+v", step.second, step.vitals, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		vitals gpu.Vitals
		want   string
	}{
		{gpu.Vitals{Temperature: 94, SlowdownAt: 95}, ""},
		{gpu.Vitals{Temperature: 95, SlowdownAt: 95}, "it is hot: 95 °C, slowed down from 95 °C on"},
		{gpu.Vitals{Temperature: 60, Throttled: true}, "it is hot: 60 °C, its hardware slows it down now"},
		{gpu.Vitals{RemapPending: true}, "rows"},
		{gpu.Vitals{RetirePending: true}, "pages"},
	} {
		got := strings.Join(test.vitals.Warnings(), "; ")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%+v: %q, want %q", test.vitals, got, test.want)
		}
	}
}
