package network

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that changes while it is read is read again, and not for ever.
func TestDump(t *testing.T) {
	calls := 0
	all, err := dump(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(all) != 2 || calls != 3 {
		t.Errorf("read %v, error %v, in %d calls", all, err, calls)
	}
	if _, err := dump(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); err == nil {
		t.Error("a list that never stands still is told as whole")
	}
}
