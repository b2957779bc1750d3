package operationtest

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Memory is a store in memory.
type Memory struct {
	mu   sync.Mutex
	ops  []*operation.Operation // oldest first; replaced, never changed
	fail func(call string) error
	lose func(call string) error
}

var _ operation.Store = (*Memory)(nil)

// Fail has calls fail with what fail returns for their method's name; nil
// ends it.
func (m *Memory) Fail(fail func(call string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

// Lose has updates that were written answer what lose returns, as when an
// answer is lost; nil ends it.
func (m *Memory) Lose(lose func(call string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lose = lose
}

func (m *Memory) begin(call string) (end func(), err error) {
	m.mu.Lock()
	if m.fail != nil {
		if err := m.fail(call); err != nil {
			m.mu.Unlock()
			return nil, err
		}
	}
	return m.mu.Unlock, nil
}

func copied(op *operation.Operation) *operation.Operation {
	c := *op
	return &c
}

func (m *Memory) find(match func(*operation.Operation) bool) (int, error) {
	i := slices.IndexFunc(m.ops, match)
	if i < 0 {
		return 0, problem.New(problem.OperationNotFound, "operation does not exist")
	}
	return i, nil
}

func sameRequest(project, requestID string) func(*operation.Operation) bool {
	return func(op *operation.Operation) bool {
		return requestID != "" && op.Project == project && op.RequestID == requestID
	}
}

// InsertOperation implements operation.Store.
func (m *Memory) InsertOperation(_ context.Context, op *operation.Operation) (*operation.Operation, error) {
	end, err := m.begin("InsertOperation")
	if err != nil {
		return nil, err
	}
	defer end()
	if i, err := m.find(sameRequest(op.Project, op.RequestID)); err == nil {
		return copied(m.ops[i]), nil
	}
	op.Revision = 1
	m.ops = append(m.ops, copied(op))
	return nil, nil //nolint:nilnil // no existing operation is the usual answer
}

// OperationByRequest implements operation.Store.
func (m *Memory) OperationByRequest(_ context.Context, project, requestID string) (*operation.Operation, error) {
	return m.get("OperationByRequest", sameRequest(project, requestID))
}

// Operation implements operation.Store.
func (m *Memory) Operation(_ context.Context, id string) (*operation.Operation, error) {
	return m.get("Operation", func(op *operation.Operation) bool { return op.ID == id })
}

func (m *Memory) get(call string, match func(*operation.Operation) bool) (*operation.Operation, error) {
	end, err := m.begin(call)
	if err != nil {
		return nil, err
	}
	defer end()
	i, err := m.find(match)
	if err != nil {
		return nil, err
	}
	return copied(m.ops[i]), nil
}

// Operations implements operation.Store.
func (m *Memory) Operations(_ context.Context, filter operation.Filter) ([]*operation.Operation, string, error) {
	end, err := m.begin("Operations")
	if err != nil {
		return nil, "", err
	}
	defer end()
	last := len(m.ops)
	if filter.After != "" {
		if last, err = strconv.Atoi(filter.After); err != nil {
			return nil, "", problem.New(problem.PageTokenInvalid, "the page token is not one of this list").WithCause(err)
		}
	}
	var found []*operation.Operation
	for i := min(last, len(m.ops)) - 1; i >= 0; i-- {
		op := m.ops[i]
		if (filter.Project != "" && op.Project != filter.Project) || (filter.Target != "" && op.Target != filter.Target) ||
			(len(filter.Kinds) > 0 && !slices.Contains(filter.Kinds, op.Kind)) ||
			(len(filter.States) > 0 && !slices.Contains(filter.States, op.State)) {
			continue
		}
		if filter.Limit > 0 && len(found) == filter.Limit {
			return found, strconv.Itoa(i + 1), nil
		}
		found = append(found, copied(op))
	}
	return found, "", nil
}

// Pending implements operation.Store.
func (m *Memory) Pending(_ context.Context) ([]*operation.Operation, error) {
	end, err := m.begin("Pending")
	if err != nil {
		return nil, err
	}
	defer end()
	var found []*operation.Operation
	for _, op := range m.ops {
		if !op.State.Done() {
			found = append(found, copied(op))
		}
	}
	return found, nil
}

// UpdateOperation implements operation.Store.
func (m *Memory) UpdateOperation(_ context.Context, id string, change func(*operation.Operation) error) (
	*operation.Operation, error,
) {
	end, err := m.begin("UpdateOperation")
	if err != nil {
		return nil, err
	}
	defer end()
	i, err := m.find(func(op *operation.Operation) bool { return op.ID == id })
	if err != nil {
		return nil, err
	}
	op := copied(m.ops[i])
	if err := change(op); err != nil {
		return nil, err
	}
	op.Revision++
	m.ops[i] = op
	if m.lose != nil {
		if err := m.lose("UpdateOperation"); err != nil {
			return nil, err
		}
	}
	return copied(op), nil
}

// PurgeOperations implements operation.Store.
func (m *Memory) PurgeOperations(_ context.Context, before time.Time) (int, error) {
	end, err := m.begin("PurgeOperations")
	if err != nil {
		return 0, err
	}
	defer end()
	had := len(m.ops)
	m.ops = slices.DeleteFunc(m.ops, func(op *operation.Operation) bool {
		return op.State.Done() && op.FinishedAt.Before(before)
	})
	return had - len(m.ops), nil
}
