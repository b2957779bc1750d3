package network

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// The kernel tracks the connections of all environments and of the host in one
// table. When that is full, what opens one more is dropped, for everybody. Its
// bound (net.netfilter.nf_conntrack_max) is the machine's, as is the memory that
// it takes: it is told, not set.

// connectionSettings is where the bound and the number of connections are.
const connectionSettings = "/proc/sys/net/netfilter"

// nearlyFull is the share of the bound, in percent, from which on it is told.
const nearlyFull = 90

// connectionTable is what is known of that table.
type connectionTable struct {
	count, bound uint64
	counted      bool
	dropped      uint64    // packets, as last read, for which there was no room or may have been none
	evicted      uint64    // connections, as last read, that went so that there was room
	at           time.Time // when the table was found full last; zero: never since the daemon began
}

// lookAtConnections reads how full the table is and whether it was full since
// the last time. Without tracking there is nothing to read.
func (h *healer) lookAtConnections(settings, stats string, now time.Time) {
	count, okCount := readNumber(filepath.Join(settings, "nf_conntrack_count"))
	bound, okBound := readNumber(filepath.Join(settings, "nf_conntrack_max"))
	h.mu.Lock()
	defer h.mu.Unlock()
	known := &h.connections
	known.count, known.bound = count, bound
	if !okCount || !okBound {
		known.count, known.bound = 0, 0
	}
	text, err := os.ReadFile(filepath.Join(stats, "nf_conntrack"))
	if err != nil {
		return // a kernel without CONFIG_NF_CONNTRACK_PROCFS counts for nobody
	}
	dropped, okDropped := sumColumn(text, "drop")
	evicted, okEvicted := sumColumn(text, "early_drop")
	if !okDropped || !okEvicted {
		return
	}
	// Packets are dropped for other reasons, too; connections never go early for another.
	if known.counted && (evicted > known.evicted || dropped > known.dropped && known.nearlyFull()) {
		known.at = now
	}
	known.counted, known.dropped, known.evicted = true, dropped, evicted
}

func readNumber(path string) (number uint64, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	number, err = strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	return number, err == nil
}

// nearlyFull tells whether the table was when it was looked at. A bound of 0 is
// none.
func (c *connectionTable) nearlyFull() bool { return c.bound > 0 && c.count*100 >= c.bound*nearlyFull }

// untracked is the condition that connections are refused, or will soon be, for
// want of room, nil when there is room. The caller holds mu.
func (h *healer) untracked(now time.Time) *problem.Problem {
	var p *problem.Problem
	switch c := &h.connections; {
	case c.bound == 0: // it has none by now
		return nil
	case !c.at.IsZero() && now.Sub(c.at) < fullFor:
		p = problem.New(problem.ConnectionTableFull, "the host tracked as many connections as it may, %d, a short while ago: new ones are dropped, or old ones forgotten", c.bound)
	case c.nearlyFull():
		p = problem.New(problem.ConnectionTableFull, "the host tracks %d connections of at most %d: when there is no room, new ones are dropped", c.count, c.bound)
	default:
		return nil
	}
	return p.WithHint("Find out who opens so many: conntrack -L. Then raise net.netfilter.nf_conntrack_max in /etc/sysctl.d.")
}
