package network

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// The kernel keeps the neighbours of all interfaces in one table for each address
// family, whose bound is the host's (net.ipv4.neigh.default.gc_thresh3, 1024
// unless somebody sets it): that is the administrator's, and others' namespaces
// share it. Environments do not count towards it (ensureNeighbours), but what
// else fills it keeps the host from its routers and servers, so it is told.

// kernelStats is where the kernel counts, neighbours in the host's own namespace
// only.
const kernelStats = "/proc/net/stat"

// fullFor is for how long it is told that a table was full.
const fullFor = 10 * time.Minute

// neighbourTables are the tables' names there and in settings.
var neighbourTables = []struct{ file, family string }{{"arp_cache", "ipv4"}, {"ndisc_cache", "ipv6"}} //nolint:gochecknoglobals // a constant but for its type

// neighbourTable is what is known of one table.
type neighbourTable struct {
	counted bool
	fulls   uint64    // how often it was full, as last read
	at      time.Time // when that grew last; zero: never since the daemon began
}

// lookAtNeighbours reads how often the tables were full.
func (h *healer) lookAtNeighbours(dir string, now time.Time) {
	for i, table := range neighbourTables {
		text, err := os.ReadFile(filepath.Join(dir, table.file))
		if err != nil {
			continue // in a namespace there is none
		}
		fulls, ok := sumColumn(text, "table_fulls") // since Linux 4.4
		if !ok {
			continue
		}
		h.mu.Lock()
		known := &h.neighbours[i]
		if known.counted && fulls > known.fulls {
			known.at = now
		}
		known.counted, known.fulls = true, fulls
		h.mu.Unlock()
	}
}

// sumColumn sums up a column of a file in /proc/net/stat: hexadecimal numbers
// with a line for each CPU below their names (neigh_stat_seq_show in
// net/core/neighbour.c, ct_cpu_seq_show in net/netfilter/nf_conntrack_standalone.c).
func sumColumn(text []byte, name string) (sum uint64, ok bool) {
	head, rows, _ := bytes.Cut(text, []byte("\n"))
	column := slices.Index(strings.Fields(string(head)), name)
	if column < 0 {
		return 0, false
	}
	for line := range strings.Lines(string(rows)) {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		count, err := strconv.ParseUint(fields[column], 16, 64)
		if err != nil {
			return 0, false
		}
		sum += count
	}
	return sum, true
}

// overflown is the condition that a table was full lately, nil when none was.
// The caller holds mu.
func (h *healer) overflown(now time.Time) *problem.Problem {
	var full []string
	for i, table := range neighbourTables {
		if at := h.neighbours[i].at; !at.IsZero() && now.Sub(at) < fullFor {
			full = append(full, fmt.Sprintf("net.%s.neigh.default.gc_thresh3", table.family))
		}
	}
	if len(full) == 0 {
		return nil
	}
	named := strings.Join(full, " and ")
	return problem.New(problem.NeighbourTableFull, "the host had more neighbours than %s allows: it may not reach others", named).
		WithHint("See whom it asks for: ip neigh. Then raise %s, gc_thresh2 and gc_thresh1 in /etc/sysctl.d. Environments do not count towards it.", named)
}
