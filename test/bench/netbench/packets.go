package netbench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// series is connections to one port, and the rows that they count for.
type series struct {
	to   netip.AddrPort
	rows []report.Row
}

// packets is the suite at work.
type packets struct {
	Options
	node    node
	all     []firewall.Mapping
	worst   firewall.Mapping // that a packet passes most of our rules to
	real    []int            // environments that there are: those whose ports are measured
	results map[string]*report.Column
	say     func(string)
	paths   []*path
}

// measurePackets interleaves the layouts: each round times each row of each.
func measurePackets(ctx context.Context, options Options, results map[string]*report.Column, say func(string)) (err error) {
	s := &packets{
		Options: options, node: node{Environments: options.Environments, Mappings: options.Mappings}, results: results, say: say,
	}
	if err := s.choose(); err != nil {
		return err
	}
	defer func() {
		for _, p := range s.paths {
			p.close()
		}
	}()
	s.build(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("measure packets: %w", context.Cause(ctx))
	}
	for round := -1; round < options.Rounds; round++ { // the first does not count
		if err := s.round(ctx, round); err != nil {
			return err
		}
		say(fmt.Sprintf("round %d of %d", round+1, options.Rounds))
	}
	return nil
}

// choose finds the ports that are measured, and so the environments that have
// to be there: the first one, the one with the worst mapping, the last one, and
// as many as programs are to make.
func (s *packets) choose() (err error) {
	if s.all, err = s.node.mappings(); err != nil {
		return err
	}
	f, err := newFirewall("nft")
	if err != nil {
		return err
	}
	at, err := worst(f, s.all)
	if err != nil {
		return err
	}
	s.worst = s.all[at]
	s.real = []int{0, at / mappingsOf, s.node.publishing() - 1}
	slices.Sort(s.real)
	s.real = slices.Compact(s.real)
	for more := 1; len(s.real) < made; more++ {
		if !slices.Contains(s.real, more) {
			s.real = append(s.real, more)
			slices.Sort(s.real)
		}
	}
	return nil
}

// build makes a path for each column. One that cannot be made has failed.
func (s *packets) build(ctx context.Context) {
	add := func(name string, open func() (*path, error)) {
		if ctx.Err() != nil {
			return
		}
		s.say("making " + name)
		p, err := open()
		if err != nil {
			s.results[name].Failure = err.Error()
			s.say(fmt.Sprintf("%s failed: %v", name, err))
			return
		}
		p.series = s.seriesOf(name)
		s.paths = append(s.paths, p)
	}
	attached := slices.Clone(s.real)
	if !slices.Contains(attached, listed) {
		attached = append(attached, listed)
	}
	for _, of := range [][2]string{{columns.RemoteGPU, "nft"}, {report.OursLegacy, "legacy"}} {
		add(of[0], func() (*path, error) { return newNode(ctx, of[0], of[1], s.Config.Dir, s.node, attached) })
	}
	for _, layout := range layouts {
		add(layout.name, func() (*path, error) {
			return newPath(ctx, layout.name, s.real, func(ctx context.Context) error { return layout.apply(ctx, s.all) })
		})
	}
	for _, name := range s.Peers {
		peer, err := publisher(name, &s.Config)
		if err == nil {
			if s.results[name].Missing = peer.Missing(); s.results[name].Missing != "" {
				continue
			}
		}
		add(name, func() (*path, error) {
			if err != nil {
				return nil, err
			}
			return newPeer(ctx, peer, s.node, [made]int(s.real), s.results[name], s.say)
		})
	}
}

// listed is an environment of which few networks reach a port, the client's last
// among them.
const listed = 1

// seriesOf are the ports that are asked. The worst hit is the slowest of those
// that may be: the one of ours, and the last rule of a chain of all.
func (s *packets) seriesOf(name string) (all []series) {
	first, last := s.all[0].HostPort, s.all[len(s.all)-1].HostPort
	families := []struct {
		host                    netip.Addr
		first, worst, few, miss report.Row
	}{
		{netip.MustParseAddr(sandbox.HostAddress), report.HitFirst, report.HitWorst, report.HitListed, report.Miss},
		{netip.MustParseAddr(hostAddress6), report.HitFirst6, report.HitWorst6, "", report.Miss6},
	}
	ours := name == columns.RemoteGPU || name == report.OursLegacy
	if !ours && name != report.Map && name != report.OneRule && name != report.OneLegacy {
		families = families[:1] // they publish nothing by IPv6
	}
	for _, f := range families {
		hit := func(number uint16, rows ...report.Row) {
			all = append(all, series{netip.AddrPortFrom(f.host, number), rows})
		}
		switch name {
		case report.OneRule, report.OneLegacy:
			hit(last, f.first, f.worst)
		default:
			hit(first, f.first, f.worst)
			hit(last, f.worst)
			if n := s.worst.HostPort; n != first && n != last {
				hit(n, f.worst)
			}
		}
		if ours && f.few != "" {
			hit(servicePort(port.SSH)+listed, f.few)
		}
		hit(missPort, f.miss)
	}
	return all
}

// servicePort is the first host port of a service.
func servicePort(service port.Service) uint16 {
	for _, s := range services {
		if s.service == service {
			return s.first
		}
	}
	return 0
}

// turn is how many connections are made before it is the next layout's turn:
// so few that what else the machine does meets all of them alike.
const turn = 100

// round times all rows of all layouts in turns and notes the medians.
func (s *packets) round(ctx context.Context, round int) error {
	times := make(map[string]map[netip.AddrPort][]float64)
	for done := 0; done < s.Connects; done += turn {
		// In another order each time: who always follows a slow one finds the
		// caches as that one left them, and the work that it put off.
		for _, i := range rand.Perm(len(s.paths)) {
			p := s.paths[i]
			result := s.results[p.name]
			if result.Failure != "" {
				continue
			}
			if times[p.name] == nil {
				times[p.name] = make(map[netip.AddrPort][]float64)
			}
			for _, one := range p.series {
				took, err := p.connects(one.to, min(turn, s.Connects))
				if err != nil {
					result.Failure = err.Error()
					break
				}
				times[p.name][one.to] = append(times[p.name][one.to], took...)
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("measure packets: %w", context.Cause(ctx))
		}
	}
	for _, p := range s.paths {
		if result := s.results[p.name]; result.Failure == "" && round >= 0 {
			p.note(result, times[p.name])
		}
	}
	return nil
}

// note adds the medians of a round: of a row that has several ports that of the
// slowest.
func (p *path) note(result *report.Column, times map[netip.AddrPort][]float64) {
	slowest := make(map[report.Row]float64)
	for _, one := range p.series {
		median := report.Summarize(times[one.to]).Median
		for _, row := range one.rows {
			slowest[row] = max(slowest[row], median)
		}
	}
	for row, value := range slowest {
		result.AddValue(row, value)
	}
}
