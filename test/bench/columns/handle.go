package columns

import (
	"github.com/vishvananda/netns"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// handleOf is a namespace as the netlink package wants it.
func handleOf(ns *sandbox.NetNS) netns.NsHandle { return netns.NsHandle(ns.FD()) }
