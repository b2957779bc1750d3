package rpc

import (
	"context"
	"slices"
	"strings"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/runtime"
)

func (s *imageService) base() *services { return (*services)(s) }

// ListImages implements the RPC.
func (s *imageService) ListImages(ctx context.Context, req *remotegpuv1.ListImagesRequest) (*remotegpuv1.ListImagesResponse, error) {
	images, err := s.cfg.Manager.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(images, func(a, b runtime.ImageUse) int { return strings.Compare(a.Name, b.Name) })
	// The page token is the last name of the page before.
	first, _ := slices.BinarySearchFunc(images, req.GetPageToken(), func(image runtime.ImageUse, token string) int {
		if token != "" && image.Name <= token {
			return -1
		}
		return 1
	})
	images = images[first:]
	res := &remotegpuv1.ListImagesResponse{}
	if size := pageSize(req.GetPageSize()); len(images) > size {
		images = images[:size]
		res.NextPageToken = images[size-1].Name
	}
	res.Images = s.base().toImages(images)
	return res, nil
}

func (s *services) toImages(images []runtime.ImageUse) []*remotegpuv1.Image {
	var all []*remotegpuv1.Image
	for _, image := range images {
		all = append(all, s.toImage(image))
	}
	return all
}

func (s *services) toImage(image runtime.ImageUse) *remotegpuv1.Image {
	tag := image.Digest
	if image.Pinned {
		tag += "-pinned"
	}
	return &remotegpuv1.Image{
		Name: image.Name, Digest: image.Digest, Node: s.cfg.NodeName, Labels: image.Labels, Etag: tag,
		SizeBytes: image.Size, Platform: image.Platform, UpdatedAt: timestamp(image.UpdatedAt), UsedBy: image.UsedBy, Pinned: image.Pinned,
	}
}

// GetImage implements the RPC.
func (s *imageService) GetImage(ctx context.Context, req *remotegpuv1.GetImageRequest) (*remotegpuv1.GetImageResponse, error) {
	info, err := s.cfg.Manager.GetImage(ctx, req.GetReference(), req.GetUsage())
	if err != nil {
		return nil, err
	}
	image := s.base().toImage(info.ImageUse)
	image.Details = toImageDetails(&info)
	return &remotegpuv1.GetImageResponse{Image: image}, nil
}

func toImageDetails(info *runtime.ImageInfo) *remotegpuv1.ImageDetails {
	d := &info.Details
	details := &remotegpuv1.ImageDetails{
		OtherNames: info.OtherNames, CreatedAt: timestamp(d.CreatedAt), Author: d.Author,
		Config: &remotegpuv1.ImageConfig{
			Entrypoint: d.Config.Entrypoint, Command: d.Config.Command, Workdir: d.Config.Workdir, User: d.Config.User, Env: d.Config.Env,
			ExposedPorts: d.Config.ExposedPorts, Volumes: d.Config.Volumes, StopSignal: d.Config.StopSignal,
		},
	}
	for _, layer := range d.Layers {
		details.Layers = append(details.Layers, &remotegpuv1.ImageLayer{Digest: layer.Digest, SizeBytes: layer.Size, CreatedBy: layer.CreatedBy})
	}
	for _, p := range d.Platforms {
		details.Platforms = append(details.Platforms, &remotegpuv1.ImagePlatform{Platform: p.Platform, Digest: p.Digest, Present: p.Present})
	}
	if info.Usage != nil {
		details.Usage = toImageUsage(info.Usage)
	}
	return details
}

func toImageUsage(image *runtime.ImageUsage) *remotegpuv1.ImageUsage {
	return &remotegpuv1.ImageUsage{
		Name: image.Name, ContentBytes: image.Content, ContentUniqueBytes: image.ContentUnique,
		SnapshotBytes: image.Snapshots, SnapshotUniqueBytes: image.SnapshotsUnique, UsedBy: image.UsedBy, Pinned: image.Pinned,
	}
}

// fromCredentials is nil when a request has none.
func fromCredentials(credentials *remotegpuv1.RegistryCredentials) *runtime.Login {
	if credentials == nil {
		return nil
	}
	return &runtime.Login{Username: credentials.GetUsername(), Password: credentials.GetPassword()}
}

// PullImage implements the RPC.
func (s *imageService) PullImage(ctx context.Context, req *remotegpuv1.PullImageRequest) (*remotegpuv1.PullImageResponse, error) {
	op, err := s.cfg.Manager.Pull(ctx, runtime.PullRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Reference: req.GetReference(), Login: fromCredentials(req.GetCredentials()),
	})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.PullImageResponse{Operation: s.base().toOperation(op)}, nil
}

// PushImage implements the RPC.
func (s *imageService) PushImage(ctx context.Context, req *remotegpuv1.PushImageRequest) (*remotegpuv1.PushImageResponse, error) {
	op, err := s.cfg.Manager.Push(ctx, runtime.PushRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Reference: req.GetReference(), Destination: req.GetDestination(),
		Login: fromCredentials(req.GetCredentials()),
	})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.PushImageResponse{Operation: s.base().toOperation(op)}, nil
}

// BuildImage implements the RPC.
func (s *imageService) BuildImage(ctx context.Context, req *remotegpuv1.BuildImageRequest) (*remotegpuv1.BuildImageResponse, error) {
	op, err := s.cfg.Manager.Build(ctx, runtime.ImageBuildRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(),
		BuildRequest: runtime.BuildRequest{Source: req.GetSource(), Tag: req.GetTag(), Base: req.GetBase(), NoCache: req.GetNoCache()},
	})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.BuildImageResponse{Operation: s.base().toOperation(op)}, nil
}

// DeleteImage implements the RPC.
func (s *imageService) DeleteImage(ctx context.Context, req *remotegpuv1.DeleteImageRequest) (*remotegpuv1.DeleteImageResponse, error) {
	name, err := s.cfg.Manager.DeleteImage(ctx, req.GetReference(), req.GetForce())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteImageResponse{Name: name}, nil
}

// TagImage implements the RPC.
func (s *imageService) TagImage(ctx context.Context, req *remotegpuv1.TagImageRequest) (*remotegpuv1.TagImageResponse, error) {
	image, err := s.cfg.Manager.TagImage(ctx, req.GetReference(), req.GetTag())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.TagImageResponse{Image: s.base().toImage(image)}, nil
}

// PinImage implements the RPC.
func (s *imageService) PinImage(ctx context.Context, req *remotegpuv1.PinImageRequest) (*remotegpuv1.PinImageResponse, error) {
	image, err := s.cfg.Manager.PinImage(ctx, req.GetReference(), true)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.PinImageResponse{Image: s.base().toImage(image)}, nil
}

// UnpinImage implements the RPC.
func (s *imageService) UnpinImage(ctx context.Context, req *remotegpuv1.UnpinImageRequest) (*remotegpuv1.UnpinImageResponse, error) {
	image, err := s.cfg.Manager.PinImage(ctx, req.GetReference(), false)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UnpinImageResponse{Image: s.base().toImage(image)}, nil
}

// PruneImages implements the RPC.
func (s *imageService) PruneImages(ctx context.Context, req *remotegpuv1.PruneImagesRequest) (*remotegpuv1.PruneImagesResponse, error) {
	pruned, err := s.cfg.Manager.PruneImages(ctx, runtime.PruneRequest{DryRun: req.GetDryRun(), MinAge: req.GetMinAge().AsDuration()})
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.PruneImagesResponse{FreedBytes: pruned.Freed}
	for _, image := range pruned.Images {
		res.Images = append(res.Images, s.base().toImage(runtime.ImageUse{Image: image}))
	}
	return res, nil
}

// GetImageUsage implements the RPC.
func (s *imageService) GetImageUsage(ctx context.Context, _ *remotegpuv1.GetImageUsageRequest) (*remotegpuv1.GetImageUsageResponse, error) {
	usage, err := s.cfg.Manager.ImageDiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.GetImageUsageResponse{
		ContentBytes: usage.Content, SnapshotBytes: usage.Snapshots, ReclaimableBytes: usage.Reclaimable,
		UnlistedContentBytes: usage.ContentElsewhere, UnlistedSnapshotBytes: usage.SnapshotsElsewhere,
	}
	for i := range usage.Images {
		res.Images = append(res.Images, toImageUsage(&usage.Images[i]))
	}
	return res, nil
}
