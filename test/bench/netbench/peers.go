package netbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// made is how many containers a program makes itself. To make two thousand
// would take it the better part of an hour, since it runs iptables for each
// rule; what it would have added for the others is known from these.
const made = 3

// The programs of the host's iptables, which those of the distribution call.
const (
	saveProgram    = "/usr/sbin/iptables-save"
	restoreProgram = "/usr/sbin/iptables-restore"
)

// bindings are the ports of an environment, as a program is told them.
func bindings(environment int) (all []columns.Binding) {
	for _, s := range services {
		all = append(all, columns.Binding{Host: s.first + uint16(environment), Inner: s.inner, Protocol: string(s.protocol)})
	}
	return all
}

// newPeer starts a program on a host of its own, has it make containers in place
// of some environments, the first one among them, and adds the rules that it
// would have made for all the others.
func newPeer(ctx context.Context, column columns.Publisher, n node, there [made]int, result *report.Column, say func(string)) (_ *path, err error) {
	p := &path{name: column.Name()}
	var spaces []*sandbox.NetNS
	p.close = func() {
		p.hush()
		for _, ns := range spaces {
			ns.Close()
		}
		column.Stop()
	}
	if err := column.Start(ctx); err != nil {
		p.close()
		return nil, fmt.Errorf("start: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, column.Tail())
			p.close()
		}
	}()
	result.Versions = column.Versions(ctx)
	var saves [made]*saved
	var containers [made]container
	for i, environment := range there {
		instance, err := column.Publish(ctx, fmt.Sprintf("bench-%d", environment), bindings(environment))
		if err != nil {
			return nil, err
		}
		details, err := column.Inspect(ctx, instance)
		if err != nil {
			return nil, err
		}
		containers[i] = container{id: details.ID, address: details.Address, ports: hostPorts(environment)}
		ns, err := sandbox.OpenNetNS(fmt.Sprintf("/proc/%d/ns/net", details.Process))
		if err != nil {
			return nil, err
		}
		spaces = append(spaces, ns)
		p.host = instance.Host
		if saves[i], err = p.rules(ctx); err != nil {
			return nil, err
		}
	}
	found, err := learn(saves, &containers[1], &containers[2])
	if err != nil {
		return nil, fmt.Errorf("rules that %s made: %w", column.Name(), err)
	}
	all := found.with(further(n, there, containers))
	if err := p.host.NS.Do(func() error { return run(ctx, all.String(), restoreProgram) }); err != nil {
		return nil, err
	}
	say(fmt.Sprintf("%s has %d rules for %d containers, of which it made %d for %d", column.Name(), all.count(), n.publishing(), saves[made-1].count(), made))
	return p, p.listenAll(spaces)
}

// further are the containers behind the first one, in the order of environments.
func further(n node, there [made]int, containers [made]container) (all []container) {
	address := netip.Addr{}
	for i := range containers { // behind those that were given
		if !address.IsValid() || address.Less(containers[i].address) {
			address = containers[i].address
		}
	}
	for environment := 1; environment < n.publishing(); environment++ {
		one := container{}
		for i := range there {
			if there[i] == environment {
				one = containers[i]
			}
		}
		if one.id == "" {
			address = address.Next()
			one = imagined(environmentID(environment), address, hostPorts(environment))
		}
		all = append(all, one)
	}
	return all
}

func hostPorts(environment int) (all []uint16) {
	for _, b := range bindings(environment) {
		all = append(all, b.Host)
	}
	return all
}

// rules are those of the host.
func (p *path) rules(ctx context.Context) (*saved, error) {
	var text string
	err := p.host.NS.Do(func() (err error) {
		text, err = output(ctx, "", saveProgram)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseSaved(text)
}

// publisher is the column of a program that publishes ports.
func publisher(name string, config *columns.Config) (columns.Publisher, error) {
	column, err := columns.New(name, config)
	if err != nil {
		return nil, err
	}
	known, ok := column.(columns.Publisher)
	if !ok {
		return nil, errors.New(name + " publishes no ports")
	}
	return known, nil
}
