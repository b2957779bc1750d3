package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Limits of RunCommand.
const (
	DefaultCommandTimeout = time.Minute
	CommandOutputLimit    = 1 << 20 // bytes per stream
)

// CommandRequest is a command to run in an environment.
type CommandRequest struct {
	Project     string
	Environment string // id or name
	Argv        []string
	Stdin       []byte
	Env         map[string]string
	Workdir     string
	User        string
	Timeout     time.Duration // 0: DefaultCommandTimeout
}

// RunCommand runs one command in a running environment and returns when it has
// ended. While a snapshot makes the environment stand still it waits, for the
// timeout at most. ENV_NOT_FOUND, ENV_NOT_RUNNING, ENV_BUSY, EXEC_LIMIT_REACHED,
// FIELD_INVALID, and the errors of Engine.Run; with COMMAND_TIMEOUT the result has
// what the command wrote until then.
func (m *Manager) RunCommand(ctx context.Context, req CommandRequest) (CommandResult, error) {
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return CommandResult{}, err
	}
	if env.State != Running {
		return CommandResult{}, NotRunning(env)
	}
	variables, err := commandVariables(req.Argv, req.Env, req.Workdir)
	if err != nil {
		return CommandResult{}, err
	}
	if req.Timeout == 0 {
		req.Timeout = DefaultCommandTimeout
	}
	leave, err := m.enterCommand(env)
	if err != nil {
		return CommandResult{}, err
	}
	defer leave()
	var result CommandResult
	err = m.moving(ctx, env, min(standstillWait, req.Timeout), func(env *Environment) (err error) {
		result, err = m.cfg.Engine.Run(ctx, env.ID, Command{
			Argv: req.Argv, Stdin: req.Stdin, Env: variables, Workdir: req.Workdir, User: req.User,
			Timeout: req.Timeout, OutputLimit: CommandOutputLimit,
		})
		return commandRefused(env, err)
	})
	if err != nil {
		return result, fmt.Errorf("run command in environment %s: %w", env.ID, err)
	}
	return result, nil
}

// TooLong is FIELD_INVALID of a command that no kernel starts.
func TooLong() *problem.Problem {
	return problem.New(problem.FieldInvalid, "the arguments and variables of the command are longer than the kernel takes: argument list too long").
		WithField("argv").WithHint("Linux takes 128 KiB in one, and about 2 MiB in all: use standard input, a file, or several commands")
}
