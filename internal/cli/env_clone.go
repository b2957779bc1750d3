package cli

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
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
		ValidArgsFunction: inTurn(anyOf(a.completeEnvs, a.completeSnapshots), nil),
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

func (a *app) clone(ctx context.Context, c *clients, source, name string, w *waiting) error {
	if err := a.nameIsFree(ctx, c, name, w.requestID != ""); err != nil {
		return err
	}
	id := w.id()
	if strings.Contains(source, "/") {
		s, err := a.snapshot(ctx, c, source)
		if err != nil {
			return err
		}
		_, err = a.cloneOf(ctx, c, s, id, name, w)
		return err
	}
	// A repeated command must ask for the same snapshot.
	sum := sha256.Sum256([]byte(id))
	own := "clone-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:12])
	taken, err := c.snapshots.CreateSnapshot(ctx, &remotegpuv1.CreateSnapshotRequest{RequestId: own, Environment: source, Project: a.project, Name: own})
	if err != nil {
		return err
	}
	op, err := a.await(ctx, c, &waiting{timeout: w.timeout}, taken.GetOperation())
	if err != nil {
		if done(op) {
			return err
		}
		return a.leaveClone(ctx, c, taken.GetSnapshot(), op, w, err)
	}
	if taken.GetSnapshot() == nil { // asked for before, and deleted since
		return a.clonedBefore(ctx, c, name, op.GetResult()["snapshot"], w)
	}
	s, err := a.snapshot(ctx, c, taken.GetSnapshot().GetId())
	if err != nil {
		a.dropSnapshot(ctx, c, taken.GetSnapshot(), false)
		return err
	}
	begun, err := a.cloneOf(ctx, c, s, id, name, w)
	a.dropSnapshot(ctx, c, s, begun && (w.noWait || ctx.Err() != nil))
	return err
}

// cloneOf makes the environment. begun says that the node makes it.
func (a *app) cloneOf(ctx context.Context, c *clients, s *remotegpuv1.Snapshot, id, name string, w *waiting) (begun bool, err error) {
	response, err := c.environments.CreateEnvironment(ctx, &remotegpuv1.CreateEnvironmentRequest{
		RequestId: id, Name: name, Project: a.project, Spec: cloneSpec(s),
	})
	if err != nil {
		return false, err
	}
	return true, a.created(ctx, c, w, response)
}

// leaveClone ends the snapshot that nobody waits for any more. Who gave a request
// id can go on with it: then it is left to be taken.
func (a *app) leaveClone(ctx context.Context, c *clients, s *remotegpuv1.Snapshot, op *remotegpuv1.Operation, w *waiting, cause error) error {
	what := plain(s.GetEnvironmentName() + "/" + s.GetName())
	if w.requestID != "" {
		a.say("snapshot %s is being taken; to go on with it repeat the command with its --request-id, or delete it then: remotegpu env snapshot rm %s", what, what)
		return cause
	}
	// The caller may have left.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := c.operations.CancelOperation(ending, &remotegpuv1.CancelOperationRequest{Id: op.GetId()})
	if err == nil {
		err = watch(ending, c, op.GetId(), func(now *remotegpuv1.Operation) error { op = now; return nil })
	}
	switch {
	case !done(op):
		a.say("snapshot %s may stay: %v; see remotegpu op get %s, and delete it: remotegpu env snapshot rm %s", what, err, op.GetId(), what)
		return cause
	case op.GetState() == remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED: // it was there already
		a.dropSnapshot(ctx, c, s, false)
	}
	f, ok := errors.AsType[*failure](cause)
	if !ok {
		return cause
	}
	given := *f
	given.Message, given.Hints = "the snapshot for the clone was not waited for and is given up: nothing was made", []string{"try it again, with a longer --timeout if it needs more time"}
	return &given
}

// clonedBefore answers a repeated command whose clone was made and whose snapshot
// was deleted after that.
func (a *app) clonedBefore(ctx context.Context, c *clients, name, snapshot string, w *waiting) error {
	e, err := a.environment(ctx, c, name)
	if err == nil && e.GetSpec().GetSnapshot() == snapshot {
		made, err := c.operations.ListOperations(ctx, &remotegpuv1.ListOperationsRequest{Target: e.GetId(), Kinds: []string{"environment.create"}, PageSize: 1})
		if err != nil {
			return err
		}
		response := &remotegpuv1.CreateEnvironmentResponse{Environment: e}
		if ops := made.GetOperations(); len(ops) > 0 { // it is forgotten after a while
			response.Operation = ops[0]
		}
		return a.created(ctx, c, w, response)
	}
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		return err
	}
	return &failure{
		Code: "already_exists", Reason: "REQUEST_ID_REUSED", Message: fmt.Sprintf("what was cloned with request id %q is not there as %q", w.requestID, name),
		Fields: []fieldFault{{Field: "request_id"}}, Hints: []string{"use a new request id for each clone, and the same one only to repeat it"}, exit: exitConflict,
	}
}

// environmentName is what an environment can be called (RFC 1123 section 2.1).
var environmentName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// nameIsFree refuses the name of a clone before the other is frozen for it. The
// node looks again when it makes the clone. A command that may be a repeated one
// may find its own.
func (a *app) nameIsFree(ctx context.Context, c *clients, name string, repeatable bool) error {
	if !environmentName.MatchString(name) {
		return usagef(`use at most 63 of a-z, 0-9 and "-", none of these "-" at either end`, "name %q is not one for an environment", name)
	}
	if repeatable {
		return nil
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
