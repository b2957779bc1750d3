package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
)

// The exit codes, as the help of the program lists them.
const (
	exitOK          = 0
	exitUnexpected  = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitExhausted   = 5
	exitUnavailable = 6
	exitDenied      = 7
	exitFailed      = 8
	exitInterrupted = 130

	// Of node firewall diff --exit-code, as diff(1) has it.
	exitDiffers = 1

	// Of env exec, besides the command's own.
	exitExecTimeout       = 124
	exitExecFailed        = 125
	exitExecNotExecutable = 126
	exitExecNotFound      = 127
)

// failure is what people and programs get to see of an error.
type failure struct {
	Code    string       `json:"code,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Message string       `json:"message"`
	Fields  []fieldFault `json:"fields,omitempty"`
	Hints   []string     `json:"hints,omitempty"`
	Links   []string     `json:"links,omitempty"`

	exit int
}

type fieldFault struct {
	Field       string `json:"field"`
	Description string `json:"description,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// Error is the message.
func (f *failure) Error() string { return f.Message }

// commandExit is an exit code that says all there is to say: that of a command
// that ran in an environment, or that what was compared differs.
type commandExit int

// Error says which.
func (c commandExit) Error() string { return fmt.Sprintf("the command exited with %d", int(c)) }

func usage(err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{Code: "invalid_argument", Message: err.Error(), Hints: []string{"remotegpu help, or --help after a command"}, exit: exitUsage}
}

func usagef(hint, format string, args ...any) error {
	return &failure{Code: "invalid_argument", Message: fmt.Sprintf(format, args...), Hints: []string{hint}, exit: exitUsage}
}

// finish says what went wrong and turns it into an exit code.
func (a *app) finish(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if code, ok := errors.AsType[commandExit](err); ok {
		return int(code)
	}
	f := a.explain(ctx, err)
	a.tell(f)
	if a.exec && f.exit != exitInterrupted {
		return execExit(f)
	}
	return f.exit
}

// execExit keeps our own failures apart from the command's codes, as timeout(1)
// and the shells do.
func execExit(f *failure) int {
	switch f.Reason {
	case "COMMAND_NOT_FOUND":
		return exitExecNotFound
	case "COMMAND_NOT_EXECUTABLE":
		return exitExecNotExecutable
	case "COMMAND_TIMEOUT":
		return exitExecTimeout
	default:
		return exitExecFailed
	}
}

// tell says what went wrong, as the caller wants it said.
func (a *app) tell(f *failure) {
	if a.output == "json" {
		a.reportJSON(f)
	} else {
		a.report(f)
	}
}

func (a *app) report(f *failure) {
	a.say("Error: %s", f.Message)
	for _, fault := range f.Fields {
		if fault.Description == "" || fault.Description == f.Message {
			a.say("  field %s", fault.Field)
		} else {
			a.say("  field %s: %s", fault.Field, fault.Description)
		}
	}
	for _, hint := range f.Hints {
		a.say("Try: %s", hint)
	}
	for _, link := range f.Links {
		a.say("See: %s", link)
	}
}

func (a *app) reportJSON(f *failure) {
	text, err := json.Marshal(map[string]*failure{"error": f})
	if err != nil {
		a.report(f)
		return
	}
	a.say("%s", text)
}

// say writes a line for people to standard error. There is nobody left to tell
// when that fails.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stderr, format+"\n", args...)
}

// exitOf is the exit code of an API code.
func exitOf(code connect.Code) int {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return exitUsage
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		return exitConflict
	case connect.CodeResourceExhausted:
		return exitExhausted
	case connect.CodeUnavailable:
		return exitUnavailable
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return exitDenied
	case connect.CodeDeadlineExceeded:
		return exitFailed
	default:
		return exitUnexpected
	}
}
