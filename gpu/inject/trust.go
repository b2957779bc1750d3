package inject

import (
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

// checkProgram refuses what others than root could change before root runs it:
// GPU_INJECTION_FAILED.
func checkProgram(path string) *problem.Problem { return distrust(path, trusted.Program(path)) }

// checkLibrary does so before every program of a container loads it.
func checkLibrary(path string) *problem.Problem { return distrust(path, trusted.Library(path)) }

func distrust(path string, err error) *problem.Problem {
	if err == nil {
		return nil
	}
	return problem.New(problem.GPUInjectionFailed, "%s cannot be trusted: %v", path, err).WithCause(err).
		WithHint("it would run with the rights of root: give it and the directories above it to root, and let nobody else write there")
}
