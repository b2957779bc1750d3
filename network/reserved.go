package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/network/port"
)

// Settings below /proc/sys/net of the calling thread's network namespace.
const (
	ephemeralSetting = "ipv4/ip_local_port_range"
	reservedSetting  = "ipv4/ip_local_reserved_ports"
)

// ReservePorts keeps the kernel from giving host ports of the ranges to
// outgoing connections: those that are also ephemeral ports are added to
// net.ipv4.ip_local_reserved_ports, from now on and at every Restore. What was
// added for ranges that are not among them any more is taken out. What is
// there beside is left alone. NETWORK_FAILED.
func (n *Networks) ReservePorts(ctx context.Context, ranges []port.Range) error {
	n.reserving.Lock()
	defer n.reserving.Unlock()
	n.ranges, n.nothingLost = ranges, ""
	return n.reserve(ctx)
}

// reserveAgain does what the last ReservePorts did.
func (n *Networks) reserveAgain(ctx context.Context) error {
	n.reserving.Lock()
	defer n.reserving.Unlock()
	if n.ranges == nil {
		return nil // nobody has asked for it
	}
	return n.reserve(ctx)
}

// reserve changes the setting. n.reserving is held. ReservedFile names the
// ports that are there because of us; it names them before they are there, and
// until after they are gone, so that whoever cleans up finds all of them.
func (n *Networks) reserve(ctx context.Context) error {
	if n.cfg.ReservedFile == "" {
		return nil
	}
	wanted, err := n.wantedReserved()
	if err != nil {
		return failed("reserve host ports", err)
	}
	return n.setReserved(ctx, wanted)
}

// wantedReserved are the ports of the ranges that are ephemeral.
func (n *Networks) wantedReserved() (*portSet, error) {
	ephemeral, err := readPorts(ephemeralSetting)
	if err != nil {
		return nil, err
	}
	wanted := &portSet{}
	for _, r := range n.ranges {
		for p := int(r.First); p <= int(r.Last); p++ {
			wanted[p] = ephemeral[p]
		}
	}
	return wanted, nil
}

// reservationLost are the ports that should be reserved and are not.
func (n *Networks) reservationLost() (string, error) {
	n.reserving.Lock()
	defer n.reserving.Unlock()
	if n.ranges == nil || n.cfg.ReservedFile == "" {
		return "", nil
	}
	ephemeral, err := readSetting(ephemeralSetting)
	if err != nil {
		return "", fmt.Errorf("read ports: %w", err)
	}
	reserved, err := readSetting(reservedSetting)
	if err != nil {
		return "", fmt.Errorf("read ports: %w", err)
	}
	seen := ephemeral + " " + reserved
	if seen == n.nothingLost {
		return "", nil
	}
	wanted, err := n.wantedReserved()
	if err != nil {
		return "", err
	}
	present, err := parsePorts(reserved)
	if err != nil {
		return "", err
	}
	for p := range wanted {
		wanted[p] = wanted[p] && !present[p]
	}
	lost := wanted.String()
	if lost == "" {
		n.nothingLost = seen
	}
	return lost, nil
}

// setReserved has the wanted ports reserved, and of those that are reserved
// because of us no others.
func (n *Networks) setReserved(ctx context.Context, wanted *portSet) error {
	present, err := readPorts(reservedSetting)
	if err != nil {
		return failed("reserve host ports", err)
	}
	ours, err := n.reservedByUs()
	if err != nil {
		return failed("reserve host ports", err)
	}
	target, after, named := *present, portSet{}, *ours
	for p := range target {
		target[p] = present[p] && !ours[p] || wanted[p]
		after[p] = wanted[p] && (ours[p] || !present[p])
		named[p] = ours[p] || after[p]
	}
	if err := n.nameReserved(&named, ours); err != nil {
		return failed("reserve host ports", err)
	}
	if target != *present {
		if err := writeSetting(reservedSetting, target.String()+"\n"); err != nil {
			return failed("reserve host ports", fmt.Errorf("set net.ipv4.ip_local_reserved_ports to %q: %w", target.String(), err))
		}
		n.cfg.Log.InfoContext(ctx, "net.ipv4.ip_local_reserved_ports is changed, so that outgoing connections take no port of a pool",
			"was", present.String(), "is", target.String())
	}
	if err := n.nameReserved(&after, &named); err != nil {
		return failed("reserve host ports", err)
	}
	return nil
}

// reservedByUs are the ports that ReservedFile names.
func (n *Networks) reservedByUs() (*portSet, error) {
	text, err := os.ReadFile(n.cfg.ReservedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &portSet{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which ports were reserved: %w", err)
	}
	return parsePorts(string(text))
}

// nameReserved writes ReservedFile, unless it says so already. Without a port
// there is none.
func (n *Networks) nameReserved(ports, named *portSet) error {
	if *ports == *named {
		return nil
	}
	if (*ports == portSet{}) {
		if err := os.Remove(n.cfg.ReservedFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget which ports were reserved: %w", err)
		}
		return nil
	}
	return atomicfile.Write(n.cfg.ReservedFile, []byte(ports.String()+"\n"), 0o600)
}

// unreserve takes the ports out of the setting that are there because of us.
func (n *Networks) unreserve(ctx context.Context) error {
	if n.cfg.ReservedFile == "" {
		return nil
	}
	n.reserving.Lock()
	defer n.reserving.Unlock()
	n.ranges = nil
	return n.setReserved(ctx, &portSet{})
}

// portSet is a set of ports, as the kernel writes it: "33890-34889,40000".
type portSet [1 << 16]bool

func readPorts(path string) (*portSet, error) {
	text, err := readSetting(path)
	if err != nil {
		return nil, fmt.Errorf("read ports: %w", err)
	}
	if path == ephemeralSetting { // "32768\t60999"
		text = strings.Join(strings.Fields(text), "-")
	}
	return parsePorts(text)
}

func parsePorts(text string) (*portSet, error) {
	found := &portSet{}
	for span := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		if span == "" {
			continue
		}
		from, to, isRange := strings.Cut(span, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, lastErr := strconv.ParseUint(to, 10, 16)
		if err != nil || lastErr != nil {
			return nil, fmt.Errorf("ports %q: %w", span, errors.Join(err, lastErr))
		}
		for p := first; p <= last; p++ {
			found[p] = true
		}
	}
	return found, nil
}

func (s *portSet) String() string {
	var spans []string
	for p := 0; p < len(s); p++ {
		if !s[p] {
			continue
		}
		first := p
		for p+1 < len(s) && s[p+1] {
			p++
		}
		if first == p {
			spans = append(spans, strconv.Itoa(p))
		} else {
			spans = append(spans, fmt.Sprintf("%d-%d", first, p))
		}
	}
	return strings.Join(spans, ",")
}
