package node

import (
	"os"
	"strings"
)

// bootID names this boot of the host, "" where the kernel does not say.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // the node runs all the same; a reboot then looks like processes that ended
	}
	return strings.TrimSpace(string(text))
}
