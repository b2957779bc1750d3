package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// White-box: to fill the kernel's table would take it from the whole machine.
func TestNeighbourTableFull(t *testing.T) {
	t.Parallel()
	const head = "entries,  allocs,   destroys, hash_grows, lookups,  hits,     res_failed, rcv_probes_mcast, rcv_probes_ucast, periodic_gc_runs, forced_gc_runs, unresolved_discards, table_fulls\n"
	dir := t.TempDir()
	write := func(name string, rows ...string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(head, ",", "")+strings.Join(rows, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	row := func(fulls string) string {
		return "00000003  00000011 00000010 00000000 0000a1b2 000000ff 00000000 00000000 00000000 00000123 00000000 00000000 " + fulls
	}
	var h healer
	now := time.Now()
	told := func(at time.Time) *problem.Problem { return h.overflown(at) }
	h.lookAtNeighbours(dir, now) // there are no counters
	write("arp_cache", row("0000000f"), row("00000001"))
	h.lookAtNeighbours(dir, now)
	if p := told(now); p != nil {
		t.Errorf("what was before the daemon is told: %v", p)
	}
	write("arp_cache", row("0000000f"), row("00000003"))
	h.lookAtNeighbours(dir, now)
	if p := told(now); p == nil || p.Reason != problem.NeighbourTableFull || !strings.Contains(p.Message, "net.ipv4.") || strings.Contains(p.Message, "ipv6") {
		t.Errorf("a full table is told as %v", p)
	}
	h.lookAtNeighbours(dir, now.Add(time.Minute))
	if p := told(now.Add(fullFor)); p != nil {
		t.Errorf("long after it: %v", p)
	}
	for _, text := range []string{"", "entries\n00000001\n", "table_fulls\nxyz\n"} {
		if _, ok := sumColumn([]byte(text), "table_fulls"); ok {
			t.Errorf("%q is read", text)
		}
	}
}
