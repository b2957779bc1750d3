package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// ImageUse is an image with the environments made from it, by whatever name.
type ImageUse struct {
	Image
	UsedBy []string // environment ids
}

// imageUsers are the environments that hold something of images. One that is
// made needs the image that it was made from, and not what its name is set to
// since; one that is being made takes what it finds under the name.
type imageUsers struct {
	byDigest map[string][]*Environment
	byName   map[string][]*Environment // those that are being made, or never were
}

// of returns the environments that need an image.
func (u imageUsers) of(image Image) []*Environment {
	return slices.Concat(u.byDigest[image.Digest], u.byName[image.Name])
}

// ofName returns the environments for which an image must keep its name: they
// were made from it by that name, or it has no other among images.
func (u imageUsers) ofName(image Image, images []Image) []*Environment {
	another := slices.ContainsFunc(images, func(other Image) bool { return other.Digest == image.Digest && other.Name != image.Name })
	return slices.DeleteFunc(u.of(image), func(env *Environment) bool { return another && env.Spec.Image != image.Name })
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
		uses = append(uses, ImageUse{Image: image, UsedBy: idsOf(used.of(image))})
	}
	return uses, nil
}

func (m *Manager) imageUsers(ctx context.Context) (imageUsers, error) {
	used := imageUsers{byDigest: make(map[string][]*Environment), byName: make(map[string][]*Environment)}
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return used, err
	}
	for _, env := range envs {
		switch {
		case !env.Held:
		case env.Digest != "":
			used.byDigest[env.Digest] = append(used.byDigest[env.Digest], env)
		default:
			used.byName[env.Spec.Image] = append(used.byName[env.Spec.Image], env)
		}
	}
	return used, nil
}

func idsOf(envs []*Environment) []string {
	var ids []string
	for _, env := range envs {
		ids = append(ids, env.ID)
	}
	return ids
}

// DeleteImage removes an image that no environment was made from and that is
// not pinned, or one of its names that none of those was made from it by. With
// force it removes one that environments were made from: they keep their
// layers. IMAGE_NOT_FOUND, IMAGE_IN_USE, IMAGE_PINNED.
func (m *Manager) DeleteImage(ctx context.Context, reference string, force bool) (string, error) {
	name, err := normalize(reference, "reference")
	if err != nil {
		return "", err
	}
	release, err := m.claims.remove(ctx, name)
	if err != nil {
		return "", err
	}
	defer release()
	image, err := m.deletable(ctx, name, force)
	if err != nil {
		return "", err
	}
	if image.Digest == "" {
		err = m.cfg.Images.DeleteImage(ctx, name)
	} else {
		err = m.cfg.Images.RemoveImage(ctx, image)
	}
	if errdefs.IsNotFound(err) {
		return "", imageNotHere(name, err)
	} else if err != nil {
		return "", fmt.Errorf("delete image %s: %w", name, ofReference(err))
	}
	return name, nil
}

// deletable returns an image that may be removed, without a digest when it is
// not listed.
func (m *Manager) deletable(ctx context.Context, name string, force bool) (Image, error) {
	images, err := m.cfg.Images.Images(ctx)
	if err != nil {
		return Image{}, err
	}
	image := Image{Name: name} // what is not whole is not listed
	if i := slices.IndexFunc(images, func(image Image) bool { return image.Name == name }); i >= 0 {
		image = images[i]
	}
	if image.Pinned {
		return Image{}, problem.New(problem.ImagePinned, "image %s is pinned", name).WithField("reference").
			WithHint("unpin it first: remotegpu image unpin %s", name)
	}
	used, err := m.imageUsers(ctx)
	if err != nil {
		return Image{}, err
	}
	var names []string
	for _, env := range used.ofName(image, images) {
		if env.State == Creating {
			return Image{}, problem.New(problem.ImageInUse, "environment %s is being created from image %s", displayName(env), name).
				WithField("reference").WithHint("wait until it is created, or delete it")
		}
		names = append(names, displayName(env))
	}
	if len(names) > 0 && !force {
		const most = 5
		list := strings.Join(names[:min(len(names), most)], ", ")
		if more := len(names) - most; more > 0 {
			list += fmt.Sprintf(" and %d more", more)
		}
		return Image{}, problem.New(problem.ImageInUse, "image %s is in use by %s", name, list).WithField("reference").
			WithHint("delete those environments first, or delete the image with force: they keep the layers they have")
	}
	return image, nil
}

// displayName tells an environment from those of other projects.
func displayName(env *Environment) string {
	if env.Project == DefaultProject {
		return env.Name
	}
	return env.Project + "/" + env.Name
}

func imageNotHere(name string, err error) error {
	return problem.New(problem.ImageNotFound, "image %s is not on this node", name).WithField("reference").
		WithHint("list the images with: remotegpu image ls").WithCause(err)
}

// ofReference gives what the image store says of an image the field of the
// requests that are about images.
func ofReference(err error) error {
	p, ok := errors.AsType[*problem.Problem](err)
	if !ok || p.Field != "spec.image" {
		return err
	}
	moved := *p
	moved.Field = "reference"
	return &moved
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
	if err := imageref.CheckDigest(tag, "", "tag"); err != nil {
		return nil, err
	}
	req.Tag = tag
	for _, ref := range []string{tag, req.Base, BuildName(tag)} { // until the store says that they are needed
		if name, err := imageref.Normalize(ref); err == nil {
			release, err := m.claims.use(ctx, name)
			if err != nil {
				return nil, err
			}
			defer release()
		}
	}
	return m.submit(ctx, KindBuild, req.Project, tag, req.RequestID, hashOf(KindBuild, req), req.BuildRequest)
}

// BuildName is the reference under which a Builder has an image of tag until it
// is whole. A tag has the same each time: a build replaces what one before it has
// left, and the end of the last one, however it ended, removes the name.
func BuildName(tag string) string {
	sum := sha256.Sum256([]byte(tag))
	return imageref.Repository(tag) + ":building-" + hex.EncodeToString(sum[:6])
}

func (m *Manager) runBuild(ctx context.Context, task *operation.Task) error {
	var req BuildRequest
	if err := json.Unmarshal(task.Op.Args, &req); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	var result BuildResult
	err := operation.Idle(ctx, func() (err error) {
		result, err = m.cfg.Builder.Build(ctx, req, task.Progress)
		return err
	})
	if err != nil {
		return fmt.Errorf("build image %s: %w", req.Tag, err)
	}
	task.SetResult("image", result.Image)
	task.SetResult("digest", result.Digest)
	task.SetResult("base", result.Base)
	task.SetResult("base_reason", result.BaseReason)
	return nil
}

// forgetTime bounds the removal of a name when a build is over: who waits for the
// build waits for it.
const forgetTime = 30 * time.Second

// forgetBuild removes the name that a build which is over gave its image while it
// was in the making, unless there is another build of the tag, which may be using
// it: one that was cancelled in the queue ends while the one before it works.
func (m *Manager) forgetBuild(ctx context.Context, op *operation.Operation) {
	ctx, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	name := BuildName(op.Target)
	if err := m.removeBuildName(ctx, op.Target, name); err != nil && !errdefs.IsNotFound(err) {
		m.cfg.Log.WarnContext(ctx, "the name of an image in the making was not removed; prune removes it", "image", name, "error", err)
	}
}

func (m *Manager) removeBuildName(ctx context.Context, tag, name string) error {
	release, err := m.claims.remove(ctx, name)
	if errdefs.IsFailedPrecondition(err) {
		return nil // another build is being asked for
	} else if err != nil {
		return err
	}
	defer release()
	pending, err := m.cfg.Store.Pending(ctx)
	if err != nil {
		return fmt.Errorf("list pending operations: %w", err)
	}
	for _, op := range pending {
		if op.Kind == KindBuild && op.Target == tag {
			return nil
		}
	}
	return m.cfg.Images.DeleteImage(ctx, name)
}

// submit writes down an operation that belongs to no environment.
func (m *Manager) submit(ctx context.Context, kind, project, target, requestID, hash string, args any) (*operation.Operation, error) {
	return m.submitWith(ctx, nil, kind, project, target, requestID, hash, args)
}

// submitWith keeps what a registry asks for as long as the operation needs it.
// It is kept first: were the daemon to die before the operation is written, the
// file would be found and removed; the other way about, the operation would
// begin without it.
func (m *Manager) submitWith(ctx context.Context, login *Login, kind, project, target, requestID, hash string, args any) (*operation.Operation, error) {
	if project == "" {
		project = DefaultProject
	}
	if err := checkProject(project); err != nil {
		return nil, err
	}
	if op, err := m.known(ctx, project, requestID, hash); op != nil || err != nil {
		return op, err
	}
	if err := m.room(); err != nil {
		return nil, err
	}
	op := m.newOperation(kind, project, target, requestID, hash, args)
	if login != nil {
		if err := m.logins.keep(op.ID, *login); err != nil {
			return nil, err
		}
	}
	existing, err := m.cfg.Store.InsertOperation(fault.Within(ctx, "request ", kind), op)
	if err != nil {
		m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row; observeLogins finds out
		return nil, err
	}
	if existing != nil {
		return existing, errors.Join(checkHash(existing, hash), m.logins.forget(op.ID))
	}
	m.cfg.Queue.Kick(op.ID)
	return op, nil
}

// Purge forgets environments that were deleted before the time.
func (m *Manager) purge(ctx context.Context, age time.Duration) error {
	_, err := m.cfg.Store.PurgeDeleted(ctx, time.Now().Add(-age))
	return err
}
