package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// errKnownRequest ends an allocation whose request turned out to be a retry.
var errKnownRequest = errors.New("request id is known")

// known returns the operation of an earlier call with the same request id.
func (m *Manager) known(ctx context.Context, project, requestID, hash string) (*operation.Operation, error) {
	if requestID == "" {
		return nil, nil
	}
	op, err := m.cfg.Store.OperationByRequest(ctx, project, requestID)
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return op, checkHash(op, hash)
}

func checkHash(op *operation.Operation, hash string) error {
	if op.RequestHash == hash {
		return nil
	}
	return problem.New(problem.RequestIDReused, "request id %q was used for another request", op.RequestID).WithField("request_id").
		WithHint("use a new request id for each request, and the same one only to repeat it")
}

// answer returns the environment of an operation that exists already.
func (m *Manager) answer(ctx context.Context, op *operation.Operation, err error) (*Environment, *operation.Operation, error) {
	if err != nil {
		return nil, nil, err
	}
	env, err := m.cfg.Store.Environment(ctx, op.Target)
	if errdefs.IsNotFound(err) {
		return nil, op, nil
	}
	if err != nil {
		return nil, nil, err
	}
	m.fill(env)
	return env, op, nil
}

func (m *Manager) newOperation(kind, project, target, requestID, hash string, args any) *operation.Operation {
	op := &operation.Operation{
		ID: ulid.Make().String(), Project: project, Kind: kind, Target: target,
		RequestID: requestID, RequestHash: hash, State: operation.Queued, CreatedAt: time.Now(),
	}
	if args != nil {
		op.Args, _ = json.Marshal(args) //nolint:errchkjson // plain structs of ours
	}
	return op
}

// hashOf tells a repeated request from another one with the same request id.
func hashOf(kind string, request any) string {
	text, err := json.Marshal(request)
	if err != nil {
		panic(fmt.Sprintf("runtime: request of %s cannot be encoded: %v", kind, err))
	}
	sum := sha256.Sum256(append([]byte(kind+"\n"), text...))
	return hex.EncodeToString(sum[:16])
}
