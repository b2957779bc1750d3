package port_test

import (
	"strconv"
	"testing"

	"github.com/remotegpu/remotegpu/network/port"
)

// BenchmarkAllocate takes five ports for one environment, as a create does.
func BenchmarkAllocate(b *testing.B) {
	s := open(b)
	pool := newPool(b, s, port.BindProbe)
	var requests []port.Request
	for range 5 {
		requests = append(requests, port.Request{Service: port.Custom, Internal: 80})
	}
	b.ResetTimer()
	for i := range b.N {
		env := "env-" + strconv.Itoa(i)
		if _, err := allocate(b, pool, s, env, requests...); err != nil {
			b.Fatal(err)
		}
		if i%1000 == 999 {
			b.StopTimer()
			for j := range 1000 {
				if _, err := pool.Release(b.Context(), "env-"+strconv.Itoa(i-j)); err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
		}
	}
}
