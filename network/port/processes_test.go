package port_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
	"github.com/remotegpu/remotegpu/store"
)

// Each of the processes takes so many ports, of a pool that just holds them.
const (
	processes  = 2
	ofEach     = 200
	childStore = "PORT_TEST_STORE" // makes the test one of the processes
)

// TestProcessesNeverDouble: two processes on one database, which know nothing
// of each other, never give one port twice.
func TestProcessesNeverDouble(t *testing.T) {
	if path := os.Getenv(childStore); path != "" {
		takePorts(t, path)
		return
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.db")
	s, err := store.Open(t.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := newPool(t, s, allFree).SetRange(t.Context(), port.Custom, 30000, 30000+processes*ofEach-1, 0); err != nil {
		t.Fatal(err)
	}
	var children []*exec.Cmd
	for i := range processes {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcessesNeverDouble$")
		child.Env = append(os.Environ(), childStore+"="+path, "PORT_TEST_NUMBER="+strconv.Itoa(i))
		child.Stdout, child.Stderr = t.Output(), t.Output()
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	for _, child := range children {
		if err := child.Wait(); err != nil {
			t.Errorf("a process: %v", err)
		}
	}
	held, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[uint16]bool)
	for _, m := range held {
		seen[m.External] = true
	}
	if len(seen) != processes*ofEach || len(held) != len(seen) {
		t.Errorf("%d mappings on %d ports, want %d", len(held), len(seen), processes*ofEach)
	}
}

func takePorts(t *testing.T, path string) {
	t.Helper()
	s, err := store.Open(t.Context(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pool := newPool(t, s, allFree)
	for i := range ofEach {
		must(t, pool, s, fmt.Sprint("env-", os.Getenv("PORT_TEST_NUMBER"), "-", i), port.Request{Service: port.Custom, Internal: 80})
	}
}
