package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// forwarding is what is done about one address family's switch for forwarding,
// which environments need. A host on which nobody had switched it on would from
// then on also route between the networks that it is in itself, which nobody has
// asked for. So the node notes which interfaces were there when it was the one
// who switched it on, and lets nothing pass from one of these to another.
// Interfaces that others make later, for containers or tunnels, are theirs and
// are left alone.
type forwarding struct {
	file    string // of the note; "": none is kept
	setting string // below /proc/sys/net
	between bool   // the host routes between its own networks
	log     *slog.Logger
	// enforce has the rules in force that keep the host's networks apart.
	enforce func(ctx context.Context) error
	// listening are the interfaces that have to be told to go on being
	// configured by routers once the host is one. nil: that is no matter of this
	// family.
	listening func() ([]string, error)

	mu    sync.Mutex  // held while the note and what it names change
	stays atomic.Bool // it was told that the host goes on forwarding
}

// setForwardings sets up forward4 and forward6.
func (n *Networks) setForwardings() {
	n.forward4.file, n.forward4.setting = n.cfg.ForwardFile, "ipv4/ip_forward"
	n.forward4.enforce = func(ctx context.Context) error {
		if n.cfg.ForwardFile == "" {
			return nil // without a note there is nothing to keep apart
		}
		return n.published.enforce(ctx)
	}
	n.forward6.file, n.forward6.setting, n.forward6.listening = n.cfg.ForwardFile6, "ipv6/conf/all/forwarding", acceptingAdvertisements
	n.forward6.enforce = func(ctx context.Context) error {
		if err := n.published.enforce(ctx); err != nil {
			return err
		}
		return n.cfg.Firewall.IPv6() // that of IPv4 alone is an error of enforce
	}
	for _, family := range []*forwarding{&n.forward4, &n.forward6} {
		family.between, family.log = n.cfg.RouteBetween, n.cfg.Log
	}
}

// name is what sysctl(8) calls the switch.
func (f *forwarding) name() string { return sysctl{path: f.setting}.name() }

// switchOn makes the host forward packets, but not between its own networks, and
// tells whether there was something to do.
func (f *forwarding) switchOn(ctx context.Context) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, err := readSetting(f.setting)
	if err != nil || value != "0" {
		return false, err
	}
	var listening []string
	if f.listening != nil {
		if listening, err = f.listening(); err != nil {
			return false, err
		}
	}
	if err := f.remember(listening); err != nil {
		return false, err
	}
	if !f.between {
		if err := f.enforce(ctx); err != nil {
			return false, err
		}
	}
	if err := listenOn(listening); err != nil {
		return false, err
	}
	if err := writeSetting(f.setting, "1"); err != nil {
		return false, err
	}
	f.log.InfoContext(ctx, "forwarding was 0 and is now 1: environments need it; some interfaces go on listening to router advertisements",
		"setting", f.name(), "listening", listening)
	return true, nil
}

// remember notes that it is us who switch forwarding on. What is noted is of
// before somebody else switched it off again.
func (f *forwarding) remember(listening []string) error {
	if f.file == "" {
		return nil
	}
	noted, err := readNote(f.file)
	if err != nil {
		return err
	}
	if !noted.ours {
		if noted.links, noted.others, err = hostLinks(); err != nil {
			return err
		}
	}
	noted.listening = append(noted.listening, listening...)
	return noted.write(f.file)
}

// apart are the interfaces between which the host forwards nothing: none,
// unless forwarding is our doing. It takes no lock: rules are made while the
// switch is turned.
func (f *forwarding) apart() ([]firewall.HostLink, error) {
	if f.between {
		return nil, nil
	}
	noted, err := readNote(f.file)
	return noted.links, err
}

// switchOff takes back what switchOn did, unless somebody seems to have come to
// rely on it: an interface is there that was not there then. Then the host goes
// on forwarding, and the note stays, so that its networks are kept apart and it
// is tried again.
func (f *forwarding) switchOff(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	noted, err := readNote(f.file)
	if err != nil || !noted.ours {
		return err
	}
	stays, err := f.reliedOn(&noted)
	if err != nil {
		return err
	}
	if len(stays) > 0 {
		if !f.stays.Swap(true) {
			f.log.WarnContext(ctx, "forwarding stays 1: interfaces came since the node switched it on, and may need it", "setting", f.name(), "interfaces", stays)
		}
		return nil
	}
	if err := f.stop(noted.listening); err != nil {
		return err
	}
	if err := os.Remove(f.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget whose doing forwarding was: %w", err)
	}
	f.stays.Store(false)
	return nil
}

// reliedOn are the interfaces that came since forwarding was switched on; none
// while it is off, as somebody else has switched it.
func (f *forwarding) reliedOn(noted *note) ([]string, error) {
	value, err := readSetting(f.setting)
	if errors.Is(err, fs.ErrNotExist) || err == nil && value == "0" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return linksSince(noted)
}

// pause switches forwarding off while the rules are not in force that keep the
// host's own networks apart, if it was us who switched it on. The note stays:
// switchOn goes on from it.
func (f *forwarding) pause(ctx context.Context, inForce func() bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	noted, err := readNote(f.file)
	if err != nil || !noted.ours || f.between || inForce() {
		return err
	}
	stays, err := f.reliedOn(&noted)
	if err != nil {
		return err
	}
	if len(stays) > 0 {
		f.log.WarnContext(ctx, "forwarding stays 1 without rules: interfaces came since the node switched it on, and may need it", "setting", f.name(), "interfaces", stays)
		return nil
	}
	return f.stop(noted.listening)
}

// stop switches forwarding off. Interfaces listen to advertisements by
// themselves once the host is no router.
func (f *forwarding) stop(listening []string) error {
	if err := writeSetting(f.setting, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return listenNoMore(listening)
}
