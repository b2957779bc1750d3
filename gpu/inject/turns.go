package inject

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/hostexec"
)

// TimeSlice is how long one of several processes has a GPU before another's
// turn.
type TimeSlice string

// TimeSlices returns all of them as nvidia-smi counts them (compute-policy
// --set-timeslice), from 0. NVML has no function for it. Which of them a GPU
// takes its driver says; GeForce cards take none. One that is set stays until the
// driver is loaded anew.
func TimeSlices() []TimeSlice { return []TimeSlice{"default", "short", "medium", "long"} }

// smiTimeout bounds nvidia-smi: turns are no reason to hold a start up.
const smiTimeout = 15 * time.Second

// inTurns opens whole GPUs to any number of processes, which an earlier MPS
// daemon or an administrator may have closed (EXCLUSIVE_PROCESS), and sets the
// length of turns for those that are shared. A turn of another length is told of;
// a shared GPU that stays closed to all but one is refused.
func (d *Driver) inTurns(ctx context.Context, edits gpu.Edits, targets []gpu.Target) (gpu.Edits, error) {
	for _, target := range targets {
		if target.MIG != "" {
			continue // it has no mode of its own
		}
		shared := target.Share.Enforcement != ""
		if err := d.SetExclusiveProcess(ctx, target.GPU, false); err != nil {
			if shared || ctx.Err() != nil {
				return gpu.Edits{}, fmt.Errorf("open GPU %s to several processes: %w", target.GPU, err)
			}
			edits.Warnings = append(slices.Clone(edits.Warnings), fmt.Sprintf("GPU %s may be closed to all but one process: %v", target.GPU, err))
		}
		if !shared || d.cfg.TimeSlice == "" {
			continue
		}
		if err := d.slice(ctx, target.GPU); err != nil {
			edits.Warnings = append(slices.Clone(edits.Warnings), fmt.Sprintf("time slices of GPU %s are not %s: %v", target.GPU, d.cfg.TimeSlice, err))
		}
	}
	return edits, nil
}

// slice sets how long turns on a GPU are.
func (d *Driver) slice(ctx context.Context, uuid string) error {
	length := slices.Index(TimeSlices(), d.cfg.TimeSlice)
	if length < 0 {
		return fmt.Errorf("there is no time slice %q", d.cfg.TimeSlice)
	}
	if p := checkProgram(d.cfg.SMI); p != nil {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, smiTimeout)
	defer cancel()
	said, err := hostexec.Run(ctx, nil, d.cfg.SMI, "compute-policy", "-i", uuid, "--set-timeslice", strconv.Itoa(length))
	if failure, ran := errors.AsType[*hostexec.Error](err); ran && failure.Code > 0 {
		// What it says it writes to its standard output, as a line.
		first, _, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
		return errors.New(cmp.Or(first, failure.Error()))
	}
	return err
}
