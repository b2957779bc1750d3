package store_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/operation/operationtest"
	"github.com/remotegpu/remotegpu/store"
)

func openAt(tb testing.TB, path string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func open(tb testing.TB) *store.Store {
	tb.Helper()
	return openAt(tb, filepath.Join(tb.TempDir(), "node.db"))
}

func TestPortStore(t *testing.T) {
	t.Parallel()
	porttest.TestStore(t, func(t *testing.T) port.Store { t.Helper(); return open(t) })
}

func TestOperationStore(t *testing.T) {
	t.Parallel()
	operationtest.TestStore(t, func(t *testing.T) operation.Store { t.Helper(); return open(t) })
}

func TestMeta(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.db")
	s := openAt(t, path)
	if value, err := s.Meta(t.Context(), "node.id"); err != nil || value != "" {
		t.Errorf("unset: %q, error %v", value, err)
	}
	for _, value := range []string{"one", "two"} {
		if err := s.SetMeta(t.Context(), "node.id", value); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if value, err := openAt(t, path).Meta(t.Context(), "node.id"); err != nil || value != "two" {
		t.Errorf("after reopening: %q, error %v", value, err)
	}
}
