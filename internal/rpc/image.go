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
	for _, image := range images {
		res.Images = append(res.Images, &remotegpuv1.Image{
			Name: image.Name, Digest: image.Digest, Node: s.cfg.NodeName, Labels: image.Labels, Etag: image.Digest,
			SizeBytes: image.Size, Platform: image.Platform, UpdatedAt: timestamp(image.UpdatedAt), UsedBy: image.UsedBy,
		})
	}
	return res, nil
}

// PullImage implements the RPC.
func (s *imageService) PullImage(ctx context.Context, req *remotegpuv1.PullImageRequest) (*remotegpuv1.PullImageResponse, error) {
	op, err := s.cfg.Manager.Pull(ctx, runtime.PullRequest{RequestID: req.GetRequestId(), Project: req.GetProject(), Reference: req.GetReference()})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.PullImageResponse{Operation: s.base().toOperation(op)}, nil
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
	name, err := s.cfg.Manager.DeleteImage(ctx, req.GetReference())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteImageResponse{Name: name}, nil
}
