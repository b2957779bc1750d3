package node

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/runtime"
)

// conditions tells the gateway what becomes of environments.
type conditions struct{ node *Node }

// Condition implements gateway.Conditions.
func (c conditions) Condition(ctx context.Context, envID string) (gateway.Condition, error) {
	env, err := c.node.store.Environment(ctx, envID)
	if errdefs.IsNotFound(err) {
		return gateway.Gone, nil
	}
	if err != nil {
		return gateway.Present, err
	}
	return condition(env), nil
}

func condition(env *runtime.Environment) gateway.Condition {
	switch {
	case env.State == runtime.Deleted, env.Effective().Desktop == nil:
		return gateway.Gone
	case env.Paused:
		return gateway.Paused
	case env.State == runtime.Stopped && env.Operation == "" && env.RestartAt.IsZero():
		return gateway.Stopped
	case env.State == runtime.Failed && env.Operation == "" && env.RestartAt.IsZero():
		return gateway.Failed
	}
	return gateway.Present // or soon
}

// tellGateway tells the gateway of every change until ctx ends.
func (n *Node) tellGateway(ctx context.Context) error {
	for {
		err := n.manager.Watch(ctx, runtime.Filter{}, "", func(change runtime.Change) error {
			if env := change.Environment; env != nil {
				n.gateway.Tell(env.ID, condition(env))
			}
			return nil
		})
		if ctx.Err() != nil {
			return err
		}
		n.log.WarnContext(ctx, "the gateway was not told of all changes; it is told again", "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}
