//go:build faultpoints

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

type scopeKey struct{}

// control is the directory's state. A test build may have a global.
var control struct { //nolint:gochecknoglobals // of the test build alone
	mu      sync.Mutex
	armed   string         // the content of arm that counts belong to
	counts  map[string]int // of points since it was written
	spent   bool           // it has fired
	sources sync.Once
	dir     string
}

func dir() string {
	control.sources.Do(func() { control.dir = os.Getenv("REMOTEGPU_FAULTPOINTS") })
	return control.dir
}

// Declare tells that operations of a kind exist.
func Declare(kind string) {
	control.mu.Lock()
	defer control.mu.Unlock()
	write("kinds", kind+"\n")
}

// Within makes what is done with the context belong to a scope: prefix and
// kind.
func Within(ctx context.Context, prefix, kind string) context.Context {
	return context.WithValue(ctx, scopeKey{}, prefix+kind)
}

// Point stands between two steps. The error is the one of the step that
// follows.
func Point(ctx context.Context, name string) error { return pass(ctx, "between", name) }

// Before stands before a call that changes something, which is not made when
// it returns an error.
func Before(ctx context.Context, call string) error { return pass(ctx, "before", call) }

// After stands behind a call that has changed something. An error is an answer
// that was lost.
func After(ctx context.Context, call string) error { return pass(ctx, "after", call) }

// write appends to a file of the directory. control.mu is held.
func write(file, text string) {
	if dir() == "" {
		return
	}
	f, err := os.OpenFile(filepath.Join(dir(), file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic("fault: " + err.Error()) // the test would wait for nothing
	}
	if _, err = f.WriteString(text); errors.Join(err, f.Close()) != nil {
		panic("fault: " + file + " cannot be written")
	}
}

func pass(ctx context.Context, what, name string) error {
	scope, _ := ctx.Value(scopeKey{}).(string)
	if dir() == "" || scope == "" || reads(name) {
		return nil
	}
	name = short(name)
	control.mu.Lock()
	defer control.mu.Unlock()
	id := strings.Join([]string{scope, what, name}, "\t")
	write("trace", id+"\n")
	text, err := os.ReadFile(filepath.Join(dir(), "arm"))
	if err != nil {
		return nil // nothing is armed
	}
	if string(text) != control.armed {
		control.armed, control.counts, control.spent = string(text), make(map[string]int), false
	}
	control.counts[id]++
	line, _, _ := strings.Cut(control.armed, "\n")
	action, rest, _ := strings.Cut(line, "\t")
	if control.spent || rest != fmt.Sprintf("%s\t%d", id, control.counts[id]) {
		return nil
	}
	control.spent = true
	write("fired", line+"\n")
	if action == "kill" {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	return fmt.Errorf("%s %s: %w", what, name, errOnPurpose)
}

var errOnPurpose = errors.New("failed on purpose")

// reads says whether a method of containerd's API changes nothing.
func reads(method string) bool {
	if !strings.HasPrefix(method, "/containerd.") {
		return false
	}
	switch filepath.Base(method) {
	case "Get", "List", "Stat", "Mounts", "Wait", "Version", "Status", "ListStatuses", "ListPids", "Metrics", "Usage", "Info", "Plugins",
		"ListResources", "State", "Read", "PluginInfo":
		return true
	}
	return false
}

// short is "Tasks.Create" for a method of containerd's API, and the name of a
// program without its directory.
func short(name string) string {
	base := filepath.Base(name)
	if service := filepath.Dir(name); strings.HasPrefix(service, "/containerd.") {
		return service[strings.LastIndexByte(service, '.')+1:] + "." + base
	}
	return base
}
