package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
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
	if err := a.nameIsFree(ctx, c, name); err != nil {
		return err
	}
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
	begun := false
	if !strings.Contains(source, "/") {
		defer func() { a.dropSnapshot(ctx, c, s, begun && (w.noWait || ctx.Err() != nil)) }()
	}
	response, err := c.environments.CreateEnvironment(ctx, &remotegpuv1.CreateEnvironmentRequest{
		RequestId: w.id(), Name: name, Project: a.project, Spec: cloneSpec(s),
	})
	if err != nil {
		return err
	}
	begun = true
	return a.created(ctx, c, w, response)
}

// environmentName is what an environment can be called (RFC 1123 section 2.1).
var environmentName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// nameIsFree refuses the name of a clone before the other is frozen for it. The
// node looks again when it makes the clone.
func (a *app) nameIsFree(ctx context.Context, c *clients, name string) error {
	if !environmentName.MatchString(name) {
		return usagef(`use at most 63 of a-z, 0-9 and "-", none of these "-" at either end`, "name %q is not one for an environment", name)
	}
	_, err := a.environment(ctx, c, name)
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return &failure{
		Code: "already_exists", Reason: "ENV_NAME_EXISTS", Message: fmt.Sprintf("there is an environment %q already", name),
		Fields: []fieldFault{{Field: "name"}}, Hints: []string{"choose another name, or delete that one: remotegpu env rm " + name}, exit: exitConflict,
	}
}

// dropSnapshot deletes the snapshot that was taken for a clone, unless that is
// still being made of it.
func (a *app) dropSnapshot(ctx context.Context, c *clients, s *remotegpuv1.Snapshot, needed bool) {
	what := plain(s.GetEnvironmentName() + "/" + s.GetName())
	// The caller may have left since.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if needed {
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
