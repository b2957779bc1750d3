package rpc

import (
	"context"
	"errors"
	"io"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
)

// uploadQueue is how many messages of an upload (1 MiB each at most) wait for
// a slow disk.
const uploadQueue = 2

// StatFile implements the RPC.
func (s *environmentService) StatFile(ctx context.Context, req *remotegpuv1.StatFileRequest) (*remotegpuv1.StatFileResponse, error) {
	place := runtime.Place{Project: req.GetProject(), Environment: req.GetEnvironment(), Path: req.GetPath()}
	info, err := s.cfg.Manager.StatFile(ctx, place, req.GetFollowLink())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.StatFileResponse{File: toFile(&info)}, nil
}

// UploadFiles implements the RPC.
func (s *environmentService) UploadFiles(ctx context.Context, stream remotegpuv1connect.EnvironmentServiceUploadFilesServerStream) (*remotegpuv1.UploadFilesResponse, error) {
	first, err := stream.Receive()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	start := first.GetStart()
	if start == nil {
		return nil, uploadNotStarted()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, err := s.cfg.Manager.Upload(ctx, runtime.UploadRequest{
		Place:         runtime.Place{Project: start.GetProject(), Environment: start.GetEnvironment(), Path: start.GetPath()},
		KeepOwnership: start.GetKeepOwnership(), Owner: start.GetOwner(), NoOverwrite: start.GetNoOverwrite(),
	}, receiveData(ctx, stream.Receive))
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UploadFilesResponse{Result: toUploadResult(done)}, nil
}

// DownloadFiles implements the RPC.
func (s *environmentService) DownloadFiles(ctx context.Context, req *remotegpuv1.DownloadFilesRequest, stream remotegpuv1connect.EnvironmentServiceDownloadFilesServerStream) error {
	place := runtime.Place{Project: req.GetProject(), Environment: req.GetEnvironment(), Path: req.GetPath()}
	done, err := s.cfg.Manager.Download(ctx, place, req.GetFollowLink(), func(part runtime.DownloadPart) error {
		message := &remotegpuv1.DownloadFilesResponse{Message: &remotegpuv1.DownloadFilesResponse_Data{Data: part.Data}}
		if part.Info != nil {
			message.Message = &remotegpuv1.DownloadFilesResponse_Info{Info: toFile(part.Info)}
		}
		return stream.Send(message)
	})
	if err != nil {
		return err
	}
	return stream.Send(&remotegpuv1.DownloadFilesResponse{Message: &remotegpuv1.DownloadFilesResponse_Summary{Summary: toSummary(done)}})
}

// StatVolumeFile implements the RPC.
func (s *volumeService) StatVolumeFile(ctx context.Context, req *remotegpuv1.StatVolumeFileRequest) (*remotegpuv1.StatVolumeFileResponse, error) {
	info, err := s.cfg.Manager.StatFile(ctx, runtime.Place{Volume: req.GetVolume(), Path: req.GetPath()}, req.GetFollowLink())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.StatVolumeFileResponse{File: toFile(&info)}, nil
}

// UploadVolumeFiles implements the RPC.
func (s *volumeService) UploadVolumeFiles(ctx context.Context, stream remotegpuv1connect.VolumeServiceUploadVolumeFilesServerStream) (*remotegpuv1.UploadVolumeFilesResponse, error) {
	first, err := stream.Receive()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	start := first.GetStart()
	if start == nil {
		return nil, uploadNotStarted()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, err := s.cfg.Manager.Upload(ctx, runtime.UploadRequest{
		Place:         runtime.Place{Volume: start.GetVolume(), Path: start.GetPath()},
		KeepOwnership: start.GetKeepOwnership(), Owner: start.GetOwner(), NoOverwrite: start.GetNoOverwrite(),
	}, receiveData(ctx, stream.Receive))
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.UploadVolumeFilesResponse{Result: toUploadResult(done)}, nil
}

// DownloadVolumeFiles implements the RPC.
func (s *volumeService) DownloadVolumeFiles(ctx context.Context, req *remotegpuv1.DownloadVolumeFilesRequest, stream remotegpuv1connect.VolumeServiceDownloadVolumeFilesServerStream) error {
	place := runtime.Place{Volume: req.GetVolume(), Path: req.GetPath()}
	done, err := s.cfg.Manager.Download(ctx, place, req.GetFollowLink(), func(part runtime.DownloadPart) error {
		message := &remotegpuv1.DownloadVolumeFilesResponse{Message: &remotegpuv1.DownloadVolumeFilesResponse_Data{Data: part.Data}}
		if part.Info != nil {
			message.Message = &remotegpuv1.DownloadVolumeFilesResponse_Info{Info: toFile(part.Info)}
		}
		return stream.Send(message)
	})
	if err != nil {
		return err
	}
	return stream.Send(&remotegpuv1.DownloadVolumeFilesResponse{Message: &remotegpuv1.DownloadVolumeFilesResponse_Summary{Summary: toSummary(done)}})
}

func uploadNotStarted() error {
	return problem.New(problem.UploadNotStarted, "the first message does not say where to").WithField("start").
		WithHint("send start first, with path and what it is a path of; then the tar stream as data")
}

// receiveData returns what gives the data of an upload, message by message, and
// io.EOF at its end. Who waits for a message does so no longer than its own
// context, while the transport may: so another goroutine receives. It ends with
// the stream.
func receiveData[M interface{ GetData() []byte }](ctx context.Context, receive func() (M, error)) func(context.Context) ([]byte, error) {
	data := make(chan []byte, uploadQueue)
	var end error // once data is closed
	go func() {
		defer close(data)
		for {
			message, err := receive()
			if err != nil {
				end = err // io.EOF, or the end of the caller
				return
			}
			if message.GetData() == nil {
				end = problem.New(problem.FieldInvalid, "the upload was started already").WithField("start").
					WithHint("start each upload with a call of its own")
				return
			}
			select {
			case data <- message.GetData():
			case <-ctx.Done():
				end = context.Cause(ctx)
				return
			}
		}
	}()
	return func(ctx context.Context) ([]byte, error) {
		select {
		case part, open := <-data:
			if !open {
				return nil, end
			}
			return part, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func toFile(info *rootfs.Info) *remotegpuv1.FileInfo {
	return &remotegpuv1.FileInfo{
		Name: info.Name, Type: remotegpuv1.FileType(info.Type), SizeBytes: info.Size, Mode: info.Mode,
		Uid: uint32(info.UID), Gid: uint32(info.GID), ModifiedAt: timestamp(info.ModTime), LinkTarget: info.Target,
	}
}

func toUploadResult(done rootfs.Extracted) *remotegpuv1.UploadResult {
	return &remotegpuv1.UploadResult{Entries: done.Entries, Bytes: done.Bytes}
}

func toSummary(done rootfs.Packed) *remotegpuv1.DownloadSummary {
	return &remotegpuv1.DownloadSummary{Entries: done.Entries, Bytes: done.Bytes, Skipped: done.Skipped, Changed: done.Changed}
}
