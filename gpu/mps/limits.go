package mps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/atomicfile"
)

// limitsName is the file in a daemon's directory that has its limits.
const limitsName = "limits"

// widen makes the limits of a daemon wide enough for a share. A server has one
// limit for all of its clients (CUDA Multi-Process Service, section
// nvidia-cuda-mps-control), so that is the largest share; to a smaller one a
// client is held by its own variables. It is never made narrower: that would
// be the limit of whoever has the largest.
func (d *Daemons) widen(ctx context.Context, uuid string, share gpu.Share) error {
	now, set := d.limits(uuid)
	wide := gpu.Share{MemoryBytes: larger(now.MemoryBytes, share.MemoryBytes), ComputePercent: larger(now.ComputePercent, share.ComputePercent)}
	if now.Enforcement == "" { // the first
		wide = share
	}
	wide.Enforcement = gpu.ByMPS
	if wide == now && set {
		return nil
	}
	return d.limit(ctx, uuid, wide)
}

// larger of two limits, of which 0 is none.
func larger[T int | uint64](a, b T) T {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// kept is what limitsName has.
type kept struct {
	gpu.Share

	Since time.Time `json:"since"` // of the daemon that has them
}

// limits are those that the clients of a GPU were given last, none of any
// enforcement before, and whether the daemon that is there now has them.
func (d *Daemons) limits(uuid string) (_ gpu.Share, set bool) {
	var k kept
	text, err := os.ReadFile(filepath.Join(d.home(uuid), limitsName))
	if err != nil || json.Unmarshal(text, &k) != nil {
		return gpu.Share{}, false
	}
	since, there := d.Since(uuid)
	return k.Share, there && since.Equal(k.Since)
}

// limitAgain gives a daemon the limits of the one before it, unless it has them.
func (d *Daemons) limitAgain(ctx context.Context, uuid string) error {
	wide, set := d.limits(uuid)
	if set {
		return nil
	}
	return d.limit(ctx, uuid, wide)
}

// limit sets the limits of a daemon: for servers that it starts, and for clients
// that come to those it has.
func (d *Daemons) limit(ctx context.Context, uuid string, wide gpu.Share) error {
	if wide.Enforcement == "" {
		return nil
	}
	percent := wide.ComputePercent
	if percent == 0 {
		percent = 100
	}
	servers, err := d.ask(ctx, uuid, "get_server_list")
	if err != nil {
		return err
	}
	commands := []string{"set_default_active_thread_percentage " + strconv.Itoa(percent)}
	memory := ""
	if wide.MemoryBytes > 0 {
		memory = fmt.Sprintf("0 %dM", wide.MemoryBytes>>20)
		commands = append(commands, "set_default_device_pinned_mem_limit "+memory)
	}
	for pid := range strings.FieldsSeq(servers) {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		commands = append(commands, fmt.Sprintf("set_active_thread_percentage %s %d", pid, percent))
		if memory != "" {
			commands = append(commands, fmt.Sprintf("set_device_pinned_mem_limit %s %s", pid, memory))
		}
	}
	var errs []error
	for _, command := range commands {
		if _, err := d.ask(ctx, uuid, command); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", command, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("limit the clients of the MPS daemon of GPU %s: %w", uuid, err)
	}
	since, _ := d.Since(uuid)
	text, err := json.Marshal(kept{wide, since})
	if err != nil {
		return err
	}
	return atomicfile.WriteUnsynced(filepath.Join(d.home(uuid), limitsName), text, 0o600)
}
