package cli

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const cloneHelp = `clone makes an environment that has the files and the spec of another one: the
same limits, mounts, variables, command and desktop, a name, address and host
ports of its own. It mounts the same volumes and host directories as the other.

With ENVIRONMENT/SNAPSHOT it has the files and spec of that time. With an
environment alone a snapshot is taken of it as it is, and deleted afterwards.`

func (a *app) envClone() *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use: "clone ENVIRONMENT[/SNAPSHOT] NAME", Short: "Make an environment like another one", Long: cloneHelp, Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.clone(cmd.Context(), c, args[0], args[1], w)
		},
	}
	w.register(cmd.Flags())
	return cmd
}

func (a *app) clone(ctx context.Context, c *clients, source, name string, w *waiting) (err error) {
	var s *remotegpuv1.Snapshot
	if strings.Contains(source, "/") {
		s, err = a.snapshot(ctx, c, source)
	} else {
		s, err = a.takeSnapshot(ctx, c, &remotegpuv1.CreateSnapshotRequest{
			RequestId: w.id() + "-snapshot", Environment: source, Project: a.project, Name: "clone-" + strings.ToLower(rand.Text()[:12]),
		}, &waiting{timeout: w.timeout})
	}
	if err != nil {
		return err
	}
	if !strings.Contains(source, "/") {
		defer a.dropSnapshot(ctx, c, s, w)
	}
	response, err := c.environments.CreateEnvironment(ctx, &remotegpuv1.CreateEnvironmentRequest{
		RequestId: w.id(), Name: name, Project: a.project, Spec: cloneSpec(s),
	})
	if err != nil {
		return err
	}
	return a.created(ctx, c, w, response)
}

// dropSnapshot deletes the snapshot that was taken for a clone, unless that is
// still being made.
func (a *app) dropSnapshot(ctx context.Context, c *clients, s *remotegpuv1.Snapshot, w *waiting) {
	what := plain(s.GetEnvironmentName() + "/" + s.GetName())
	if w.noWait || ctx.Err() != nil {
		a.say("snapshot %s stays; delete it once the clone runs: remotegpu env snapshot rm %s", what, what)
		return
	}
	if _, err := c.snapshots.DeleteSnapshot(ctx, &remotegpuv1.DeleteSnapshotRequest{Snapshot: s.GetId()}); err != nil {
		a.say("snapshot %s was not deleted: %v; delete it with: remotegpu env snapshot rm %s", what, err, what)
	}
}

// cloneSpec is the spec of an environment like that of a snapshot: the node
// picks host ports and GPUs, and the host name follows from the new name.
func cloneSpec(s *remotegpuv1.Snapshot) *remotegpuv1.EnvironmentSpec {
	spec := proto.CloneOf(s.GetSpec())
	spec.Image, spec.Snapshot = "", s.GetId()
	spec.PullPolicy = remotegpuv1.PullPolicy_PULL_POLICY_UNSPECIFIED
	if spec.GetHostname() == s.GetEnvironmentName() {
		spec.Hostname = ""
	}
	now := time.Now()
	spec.Ports = slices.DeleteFunc(spec.GetPorts(), func(port *remotegpuv1.PortRequest) bool {
		return port.GetExpiresAt() != nil && !port.GetExpiresAt().AsTime().After(now) // its time was over before the snapshot is used
	})
	for _, port := range spec.GetPorts() {
		port.ExternalPort = 0
	}
	if spec.GetGpu() != nil { // as many, but others
		spec.Gpu.Uuids = nil
	}
	return spec
}
