package netbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// missPort is a service of the host that no rule is about.
const missPort = 7001

// path is a host with rules, a client on its network and one environment
// behind it.
type path struct {
	name        string
	host        *sandbox.Host
	environment *sandbox.NetNS
	listeners   []int
}

// layouts are how the same ports are published, by column.
var layouts = []struct {
	name  string
	apply func(ctx context.Context, all []firewall.Mapping) error
}{
	{columns.RemoteGPU, func(ctx context.Context, all []firewall.Mapping) error { return publish(ctx, "nft", all) }},
	{report.OursLegacy, func(ctx context.Context, all []firewall.Mapping) error { return publish(ctx, "legacy", all) }},
	{report.Map, publishMap},
	{report.Flat, func(ctx context.Context, all []firewall.Mapping) error {
		return restore(ctx, "nft", "*nat\n:BENCH - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j BENCH\n"+flatRules("BENCH", all)+"COMMIT\n")
	}},
	{report.OneRule, func(ctx context.Context, all []firewall.Mapping) error { return publishOne(ctx, "nft", all) }},
	{report.OneLegacy, func(ctx context.Context, all []firewall.Mapping) error { return publishOne(ctx, "legacy", all) }},
}

func publish(ctx context.Context, backend string, all []firewall.Mapping) error {
	f, err := newFirewall(backend)
	if err != nil {
		return err
	}
	return f.Set(ctx, firewall.Desired{Mappings: all})
}

func publishOne(ctx context.Context, backend string, all []firewall.Mapping) error {
	return restore(ctx, backend, "*nat\n-A PREROUTING "+strings.Join(flatRule(all[len(all)-1]), " ")+"\nCOMMIT\n")
}

func publishMap(ctx context.Context, all []firewall.Mapping) error {
	var b strings.Builder
	b.WriteString("table ip bench {\n map ports { type inet_service : ipv4_addr . inet_service; elements = {\n")
	for _, m := range all {
		fmt.Fprintf(&b, "%d : %s . %d,\n", m.HostPort, m.To.Addr(), m.To.Port())
	}
	b.WriteString("} }\n chain pre { type nat hook prerouting priority dstnat; fib daddr type local dnat ip to tcp dport map @ports; }\n}\n")
	return run(ctx, b.String(), "nft", "-f", "-")
}

// newPath makes a host and applies a layout to it.
func newPath(ctx context.Context, name string, all []firewall.Mapping, apply func(context.Context, []firewall.Mapping) error) (_ *path, err error) {
	p := &path{name: name}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.host, err = sandbox.NewHost(); err != nil {
		return nil, err
	}
	if p.environment, err = sandbox.NewNetNS(); err != nil {
		return nil, err
	}
	inside := target(0)
	err = p.host.NS.Do(func() error {
		link := fmt.Sprintf(`ip link add rgpu-benchmrk type bridge
			ip addr add %s/29 dev rgpu-benchmrk
			ip link set rgpu-benchmrk up
			ip link add rgpuv-benchmrk master rgpu-benchmrk type veth peer name eth0 netns /proc/%d/fd/%d
			ip link set rgpuv-benchmrk up`, inside.Prev(), os.Getpid(), p.environment.FD())
		return errors.Join(script(ctx, link), apply(ctx, all))
	})
	if err != nil {
		return nil, err
	}
	err = p.environment.Do(func() error {
		if err := script(ctx, fmt.Sprintf("ip link set lo up; ip addr add %s/29 dev eth0; ip link set eth0 up; ip route add default via %s", inside, inside.Prev())); err != nil {
			return err
		}
		return p.listen(innerPort)
	})
	if err == nil {
		err = p.host.NS.Do(func() error { return p.listen(missPort) })
	}
	return p, err
}

func (p *path) listen(number int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		p.listeners = append(p.listeners, fd)
		err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: number}), unix.Listen(fd, 4096))
	}
	if err != nil {
		return fmt.Errorf("listen on port %d: %w", number, err)
	}
	return nil
}

func (p *path) close() {
	for _, fd := range p.listeners {
		unix.Close(fd)
	}
	if p.host != nil {
		p.host.Close()
	}
	if p.environment != nil {
		p.environment.Close()
	}
}

// drain takes connections off the listeners, which would be full otherwise.
func (p *path) drain() {
	for _, fd := range p.listeners {
		unix.SetNonblock(fd, true)
		for {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
				continue
			}
			if err != nil {
				break
			}
			unix.Close(conn)
		}
	}
}

// connects times so many connections from the client to a port of the host,
// one after the other, on one CPU, and returns microseconds.
func (p *path) connects(number uint16, count int) ([]float64, error) {
	times := make([]float64, 0, count)
	err := p.host.Client().Do(func() error {
		defer pin()()
		for range count {
			took, err := connect(netip.MustParseAddr(sandbox.HostAddress), number)
			if err != nil {
				return fmt.Errorf("%s: connect to port %d: %w", p.name, number, err)
			}
			times = append(times, float64(took.Nanoseconds())/1000)
		}
		p.drain()
		return nil
	})
	return times, err
}

// pin keeps the calling thread, which is locked, on one CPU.
func pin() (undo func()) {
	var before, one unix.CPUSet
	if unix.SchedGetaffinity(0, &before) != nil {
		return func() {}
	}
	one.Set(goruntime.NumCPU() - 1)
	if unix.SchedSetaffinity(0, &one) != nil {
		return func() {}
	}
	return func() { unix.SchedSetaffinity(0, &before) }
}

// connect makes a connection and breaks it, so that no socket waits for its
// end.
func connect(to netip.Addr, number uint16) (took time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	address := &unix.SockaddrInet4{Port: int(number), Addr: to.As4()}
	begun := time.Now()
	err = unix.Connect(fd, address)
	took = time.Since(begun)
	if errors.Is(err, unix.EINTR) {
		// A signal of Go's own scheduler; the connection is being made.
		return connect(to, number)
	}
	return took, err
}

// measurePackets interleaves the layouts: each round times each row of each.
func measurePackets(ctx context.Context, options Options, results map[string]*report.Column, say func(string)) error {
	all := mappings(options.Mappings)
	for i := range all { // one environment is real, and has the ports that are measured
		all[i].To = netip.AddrPortFrom(target(1+i/mappingsOf), innerPort)
	}
	measured := measuredPorts(all)
	for i := range all {
		if slices.Contains(measured, all[i].HostPort) {
			all[i].To = netip.AddrPortFrom(target(0), innerPort)
		}
	}
	var paths []*path
	defer func() {
		for _, p := range paths {
			p.close()
		}
	}()
	for _, layout := range layouts {
		p, err := newPath(ctx, layout.name, all, layout.apply)
		if err != nil {
			results[layout.name].Failure = err.Error()
			continue
		}
		paths = append(paths, p)
	}
	for round := -1; round < options.Rounds; round++ { // the first does not count
		if err := measureRound(ctx, paths, results, measured, options.Connects, round); err != nil {
			return err
		}
		say(fmt.Sprintf("round %d of %d", round+1, options.Rounds))
	}
	return nil
}

// turn is how many connections are made before it is the next layout's turn:
// so few that what else the machine does meets all of them alike.
const turn = 100

// measureRound times all rows of all layouts in turns and notes the medians.
func measureRound(ctx context.Context, paths []*path, results map[string]*report.Column, measured []uint16, count, round int) error {
	times := map[string]map[uint16][]float64{}
	for done := 0; done < count; done += turn {
		for i := range paths {
			p := paths[(i+done/turn)%len(paths)]
			result := results[p.name]
			if result.Failure != "" {
				continue
			}
			if times[p.name] == nil {
				times[p.name] = map[uint16][]float64{}
			}
			for _, number := range p.ports(measured) {
				took, err := p.connects(number, min(turn, count))
				if err != nil {
					result.Failure = err.Error()
					break
				}
				times[p.name][number] = append(times[p.name][number], took...)
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("measure packets: %w", context.Cause(ctx))
		}
	}
	for _, p := range paths {
		if result := results[p.name]; result.Failure == "" && round >= 0 {
			p.note(result, times[p.name], measured)
		}
	}
	return nil
}

// ports are those that are asked: of one rule there is the last alone.
func (p *path) ports(measured []uint16) []uint16 {
	if p.name == report.OneRule || p.name == report.OneLegacy {
		measured = measured[len(measured)-1:]
	}
	return append(slices.Clone(measured), missPort)
}

// note adds the medians of a round. The worst hit is the slowest of those that
// may be.
func (p *path) note(result *report.Column, times map[uint16][]float64, measured []uint16) {
	var slowest, first float64
	for _, number := range p.ports(measured) {
		median := report.Summarize(times[number]).Median
		if number == missPort {
			result.AddValue(report.Miss, median)
			continue
		}
		slowest = max(slowest, median)
		if first == 0 {
			first = median
		}
	}
	result.AddValue(report.HitFirst, first)
	result.AddValue(report.HitWorst, slowest)
}

// measuredPorts are the first port, those that a packet to passes most rules
// of ours for (the last of the last full leaf of a group, whatever the size of a
// leaf is below 4096), and the last.
func measuredPorts(all []firewall.Mapping) []uint16 {
	first, last := all[0].HostPort, all[len(all)-1].HostPort
	var endOfGroup uint16
	for number := first; number < last; number++ {
		if (number+1)%4096 == 0 {
			endOfGroup = number
		}
	}
	if endOfGroup == 0 {
		endOfGroup = last
	}
	return []uint16{first, endOfGroup, last - last%64 - 1, last}
}
