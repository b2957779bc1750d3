package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctl is a setting below /proc/sys/net of the calling thread's namespace.
type sysctl struct {
	path, value string
	optional    bool // a kernel without IPv6 does not have it
}

// write sets all of them.
func write(settings []sysctl) error {
	for _, s := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys/net", s.path), []byte(s.value), 0)
		if s.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set net/%s to %s: %w", s.path, s.value, err)
		}
	}
	return nil
}

// ofBridge are the settings of an environment's bridge, and of no other
// interface. route_localnet lets the host's loopback reach published ports;
// the firewall keeps everyone else from using it. rp_filter is loose because
// strict breaks answers on hosts with several uplinks.
// It believes no advertisement of an environment, and answers who asks by ARP
// from its own network alone (arp_ignore): the kernel makes a neighbour of whoever
// it answers.
func ofBridge(bridge string) []sysctl {
	return []sysctl{
		routeLocalnet(bridge),
		{"ipv4/conf/" + bridge + "/rp_filter", "2", false},
		{"ipv4/conf/" + bridge + "/arp_ignore", "2", false},
		{"ipv4/conf/" + bridge + "/accept_redirects", "0", false},
		{"ipv4/conf/" + bridge + "/send_redirects", "0", false},
		{"ipv6/conf/" + bridge + "/accept_ra", "0", true},
		{"ipv6/conf/" + bridge + "/accept_dad", "0", true},
		{"ipv6/conf/" + bridge + "/accept_redirects", "0", true},
	}
}

// sixOf are the settings of a bridge that has IPv6, or has none. The kernel
// makes no address of its own for it (addr_gen_mode, before the setting that
// makes it).
func sixOf(bridge string, six bool) []sysctl {
	if !six {
		return []sysctl{disableIPv6(bridge)}
	}
	return []sysctl{
		{"ipv6/conf/" + bridge + "/addr_gen_mode", "1", true},
		{"ipv6/conf/" + bridge + "/disable_ipv6", "0", true},
	}
}

func routeLocalnet(bridge string) sysctl {
	return sysctl{"ipv4/conf/" + bridge + "/route_localnet", "1", false}
}

func disableIPv6(link string) sysctl { return sysctl{"ipv6/conf/" + link + "/disable_ipv6", "1", true} }

// ofPort are the settings of a bridge's port.
func ofPort(veth string) []sysctl {
	return []sysctl{disableIPv6(veth)}
}

// ofInside are the settings inside an environment: no IPv6 while it has no
// address, and no address but those it is given (addr_gen_mode 1 makes none); and what needs no privilege
// because the namespace is its own: low ports and ping.
func ofInside(six bool) (settings []sysctl) {
	off := "1"
	if six {
		off = "0"
		for _, name := range []string{"accept_ra", "autoconf", "accept_dad", "accept_redirects"} {
			for _, link := range []string{"default", inside} { // inside is not there yet, or has what was the default
				settings = append(settings, sysctl{"ipv6/conf/" + link + "/" + name, "0", true})
			}
		}
		for _, link := range []string{"default", inside} {
			settings = append(settings, sysctl{"ipv6/conf/" + link + "/addr_gen_mode", "1", true})
		}
	}
	return append(settings,
		sysctl{"ipv6/conf/all/disable_ipv6", off, true},
		sysctl{"ipv6/conf/default/disable_ipv6", off, true},
		sysctl{"ipv4/ip_unprivileged_port_start", "0", false},
		sysctl{"ipv4/ping_group_range", "0 2147483647", false},
	)
}

// settingSize is more than a setting has: the longest list of reserved ports is
// one that has every other port.
const settingSize = 1 << 18

// readSetting reads a setting below /proc/sys/net. Settings are looked at
// often, and os.ReadFile would take each into the poller and out of it.
func readSetting(path string) (string, error) {
	fd, err := unix.Open(filepath.Join("/proc/sys/net", path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read net/%s: %w", path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // it was only read
	value := make([]byte, 0, 512)
	for len(value) < settingSize {
		value = slices.Grow(value, 512)
		read, err := unix.Read(fd, value[len(value):cap(value)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read net/%s: %w", path, err)
		}
		if read == 0 {
			return string(bytes.TrimSpace(value)), nil
		}
		value = value[:len(value)+read]
	}
	return "", fmt.Errorf("read net/%s: %w", path, unix.EFBIG)
}

func writeSetting(path, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", path, value, err)
	}
	return nil
}

// mendBridges gives bridges back the settings that programs change which set
// all interfaces alike, as sysctl --system does: without route_localnet the
// host's loopback reaches no published port, and with IPv6 environments would
// reach the host by it. links are ours, the bridges at least. It returns the settings that were wrong.
func (n *Networks) mendBridges(links []hostLink) (mended []string, err error) {
	var errs []error
	for _, link := range links {
		if _, ok := bridgeOf(link); !ok {
			continue
		}
		for _, setting := range ofBridge(link.Attrs().Name) {
			if link.has(&setting) {
				continue
			}
			changed, err := setting.mend()
			switch {
			case err != nil:
				errs = append(errs, err)
			case changed:
				mended = append(mended, setting.name())
			}
		}
	}
	if !n.wants6() { // else see mendNetworks
		off, err := n.off6(links)
		mended = append(mended, off...)
		errs = append(errs, err)
	}
	return mended, errors.Join(errs...)
}

// name is what sysctl(8) calls it.
func (s sysctl) name() string { return "net." + strings.ReplaceAll(s.path, "/", ".") }

// mend sets it if it is another, and tells whether it was. What is not there
// any more, or never was, is no error.
func (s sysctl) mend() (changed bool, err error) {
	value, err := readSetting(s.path)
	if err == nil && value == s.value {
		return false, nil
	}
	if err == nil {
		err = writeSetting(s.path, s.value)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}
