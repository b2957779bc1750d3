package store_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
)

// copyDatabase takes the files as a crash would leave them: with the
// write-ahead log, while the store is open.
func copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(from + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCrashedDaemonResumes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, crashed := filepath.Join(dir, "node.db"), filepath.Join(dir, "crashed.db")
	s := openAt(t, path)
	q := operation.New(operation.Config{Store: s, Log: slog.New(slog.DiscardHandler)})
	started := make(chan struct{})
	q.Handle("k", func(ctx context.Context, _ *operation.Task) error {
		close(started)
		<-ctx.Done()
		return context.Cause(ctx)
	}, operation.Policy{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	env := environment("a")
	op := operationtest.Operation("k", env.ID)
	if _, err := s.CreateEnvironment(t.Context(), env, op, nil, runtime.Slots{Count: 10}, nil); err != nil {
		t.Fatal(err)
	}
	q.Kick(op.ID)
	<-started
	copyDatabase(t, path, crashed)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	after := openAt(t, crashed)
	found, err := after.Environment(t.Context(), env.ID)
	if err != nil || found.Name != "a" || found.Slot != env.Slot {
		t.Errorf("environment after the crash: %+v, error %v", found, err)
	}
	if left, err := after.Operation(t.Context(), op.ID); err != nil || left.State != operation.Running || left.LeaseOwner == "" {
		t.Errorf("operation after the crash: %+v, error %v", left, err)
	}
	again := operation.New(operation.Config{Store: after, Log: slog.New(slog.DiscardHandler)})
	again.Handle("k", func(context.Context, *operation.Task) error { return nil }, operation.Policy{})
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- again.Run(ctx) }()
	resumed, err := again.Wait(t.Context(), op.ID)
	if err != nil || resumed.State != operation.Succeeded || resumed.Attempts != 2 {
		t.Errorf("resumed as %+v, error %v", resumed, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCursorOfAnotherListIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	for range 2 {
		if _, err := s.InsertOperation(t.Context(), operationtest.Operation("k", "x")); err != nil {
			t.Fatal(err)
		}
	}
	_, next, err := s.Operations(t.Context(), operation.Filter{Limit: 1})
	if err != nil || next == "" {
		t.Fatalf("next %q, error %v", next, err)
	}
	_, _, err = s.Environments(t.Context(), runtime.Filter{After: next})
	wantReason(t, err, problem.PageTokenInvalid)
}
