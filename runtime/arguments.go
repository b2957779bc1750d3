package runtime

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// createArgs are what an operation keeps of a create to be shown; the work is
// done by the environment's own row.
type createArgs struct {
	Name     string `json:"name"`
	Image    string `json:"image"`
	Snapshot string `json:"snapshot,omitempty"` // id
}

// Arguments are what an operation was asked for, for those who look on: names,
// references, times and flags. Each is named here, so that what else an
// operation keeps to do its work, as the variables of a spec, is never among
// them. Flags that were not set and what is empty are left out.
func Arguments(op *operation.Operation) map[string]string {
	all := arguments{}
	switch op.Kind {
	case KindCreate:
		args := read[createArgs](op)
		all.text("name", args.Name)
		all.text("image", args.Image)
		all.text("snapshot", args.Snapshot)
	case KindStop, KindRestart, KindDelete:
		args := read[actionArgs](op)
		all.time("timeout", args.Timeout)
		all.flag("force", args.Force)
	case KindUpdate:
		args := read[updateArgs](op)
		all.text("fields", strings.Join(args.Fields, ","))
		all.flag("restart", args.Restart)
		if args.Restart {
			all.time("timeout", args.Timeout)
		}
	case KindSnapshot, KindRollBack, KindExport:
		args := read[snapshotArgs](op)
		all.text("snapshot", args.Snapshot)
		all.flag("force", args.Force)
		if args.Force {
			all.time("timeout", args.Timeout)
		}
		all.text("reference", args.Reference)
	case KindPortCreate, KindPortUpdate, KindPortDelete:
		args := read[portArgs](op)
		all.text("mapping", args.Mapping)
		if args.Host != 0 {
			all.text("host_port", strconv.Itoa(int(args.Host)))
		}
		if op.Kind != KindPortDelete {
			all.text("service", string(args.Request.Service))
			all.text("internal_port", strconv.Itoa(int(args.Request.Internal)))
			all.text("allowed_sources", strings.Join(args.Request.Sources, ","))
		}
	case KindPull, KindPush:
		args := read[transferArgs](op)
		all.text("destination", args.Destination)
		all.flag("credentials", args.Login)
	case KindBuild:
		args := read[BuildRequest](op)
		all.text("source", args.Source)
		all.text("tag", args.Tag)
		all.text("base", args.Base)
		all.flag("no_cache", args.NoCache)
	}
	return all
}

type arguments map[string]string

func (a arguments) text(name, value string) {
	if value != "" {
		a[name] = value
	}
}

func (a arguments) flag(name string, set bool) {
	if set {
		a[name] = "true"
	}
}

// time writes seconds as JSON has durations: "10s", "0.5s".
func (a arguments) time(name string, d time.Duration) {
	a[name] = strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}

// read reads what an operation keeps. One of an older daemon may have kept
// nothing.
func read[T any](op *operation.Operation) (args T) {
	_ = json.Unmarshal(op.Args, &args) // shown only; the work itself refuses it
	return args
}
