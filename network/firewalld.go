package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/remotegpu/remotegpu/internal/tick"
	"github.com/remotegpu/remotegpu/network/firewall"
)

const (
	firewalldName = "org.fedoraproject.FirewallD1"
	firewalldPath = "/org/fedoraproject/FirewallD1"
	// firewalldProgram is how the kernel calls it.
	firewalldProgram = "firewalld"
	// trustedZone is firewalld's zone that accepts everything. What
	// environments may reach is for our own rules to say; an accept there
	// overrules none of them.
	trustedZone = "trusted"
	// ourInterfaces are all bridges, as firewalld writes it.
	ourInterfaces = firewall.DefaultInterface + "+"
	// busInterval is how often a system bus is looked for that is not there, or
	// that broke.
	busInterval = 30 * time.Second
	// busTimeout bounds a call of firewalld, which may be busy with a reload.
	busTimeout = 20 * time.Second
	// firewalldPatience bounds the wait for firewalld before rules are mended:
	// until then what they close is open.
	firewalldPatience = 2 * time.Second
)

// busAddress is the system bus, as its clients find it.
func busAddress() string {
	if address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address != "" {
		return address
	}
	return "unix:path=/var/run/dbus/system_bus_socket"
}

// busThere tells whether there may be a bus at the address.
func busThere(address string) bool {
	path, found := strings.CutPrefix(address, "unix:path=")
	if !found {
		return true
	}
	path, _, _ = strings.Cut(path, ",")
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// followFirewalld mends the host's rules when firewalld has begun or reloaded,
// which throws them away, and has it let our bridges through.
func (h *healer) followFirewalld(ctx context.Context) {
	for {
		if busThere(busAddress()) {
			if err := h.listenToFirewalld(ctx); err != nil && ctx.Err() == nil {
				h.networks.cfg.Log.DebugContext(ctx, "firewalld cannot be listened to; it is tried again", "error", err)
			}
		}
		if !tick.Wait(ctx, busInterval) {
			return
		}
	}
}

// listenToFirewalld does so until the bus breaks or ctx ends.
func (h *healer) listenToFirewalld(ctx context.Context) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close() //nolint:errcheck // it is only listened to
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	if err := errors.Join(
		bus.AddMatchSignalContext(ctx, dbus.WithMatchInterface(firewalldName), dbus.WithMatchMember("Reloaded")),
		bus.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"),
			dbus.WithMatchArg(0, firewalldName)),
	); err != nil {
		return fmt.Errorf("listen to firewalld: %w", err)
	}
	// firewalld may have begun before we listened.
	var there bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&there); err != nil {
		return fmt.Errorf("look for firewalld: %w", err)
	}
	defer h.setFirewalld(nil)
	if there {
		h.setFirewalld(bus)
		h.firewalldBegan(ctx, bus)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case signal, open := <-signals:
			if !open {
				return errors.New("the system bus broke")
			}
			if !begins(signal) {
				h.setFirewalld(nil)
				h.setTrusted(false)
				continue
			}
			// Rules first: with the bridges trusted and no rules, nothing would
			// be closed.
			h.setFirewalld(bus)
			h.heal(ctx, []string{firewalldProgram})
			h.firewalldBegan(ctx, bus)
		}
	}
}

// begins tells whether firewalld has made its rules anew. Otherwise it has
// ended.
func begins(signal *dbus.Signal) bool {
	if signal.Name != "org.freedesktop.DBus.NameOwnerChanged" {
		return true
	}
	const newOwner = 2 // of name, old owner, new owner
	if len(signal.Body) <= newOwner {
		return true
	}
	owner, ok := signal.Body[newOwner].(string)
	return !ok || owner != ""
}

// firewalldBegan has firewalld let our bridges through: it rejects what no zone
// of its lets forward, and an accept of ours does not overrule that.
func (h *healer) firewalldBegan(ctx context.Context, bus *dbus.Conn) {
	err := trustBridges(ctx, bus)
	if err != nil && ctx.Err() == nil {
		h.networks.cfg.Log.WarnContext(ctx, "firewalld was not told to trust environments' bridges; it may stop what they send",
			"zone", trustedZone, "error", err)
	}
	h.setTrusted(err == nil)
	h.lookForConflicts(ctx)
}

// setFirewalld notes the bus on which firewalld is, nil: it is not there.
func (h *healer) setFirewalld(bus *dbus.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.firewalld = bus
}

// awaitFirewalld waits until firewalld, if it is there and may have changed the
// rules, has done what it is doing, but not for long. It starts and reloads in several steps, of which one fails when chains
// come back that it has just removed, and answers nobody meanwhile. What it
// takes away it has closed before.
func (h *healer) awaitFirewalld(ctx context.Context, by []string) {
	h.mu.Lock()
	bus := h.firewalld
	h.mu.Unlock()
	if bus == nil || !mayBeFirewalld(by) {
		return
	}
	asking, cancel := context.WithTimeout(ctx, firewalldPatience)
	defer cancel()
	if _, err := bridgesTrusted(asking, bus); err != nil && ctx.Err() == nil {
		h.networks.cfg.Log.DebugContext(ctx, "firewalld does not answer; rules are mended all the same", "error", err)
	}
}

// mayBeFirewalld tells whether it is firewalld that changed rules, as far as the
// kernel tells: it does so itself, or has programs of iptables do it.
func mayBeFirewalld(by []string) bool {
	return len(by) == 0 || slices.ContainsFunc(by, func(who string) bool {
		return slices.ContainsFunc([]string{firewalldProgram, "iptables", "ip6tables", "xtables", "ebtables"},
			func(program string) bool { return strings.HasPrefix(who, program) })
	})
}

func (h *healer) setTrusted(trusted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trusted = trusted
}

// trustBridges puts our bridges into firewalld's trusted zone, until its next
// reload.
func trustBridges(ctx context.Context, bus *dbus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	there, err := bridgesTrusted(ctx, bus)
	if err != nil || there {
		return err
	}
	call := bus.Object(firewalldName, firewalldPath).CallWithContext(ctx, firewalldName+".zone.addInterface", dbus.FlagNoAutoStart, trustedZone, ourInterfaces)
	if call.Err != nil {
		return fmt.Errorf("add interfaces %s to zone %s: %w", ourInterfaces, trustedZone, call.Err)
	}
	return nil
}

func bridgesTrusted(ctx context.Context, bus *dbus.Conn) (there bool, err error) {
	call := bus.Object(firewalldName, firewalldPath).CallWithContext(ctx, firewalldName+".zone.queryInterface", dbus.FlagNoAutoStart, trustedZone, ourInterfaces)
	if err := call.Store(&there); err != nil {
		return false, fmt.Errorf("look at zone %s: %w", trustedZone, err)
	}
	return there, nil
}

// distrustBridges takes our bridges out of the trusted zone, where firewalld
// runs.
func distrustBridges(ctx context.Context) error {
	if !busThere(busAddress()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil // nobody is there to be told
	}
	defer bus.Close() //nolint:errcheck // all calls were answered
	var running bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&running); err != nil || !running {
		return nil // firewalld does not run, and forgets at its end
	}
	there, err := bridgesTrusted(ctx, bus)
	if err != nil || !there {
		return err
	}
	call := bus.Object(firewalldName, firewalldPath).CallWithContext(ctx, firewalldName+".zone.removeInterface", dbus.FlagNoAutoStart, trustedZone, ourInterfaces)
	if call.Err != nil {
		return fmt.Errorf("take interfaces %s out of zone %s: %w", ourInterfaces, trustedZone, call.Err)
	}
	return nil
}
