package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often a list is asked for that the kernel says was changed
// while it was read (NLM_F_DUMP_INTR in netlink(7)): that is common while
// environments are made, and each reading takes a fraction of a millisecond.
const dumpTries = 50

// dump reads a list of the kernel's as it was at one moment.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
