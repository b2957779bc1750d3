package gputest_test

import (
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
)

func TestDriver(t *testing.T) {
	gputest.Run(t, func(*testing.T) gputest.Subject {
		driver := gputest.NewDriver(append(gputest.Plain(2), gputest.A100(2, true))...)
		return gputest.Subject{Driver: driver, Happen: func(e gpu.Event) { driver.Happen(e) }, Ail: func(vitals gpu.Vitals) {
			driver.Change(func(devices []gpu.Device) ([]gpu.Device, string) { devices[0].Vitals = vitals; return devices, "" })
		}}
	})
}
