package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

const (
	logExtension = ".log"
	// extracting begins the names of snapshots that an image is unpacked into.
	extracting = "extract-"
)

// Parts lists what is in the engine's places and belongs to no container of
// ours.
func (e *Engine) Parts(ctx context.Context) ([]runtime.Part, error) {
	seen := e.justListed()
	again := seen != nil
	// Records come last: what is being made has its record first, and what is
	// being removed has lost its other parts before it.
	var parts []runtime.Part
	var errs []error
	for _, list := range []func(context.Context) ([]runtime.Part, error){
		e.cgroupParts, e.snapshotParts, e.quotaParts, e.logParts, e.leaseParts, e.pipeParts,
	} {
		some, err := list(ctx)
		parts, errs = append(parts, some...), append(errs, err)
	}
	if seen == nil {
		var err error
		if seen, err = e.look(ctx); err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
	}
	parts = append(parts, seen.parts()...)
	have := make(map[string]bool, len(seen.records))
	for i := range seen.records {
		id := seen.records[i].ID
		have[id] = true
		if seen.records[i].Labels[LabelEnvironment] == "" {
			parts = append(parts, runtime.Part{
				Kind: runtime.FoundContainer, Name: id, EnvID: id,
				Foreign: fmt.Sprintf("somebody else made it in containerd's namespace %s", e.cfg.Namespace),
			})
		}
	}
	parts = slices.DeleteFunc(parts, func(p runtime.Part) bool {
		return p.EnvID != "" && p.Foreign == "" && have[p.EnvID]
	})
	if again && slices.ContainsFunc(parts, func(p runtime.Part) bool { return p.EnvID != "" && p.Foreign == "" }) {
		return e.Parts(ctx) // what was listed before the rest says that all is well, and nothing else
	}
	return parts, errors.Join(append(errs, seen.incomplete)...)
}

// cgroupParts are the cgroups below ours, which other nodes of the host may have
// been told as well.
func (e *Engine) cgroupParts(context.Context) ([]runtime.Part, error) {
	var parts []runtime.Part
	seen := make(map[string]bool) // cgroup v1 has one in each hierarchy
	for _, parent := range e.cgroupDirs("") {
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, entry := range entries {
			id := entry.Name()
			if !entry.IsDir() || seen[id] {
				continue
			}
			seen[id] = true
			parts = append(parts, runtime.Part{Kind: runtime.FoundCgroup, Name: e.cgroup(id), EnvID: id, Common: true})
		}
	}
	return parts, nil
}

// snapshotParts are the writable layers in our namespace; Snapshots lists what
// belongs to snapshots.
func (e *Engine) snapshotParts(ctx context.Context) ([]runtime.Part, error) {
	var parts []runtime.Part
	err := e.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && !strings.HasPrefix(info.Name, extracting) && !strings.HasPrefix(info.Name, snapshotPrefix) {
			parts = append(parts, runtime.Part{Kind: runtime.FoundSnapshot, Name: info.Name, EnvID: info.Name})
		}
		return nil
	}, "kind==active")
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", e.explain(ctx, err))
	}
	return parts, nil
}

// logParts are the files in the directory of logs.
func (e *Engine) logParts(context.Context) ([]runtime.Part, error) {
	if e.cfg.LogDir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(e.cfg.LogDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	var parts []runtime.Part
	for _, entry := range entries {
		part := runtime.Part{Kind: runtime.FoundLog, Name: filepath.Join(e.cfg.LogDir, entry.Name())}
		if log, ok := logfile.LogOf(entry.Name(), logExtension); ok && entry.Type().IsRegular() {
			part.EnvID = strings.TrimSuffix(log, logExtension)
		} else {
			part.Foreign = "it is no log of an environment"
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// leaseParts are leases of engines that died. One node has one engine at a
// time; what a lease holds is only kept from containerd's garbage collector.
func (e *Engine) leaseParts(ctx context.Context) ([]runtime.Part, error) {
	all, err := e.client.LeasesService().List(e.namespaced(ctx))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", e.explain(ctx, err))
	}
	var parts []runtime.Part
	for _, lease := range all {
		if strings.HasPrefix(lease.ID, snapshotPrefix) {
			continue // Snapshots lists it
		}
		switch _, ours := lease.Labels[labelEngine]; {
		case !ours:
			parts = append(parts, runtime.Part{
				Kind: runtime.FoundLease, Name: lease.ID, Foreign: fmt.Sprintf("somebody else took it in containerd's namespace %s", e.cfg.Namespace),
			})
		case e.holders(lease.ID) == 0:
			parts = append(parts, runtime.Part{Kind: runtime.FoundLease, Name: lease.ID, Pulling: lease.Labels[labelPulling]})
		}
	}
	return parts, nil
}

// pipeParts are the directories of pipes of daemons that died.
func (e *Engine) pipeParts(context.Context) ([]runtime.Part, error) {
	entries, err := os.ReadDir(e.cfg.FIFODir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list pipes: %w", err)
	}
	var parts []runtime.Part
	for _, entry := range entries {
		part := runtime.Part{Kind: runtime.FoundPipes, Name: filepath.Join(e.cfg.FIFODir, entry.Name())}
		pid, err := strconv.Atoi(entry.Name())
		switch {
		case err != nil || !entry.IsDir():
			part.Foreign = "it is no directory of pipes"
		case !died(pid):
			continue
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// died says whether there is no such process, and it is not this one.
func died(pid int) bool { return pid != os.Getpid() && errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// RemovePart removes what belongs to no environment: leases and pipes of
// engines that died.
func (e *Engine) RemovePart(ctx context.Context, part runtime.Part) error {
	switch part.Kind {
	case runtime.FoundLease:
		if err := e.removeLease(ctx, part.Name); err != nil {
			return fmt.Errorf("remove lease %s: %w", part.Name, e.explain(ctx, err))
		}
	case runtime.FoundQuota:
		id, err := strconv.ParseUint(part.Name, 10, 32)
		if err != nil || !e.projects.Has(uint32(id)) {
			return fmt.Errorf("remove quota %s: %w", part.Name, errdefs.ErrInvalidArgument)
		}
		root, err := e.snapshotRoot(ctx)
		if err != nil {
			return err
		}
		return e.projects.Release(root, uint32(id))
	case runtime.FoundPipes:
		pid, err := strconv.Atoi(filepath.Base(part.Name))
		if err != nil || filepath.Dir(part.Name) != filepath.Clean(e.cfg.FIFODir) {
			return fmt.Errorf("remove pipes %s: %w", part.Name, errdefs.ErrInvalidArgument)
		}
		if !died(pid) {
			return nil // the number has been given to another process since
		}
		if err := os.RemoveAll(part.Name); err != nil {
			return fmt.Errorf("remove pipes: %w", err)
		}
	default:
		return fmt.Errorf("remove %s %s: %w", part.Kind, part.Name, errdefs.ErrInvalidArgument)
	}
	return nil
}
