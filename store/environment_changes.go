package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// metaLastSlot is the slot that was given out last.
const metaLastSlot = "slot.last"

// CreateEnvironment implements runtime.Store.
func (s *Store) CreateEnvironment(ctx context.Context, env *runtime.Environment, op *operation.Operation,
	mappings []port.Mapping, slots runtime.Slots, decide runtime.LeaseFunc,
) (existing *operation.Operation, err error) {
	row := *env
	row.Revision, row.Ports, row.News = 1, mappings, nil
	if row.CreatedAt.IsZero() {
		row.CreatedAt = s.now()
	}
	if row.UpdatedAt.IsZero() {
		row.UpdatedAt = row.CreatedAt
	}
	row.CreatedAt, row.UpdatedAt, row.StartedAt = stored(row.CreatedAt), stored(row.UpdatedAt), stored(row.StartedAt)
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if existing, err = knownRequest(ctx, tx, op); existing != nil || err != nil {
			return err
		}
		if row.Slot, err = takeSlot(ctx, tx, slots); err != nil {
			return err
		}
		if err := insertEnvironment(ctx, tx, &row); err != nil {
			return err
		}
		if err := insertMappings(ctx, tx, mappings); err != nil {
			return err
		}
		if err := lease(ctx, tx, &row, decide, s.now()); err != nil {
			return err
		}
		if err := insertHistory(ctx, tx, env.ID, env.News); err != nil {
			return err
		}
		return s.insertOperation(ctx, tx, op)
	})
	if err != nil {
		return nil, fmt.Errorf("create environment %s: %w", env.Name, err)
	}
	if existing != nil {
		return existing, nil
	}
	*env = row      // only now, that it is stored
	return nil, nil //nolint:nilnil // no existing operation is the usual answer
}

func insertEnvironment(ctx context.Context, tx *sql.Tx, env *runtime.Environment) error {
	values, err := environmentValues(env)
	if err != nil {
		return err
	}
	if err := aliasFree(ctx, tx, env); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, insertEnvironmentRow, values...)
	return nameTaken(ctx, tx, env, err)
}

// nameTaken explains the violation of a constraint when the name is the reason.
func nameTaken(ctx context.Context, tx *sql.Tx, env *runtime.Environment, err error) error {
	if !sqlite.IsUnique(err) {
		return err
	}
	// Which of the unique columns it was, the driver tells only in words.
	var taken bool
	query := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM environments
		WHERE project = ? AND name = ? AND id != ? AND state != 'deleted')`, env.Project, env.Name, env.ID)
	if query.Scan(&taken) == nil && taken {
		return problem.New(problem.EnvNameExists, "an environment %q exists in project %q", env.Name, env.Project).
			WithField("name").WithHint("choose another name, or delete that environment first")
	}
	return err
}

// takeSlot picks the free slot after the one given out last, so that an
// address rests as long as it can before it is used again.
func takeSlot(ctx context.Context, tx *sql.Tx, slots runtime.Slots) (int, error) {
	text, err := meta(ctx, tx, metaLastSlot)
	if err != nil {
		return 0, err
	}
	last := -1
	if text != "" {
		if last, err = strconv.Atoi(text); err != nil {
			return 0, problem.New(problem.DatabaseFailed, "the last slot cannot be read").WithCause(err)
		}
	}
	slot, found, err := unoccupied(ctx, tx, last+1, slots)
	if err == nil && !found {
		slot, found, err = unoccupied(ctx, tx, 0, slots)
	}
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, problem.New(problem.AddressPoolExhausted, "all %d addresses for environments are in use", slots.Count).
			WithHint("delete an environment, or configure a larger address range")
	}
	return slot, setMeta(ctx, tx, metaLastSlot, strconv.Itoa(slot))
}

// unoccupied finds the first free slot from from on that nothing else occupies.
func unoccupied(ctx context.Context, tx *sql.Tx, from int, slots runtime.Slots) (slot int, found bool, err error) {
	for {
		slot, found, err = freeSlot(ctx, tx, from, slots.Count)
		if err != nil || !found {
			return slot, found, err
		}
		if _, occupied := slices.BinarySearch(slots.Occupied, slot); !occupied {
			return slot, true, nil
		}
		from = slot + 1
	}
}

// freeSlot finds the first free slot in [from, slots): from itself, or the one
// after the end of the run of taken slots that begins there.
func freeSlot(ctx context.Context, tx *sql.Tx, from, slots int) (int, bool, error) {
	if from >= slots {
		return 0, false, nil
	}
	var slot int
	err := tx.QueryRowContext(ctx, `SELECT CASE
		WHEN NOT EXISTS (SELECT 1 FROM environments WHERE slot = ?1) THEN ?1
		ELSE (SELECT e.slot + 1 FROM environments e WHERE e.slot >= ?1
			AND NOT EXISTS (SELECT 1 FROM environments n WHERE n.slot = e.slot + 1)
			ORDER BY e.slot LIMIT 1) END`, from).Scan(&slot)
	return slot, err == nil && slot < slots, err
}

// UpdateEnvironment implements runtime.Store. With a known request id, env is
// the environment as it is, nil when it is deleted by now.
func (s *Store) UpdateEnvironment(ctx context.Context, id string, op *operation.Operation,
	change func(*runtime.Environment) error,
) (env *runtime.Environment, existing *operation.Operation, err error) {
	before := func(ctx context.Context, tx *sql.Tx) (bool, error) {
		existing, err = knownRequest(ctx, tx, op)
		return existing == nil, err
	}
	var holder string
	after := func(ctx context.Context, tx *sql.Tx, env *runtime.Environment, _ time.Time) error {
		if op == nil {
			return nil
		}
		if holder != "" && holder != op.ID && env.Operation == op.ID {
			if _, err := tx.ExecContext(ctx, supersedeOperation, holder, op.Kind); err != nil {
				return err
			}
		}
		return s.insertOperation(ctx, tx, op)
	}
	env, err = s.changeEnvironment(ctx, id, before, func(env *runtime.Environment) error {
		holder = env.Operation
		return change(env)
	}, after)
	if err != nil {
		return nil, nil, err
	}
	return env, existing, nil
}

// ReleaseEnvironment implements runtime.Store.
func (s *Store) ReleaseEnvironment(ctx context.Context, id string, change func(*runtime.Environment) error) (
	*runtime.Environment, []port.Mapping, error,
) {
	var released []port.Mapping
	after := func(ctx context.Context, tx *sql.Tx, env *runtime.Environment, at time.Time) (err error) {
		if released, err = releaseMappings(ctx, tx, id, at); err != nil {
			return err
		}
		if err := releaseLeases(ctx, tx, id, at); err != nil {
			return err
		}
		env.Ports, env.GPUs = nil, nil
		return deleteDNSRecords(ctx, tx, id)
	}
	env, err := s.changeEnvironment(ctx, id, nil, func(env *runtime.Environment) error {
		if err := change(env); err != nil {
			return err
		}
		env.Slot, env.Address = -1, netip.Addr{}
		return nil
	}, after)
	if err != nil {
		return nil, nil, err
	}
	return env, released, nil
}

// ActivateEnvironment implements runtime.Store.
func (s *Store) ActivateEnvironment(ctx context.Context, id string, change func(*runtime.Environment) error) (
	*runtime.Environment, error,
) {
	after := func(ctx context.Context, tx *sql.Tx, env *runtime.Environment, at time.Time) (err error) {
		if err := activateMappings(ctx, tx, id, at); err != nil {
			return err
		}
		env.Ports, err = heldMappings(ctx, tx, id)
		return err
	}
	return s.changeEnvironment(ctx, id, nil, change, after)
}

// ChangePorts implements runtime.Store.
func (s *Store) ChangePorts(ctx context.Context, id string, ports port.Change, change func(*runtime.Environment) error) (
	*runtime.Environment, []port.Mapping, error,
) {
	var released []port.Mapping
	after := func(ctx context.Context, tx *sql.Tx, env *runtime.Environment, at time.Time) (err error) {
		// A host port may move from one row to another.
		if released, err = releaseSome(ctx, tx, id, ports.Drop, at); err != nil {
			return err
		}
		if err := describeMappings(ctx, tx, id, ports.Describe, at); err != nil {
			return err
		}
		if err := insertMappings(ctx, tx, ports.Add); err != nil {
			return err
		}
		env.Ports, err = heldMappings(ctx, tx, id)
		return err
	}
	env, err := s.changeEnvironment(ctx, id, nil, change, after)
	if err != nil {
		return nil, nil, err
	}
	return env, released, nil
}

// changeEnvironment reads, changes and writes one environment in a single
// transaction. before may say that there is nothing to do; after does what
// else belongs to the transaction.
func (s *Store) changeEnvironment(ctx context.Context, id string,
	before func(context.Context, *sql.Tx) (goOn bool, err error),
	change func(*runtime.Environment) error,
	after func(context.Context, *sql.Tx, *runtime.Environment, time.Time) error,
) (*runtime.Environment, error) {
	var (
		env       *runtime.Environment
		changeErr error
	)
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var (
			seq int64
			err error
		)
		goOn := true
		if before != nil {
			if goOn, err = before(ctx, tx); err != nil {
				return err
			}
		}
		env, seq, err = readEnvironment(ctx, tx, "id = ?", id)
		if !goOn {
			return ignoreNoRows(err)
		}
		if err != nil {
			return environmentNotFound(err, id)
		}
		name := env.Name
		if changeErr = change(env); changeErr != nil {
			return changeErr
		}
		if env.Name != name {
			if err := aliasFree(ctx, tx, env); err != nil {
				return err
			}
		}
		now := stored(s.now())
		env.Revision++
		env.UpdatedAt, env.StartedAt, env.RestartAt = now, stored(env.StartedAt), stored(env.RestartAt)
		values, err := environmentValues(env)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, updateEnvironmentRow, append(values, seq)...); err != nil {
			return nameTaken(ctx, tx, env, err)
		}
		if err := insertHistory(ctx, tx, id, env.News); err != nil {
			return err
		}
		env.News = nil
		return after(ctx, tx, env, now)
	})
	if changeErr != nil {
		return nil, changeErr
	}
	if err != nil {
		return nil, fmt.Errorf("update environment %s: %w", id, err)
	}
	return env, nil
}
