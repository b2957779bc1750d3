package problem_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

func TestProblemIsItsKindAndItsCause(t *testing.T) {
	cause := errors.New("disk on fire")
	err := fmt.Errorf("create x: %w", problem.New(problem.EnvNotFound, "no %q", "x").WithField("environment").WithHint("look").WithCause(cause))
	if !errdefs.IsNotFound(err) || !errors.Is(err, cause) {
		t.Errorf("%v has lost its kind or cause", err)
	}
	if p := problem.Of(err); p.Reason != problem.EnvNotFound || p.Field != "environment" || p.Hint != "look" {
		t.Errorf("got %+v", p)
	}
}

func TestOfGivesEveryErrorAReason(t *testing.T) {
	for err, want := range map[error]problem.Reason{
		errdefs.ErrNotFound: problem.NotFound, errdefs.ErrUnavailable: problem.Unavailable, errors.New("x"): problem.Internal,
	} {
		if got := problem.Of(fmt.Errorf("do: %w", err)).Reason; got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
	if problem.Of(nil) != nil {
		t.Error("nil is a problem")
	}
}

// The system's words for a full disk are no answer to somebody who has never
// heard of the file.
func TestOfSaysWhatToDoAboutAFullDisk(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		err := fmt.Errorf("write files: %w", &fs.PathError{Op: "mkdir", Path: "/state/x", Err: cause})
		p := problem.Of(err)
		if p.Reason != problem.DiskFull || p.Hint == "" || !strings.Contains(p.Said(), "is full") || !errors.Is(p, cause) {
			t.Errorf("%v is %+v", err, p)
		}
	}
}

func TestAllFindsEveryProblem(t *testing.T) {
	err := fmt.Errorf("check: %w", errors.Join(
		problem.New(problem.FieldInvalid, "a").WithField("a"),
		fmt.Errorf("b: %w", problem.New(problem.EnvNameInvalid, "b").WithField("b")),
	))
	found := problem.All(err)
	if len(found) != 2 || found[0].Field != "a" || found[1].Field != "b" {
		t.Errorf("got %v", found)
	}
}

func TestEveryReasonHasAKind(t *testing.T) {
	seen := map[problem.Reason]bool{}
	for _, reason := range problem.Reasons() {
		if seen[reason] || reason.Kind() == nil {
			t.Errorf("%s is there twice or has no kind", reason)
		}
		seen[reason] = true
	}
}
