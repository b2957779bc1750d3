package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// A host that forwards IPv6 is a router, and a router ignores what other routers
// advertise unless accept_ra is 2: where the kernel itself configures interfaces
// by that, the host would lose its own addresses and its way out. So before
// forwarding is switched on, interfaces that accept advertisements are told to
// go on with it.

// confV6 are the settings of interfaces in the calling thread's namespace.
const confV6 = "/proc/sys/net/ipv6/conf"

// ourPrefix begins the names of all our interfaces.
const ourPrefix = "rgpu"

func acceptRA(link string) string { return "ipv6/conf/" + link + "/accept_ra" }

// acceptingAdvertisements are the interfaces of the host that the kernel
// configures by router advertisements as long as the host is no router. Those
// that a network manager looks after have accept_ra 0: it listens itself.
func acceptingAdvertisements() (names []string, err error) {
	entries, err := os.ReadDir(confV6)
	if err != nil {
		return nil, fmt.Errorf("list interfaces with IPv6: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if name == "all" || name == "default" || name == "lo" || strings.HasPrefix(name, ourPrefix) {
			continue
		}
		accepts, err := readSetting(acceptRA(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		disabled, err := readSetting(disableIPv6(name).path)
		if err == nil && accepts == "1" && disabled == "0" {
			names = append(names, name)
		}
	}
	return names, nil
}

// listenOn has interfaces listen to advertisements though the host is a router.
func listenOn(links []string) error {
	for _, name := range links {
		if err := writeSetting(acceptRA(name), "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// listenNoMore takes that back where nobody has set another value since, or
// taken the interface away.
func listenNoMore(links []string) error {
	for _, name := range links {
		if value, err := readSetting(acceptRA(name)); err != nil || value != "2" {
			continue
		}
		if err := writeSetting(acceptRA(name), "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
