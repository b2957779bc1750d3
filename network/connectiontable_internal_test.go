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
func TestConnectionTableFull(t *testing.T) {
	t.Parallel()
	const head = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n"
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	row := func(dropped, evicted string) string {
		return "0000a0b1  00000000 00000001 00000000 00000002 00000000 00000000 00000003 00000000 00000000 " + dropped + " " + evicted + " 00000000  00000000 00000000 00000000 00000000\n"
	}
	var h healer
	now := time.Now()
	look := func() { h.lookAtConnections(dir, dir, now) }
	told := func(what string, parts ...string) {
		t.Helper()
		p := h.untracked(now)
		if len(parts) == 0 {
			if p != nil {
				t.Errorf("%s: told as %v", what, p)
			}
			return
		}
		for _, part := range append(parts, "nf_conntrack_max") {
			if p == nil || p.Reason != problem.ConnectionTableFull || !strings.Contains(p.Message+p.Hint, part) {
				t.Errorf("%s: told as %v, without %q", what, p, part)
			}
		}
	}
	look()
	told("without tracking")
	write("nf_conntrack_count", "899\n")
	write("nf_conntrack_max", "1000\n")
	write("nf_conntrack", head+row("0000000f", "0000001f")+row("00000001", "00000002"))
	look()
	told("what was before the daemon")
	write("nf_conntrack", head+row("0000000f", "0000001f")+row("00000002", "00000002"))
	look()
	told("a packet that was dropped although there was room")
	write("nf_conntrack_count", "900\n")
	look()
	told("hardly any room", "900", "1000")
	write("nf_conntrack", head+row("00000010", "0000001f")+row("00000002", "00000002"))
	look()
	write("nf_conntrack_count", "10\n")
	look()
	told("no room a moment ago", "1000", "dropped")
	now = now.Add(fullFor)
	told("long after it")
	write("nf_conntrack", head+row("00000010", "0000001f")+row("00000002", "00000003"))
	look()
	told("connections went early", "1000")
	now = now.Add(fullFor)
	write("nf_conntrack_max", "0\n")
	look()
	told("without a bound")
	write("nf_conntrack", "entries\n")
	look()
	told("of another kernel")
}
