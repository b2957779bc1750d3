package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ImageUse is an image with the environments made from it.
type ImageUse struct {
	Image
	UsedBy []string // environment ids
}

// ListImages returns the local images, by name.
func (m *Manager) ListImages(ctx context.Context) ([]ImageUse, error) {
	images, err := m.cfg.Images.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := m.imageUsers(ctx)
	if err != nil {
		return nil, err
	}
	uses := make([]ImageUse, 0, len(images))
	for _, image := range images {
		uses = append(uses, ImageUse{Image: image, UsedBy: used[image.Name]})
	}
	return uses, nil
}

// imageUsers returns the ids of the environments that hold something, by
// image reference.
func (m *Manager) imageUsers(ctx context.Context) (map[string][]string, error) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return nil, err
	}
	used := make(map[string][]string)
	for _, env := range envs {
		if env.Held {
			used[env.Spec.Image] = append(used[env.Spec.Image], env.ID)
		}
	}
	return used, nil
}

// DeleteImage removes an image that no environment was made from.
func (m *Manager) DeleteImage(ctx context.Context, reference string) (string, error) {
	name, err := normalize(reference, "reference")
	if err != nil {
		return "", err
	}
	used, err := m.imageUsers(ctx)
	if err != nil {
		return "", err
	}
	if ids := used[name]; len(ids) > 0 {
		return "", problem.New(problem.ImageInUse, "image %s is used by %d environments, for example %s", name, len(ids), ids[0]).
			WithField("reference").WithHint("delete them first")
	}
	if err := m.cfg.Images.DeleteImage(ctx, name); errdefs.IsNotFound(err) {
		return "", problem.New(problem.ImageNotFound, "image %s is not on this node", name).WithField("reference").
			WithHint("list the images with: remotegpu image ls").WithCause(err)
	} else if err != nil {
		return "", fmt.Errorf("delete image %s: %w", name, err)
	}
	return name, nil
}

func normalize(reference, field string) (string, error) {
	name, err := imageref.Normalize(reference)
	if err != nil {
		p := *problem.Of(err)
		p.Field = field
		return "", &p
	}
	return name, nil
}

// PullRequest names an image to pull.
type PullRequest struct {
	RequestID string
	Project   string
	Reference string
}

// Pull has an image pulled.
func (m *Manager) Pull(ctx context.Context, req PullRequest) (*operation.Operation, error) {
	name, err := normalize(req.Reference, "reference")
	if err != nil {
		return nil, err
	}
	return m.submit(ctx, KindPull, req.Project, name, req.RequestID, hashOf(KindPull, req), nil)
}

func (m *Manager) runPull(ctx context.Context, task *operation.Task) error {
	image, err := m.cfg.Images.Pull(ctx, task.Op.Target, task.Progress)
	if err != nil {
		return fmt.Errorf("pull image %s: %w", task.Op.Target, err)
	}
	task.SetResult("image", image.Name)
	task.SetResult("digest", image.Digest)
	return nil
}

// ImageBuildRequest names an image source to build.
type ImageBuildRequest struct {
	RequestID string
	Project   string
	BuildRequest
}

// Build has one of the images built whose source the node carries.
func (m *Manager) Build(ctx context.Context, req ImageBuildRequest) (*operation.Operation, error) {
	if m.cfg.Builder == nil {
		return nil, problem.New(problem.BuildkitUnconfigured, "this node has no BuildKit").WithField("source").
			WithHint("start buildkitd and set [buildkit] address in the node's configuration")
	}
	if sources := m.cfg.Builder.Sources(); !slices.Contains(sources, req.Source) {
		return nil, problem.New(problem.ImageSourceNotFound, "there is no image source %q", req.Source).WithField("source").
			WithHint("one of %v", sources)
	}
	if req.Tag == "" {
		req.Tag = "remotegpu/" + req.Source
	}
	tag, err := normalize(req.Tag, "tag")
	if err != nil {
		return nil, err
	}
	req.Tag = tag
	return m.submit(ctx, KindBuild, req.Project, tag, req.RequestID, hashOf(KindBuild, req), req.BuildRequest)
}

func (m *Manager) runBuild(ctx context.Context, task *operation.Task) error {
	var req BuildRequest
	if err := json.Unmarshal(task.Op.Args, &req); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	result, err := m.cfg.Builder.Build(ctx, req, task.Progress)
	if err != nil {
		return fmt.Errorf("build image %s: %w", req.Tag, err)
	}
	task.SetResult("image", result.Image)
	task.SetResult("digest", result.Digest)
	task.SetResult("base", result.Base)
	task.SetResult("base_reason", result.BaseReason)
	return nil
}

// submit writes down an operation that belongs to no environment.
func (m *Manager) submit(ctx context.Context, kind, project, target, requestID, hash string, args any) (*operation.Operation, error) {
	if project == "" {
		project = DefaultProject
	}
	if err := checkProject(project); err != nil {
		return nil, err
	}
	op := m.newOperation(kind, project, target, requestID, hash, args)
	existing, err := m.cfg.Store.InsertOperation(fault.Within(ctx, "request ", kind), op)
	if err != nil {
		m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		return nil, err
	}
	if existing != nil {
		return existing, checkHash(existing, hash)
	}
	m.cfg.Queue.Kick(op.ID)
	return op, nil
}

// Purge forgets environments that were deleted before the time.
func (m *Manager) purge(ctx context.Context, age time.Duration) error {
	_, err := m.cfg.Store.PurgeDeleted(ctx, time.Now().Add(-age))
	return err
}
