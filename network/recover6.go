package network

import (
	"context"
	"errors"
	"time"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// withoutRules6 takes IPv6 from a bridge that was given it while its rules
// failed: who took it from all may have come before. The error says why.
func (n *Networks) withoutRules6(bridge string) error {
	failure := n.cfg.Firewall.IPv6()
	if failure == nil {
		return nil
	}
	_, err := disableIPv6(bridge).mend()
	return errors.Join(failure, err)
}

// lost has the rules of IPv6 tried again that could not be made.
func (h *healer) lost() {
	select {
	case h.lost6 <- struct{}{}:
	default: // somebody is about to
	}
}

// again6 is for how long that is tried; after it, each Restore does.
const again6 = time.Minute

// followIPv6 gives environments back the IPv6 that was taken from them because
// its rules could not be made.
func (h *healer) followIPv6(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.lost6:
		}
		retry := retryFirst
		for until := time.Now().Add(again6); time.Now().Before(until); retry = min(2*retry, retryLast) {
			if !tick.Pause(ctx, retry) {
				return
			}
			if h.recover6(ctx) {
				break
			}
		}
	}
}

// recover6 tries to make the rules of IPv6 and tells whether they are in force.
func (h *healer) recover6(ctx context.Context) bool {
	h.working.Lock()
	defer h.working.Unlock()
	n := h.networks
	if n.cfg.Firewall.IPv6() != nil { // else somebody else has made them, who does not look at bridges
		if _, err := n.published.verify(ctx); err != nil || n.cfg.Firewall.IPv6() != nil {
			return false
		}
	}
	mended, err := n.mendNetworks(ctx)
	if n.cfg.Firewall.IPv6() != nil {
		return false
	}
	if err != nil {
		n.cfg.Log.WarnContext(ctx, "not all environments have IPv6 again", "error", err)
	}
	n.cfg.Log.InfoContext(ctx, "environments have IPv6 again", "bridges", len(mended))
	return true
}
