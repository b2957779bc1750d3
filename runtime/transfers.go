package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// PullRequest names an image to pull.
type PullRequest struct {
	RequestID string
	Project   string
	Reference string
	Login     *Login `json:"-"` // nil: as the node is configured
	Username  string `json:",omitempty"`
}

// PushRequest names a local image and where to send it.
type PushRequest struct {
	RequestID   string
	Project     string
	Reference   string
	Destination string // "": the same reference
	Login       *Login `json:"-"` // nil: as the node is configured
	Username    string
}

// transferArgs are the arguments of a pull or a push.
type transferArgs struct {
	Destination string `json:"destination,omitempty"`
	Login       bool   `json:"login,omitempty"` // loginFiles has it
}

// Pull has an image pulled. The request is told from another with the same id
// by everything but the password.
func (m *Manager) Pull(ctx context.Context, req PullRequest) (*operation.Operation, error) {
	name, err := normalize(req.Reference, "reference")
	if err != nil {
		return nil, err
	}
	var args any
	if req.Login != nil {
		req.Username, args = req.Login.Username, transferArgs{Login: true}
	}
	return m.submitWith(ctx, req.Login, KindPull, req.Project, name, req.RequestID, hashOf(KindPull, req), args)
}

func (m *Manager) runPull(ctx context.Context, task *operation.Task) error {
	_, login, err := m.transfer(task.Op)
	if err != nil {
		return err
	}
	var image Image
	err = operation.Idle(ctx, func() (err error) {
		image, err = m.pullImage(ctx, task.Op.Target, login, task)
		return err
	})
	if err != nil {
		return fmt.Errorf("pull image %s: %w", task.Op.Target, ofReference(err))
	}
	task.SetResult("image", image.Name)
	task.SetResult("digest", image.Digest)
	return nil
}

// pullImage pulls an image. What came of one that is to be tried again is kept for
// that; where it is not tried again, a pass removes it, which comes soon.
func (m *Manager) pullImage(ctx context.Context, ref string, login *Login, task *operation.Task) (Image, error) {
	image, err := m.cfg.Images.Pull(ctx, ref, login, task.Progress)
	if errdefs.IsUnavailable(err) {
		m.rest.disturb()
	}
	return image, err
}

// Push has a local image sent to a registry. IMAGE_NOT_FOUND.
func (m *Manager) Push(ctx context.Context, req PushRequest) (*operation.Operation, error) {
	name, err := normalize(req.Reference, "reference")
	if err != nil {
		return nil, err
	}
	args := transferArgs{Destination: name, Login: req.Login != nil}
	if req.Destination != "" {
		if args.Destination, err = normalize(req.Destination, "destination"); err != nil {
			return nil, err
		}
	}
	if req.Login != nil {
		req.Username = req.Login.Username
	}
	release, err := m.claims.use(ctx, name)
	if err != nil {
		return nil, err
	}
	defer release()
	hash := hashOf(KindPush, req)
	project := req.Project
	if project == "" {
		project = DefaultProject
	}
	if op, err := m.known(ctx, project, req.RequestID, hash); op != nil || err != nil {
		return op, err // it may have been deleted since
	}
	if _, err := m.cfg.Images.Image(ctx, name); errdefs.IsNotFound(err) {
		return nil, imageNotHere(name, err)
	} else if err != nil && !errdefs.IsFailedPrecondition(err) { // what is for another platform can be pushed
		return nil, err
	}
	return m.submitWith(ctx, req.Login, KindPush, req.Project, name, req.RequestID, hash, args)
}

func (m *Manager) runPush(ctx context.Context, task *operation.Task) error {
	args, login, err := m.transfer(task.Op)
	if err != nil {
		return err
	}
	var digest string
	err = operation.Idle(ctx, func() (err error) {
		digest, err = m.cfg.Images.Push(ctx, task.Op.Target, args.Destination, login, task.Progress)
		return err
	})
	if err != nil {
		return fmt.Errorf("push image %s: %w", task.Op.Target, ofReference(err))
	}
	task.SetResult("image", args.Destination)
	task.SetResult("digest", digest)
	return nil
}

// transfer reads what a pull or a push works with.
func (m *Manager) transfer(op *operation.Operation) (args transferArgs, login *Login, err error) {
	if op.Args != nil {
		if err := json.Unmarshal(op.Args, &args); err != nil {
			return args, nil, fmt.Errorf("read arguments of operation %s: %w", op.ID, err)
		}
	}
	if !args.Login {
		return args, nil, nil
	}
	login, err = m.logins.read(op.ID)
	if errors.Is(err, fs.ErrNotExist) {
		err = operation.Permanent(problem.New(problem.CredentialsLost, "the credentials that were given with the request are gone").
			WithHint("ask again, with credentials").WithCause(err))
	}
	return args, login, err
}

// forgetLogin removes what an operation that is done needed.
func (m *Manager) forgetLogin(ctx context.Context, op *operation.Operation) {
	if err := m.logins.forget(op.ID); err != nil {
		m.leave(ctx, slog.LevelError, "credentials of an operation could not be removed", "operation", op.ID, "error", err)
	}
}

// unwritten is how long credentials are kept that no operation of the database
// has: it is written right after them.
const unwritten = 10 * time.Minute

// pulling are the images that operations are to pull: an interrupted pull goes
// on from what it has.
func (m *Manager) pulling(ctx context.Context, envs []*Environment) (map[string]bool, error) {
	pending, err := m.cfg.Store.Pending(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pending operations: %w", err)
	}
	pulling := make(map[string]bool)
	for _, op := range pending {
		if op.Kind == KindPull {
			pulling[op.Target] = true
		}
	}
	for _, env := range envs {
		if env.State == Creating {
			pulling[env.Spec.Image] = true
		}
	}
	return pulling, nil
}

// observeLogins lists credentials that no operation needs any more, and what
// others put beside them.
func (m *Manager) observeLogins(ctx context.Context, o *observed) error {
	ages, err := m.logins.list()
	errs := []error{err}
	for name, age := range ages {
		part := Part{Kind: FoundCredentials, Name: name}
		switch {
		case isOperation(name):
			op, err := m.cfg.Store.Operation(ctx, name)
			if err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("read operation %s, which has credentials: %w", name, err))
				continue
			}
			if err == nil && !op.State.Done() || err != nil && age < unwritten { // it may be about to be written
				continue
			}
		case !isHalfWritten(name):
			part.Foreign = "its name is not an operation's id"
		case age < unwritten:
			continue
		}
		o.parts = append(o.parts, part)
	}
	return errors.Join(errs...)
}
