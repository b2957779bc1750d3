package cli

import (
	"context"
	"errors"
	"io"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// uploadChunk is how much of a tar stream goes into one message, in bytes.
const uploadChunk = 256 << 10

// remoteFiles are the files of an environment or a volume.
type remoteFiles interface {
	// stat tells about a file; a link at the end is not followed.
	stat(ctx context.Context, path string) (*remotegpuv1.FileInfo, error)
	// upload sends a tar stream to be taken out in a directory.
	upload(ctx context.Context, dir string, f *copyFlags, in io.Reader) (*remotegpuv1.UploadResult, error)
	// download asks for a tar stream. Close it.
	download(ctx context.Context, path string, follow bool) (*download, error)
}

type envFiles struct {
	*clients
	project, name string
}

func (e envFiles) stat(ctx context.Context, path string) (*remotegpuv1.FileInfo, error) {
	response, err := e.environments.StatFile(ctx, &remotegpuv1.StatFileRequest{Environment: e.name, Project: e.project, Path: path})
	return response.GetFile(), err
}

func (e envFiles) upload(ctx context.Context, dir string, f *copyFlags, in io.Reader) (*remotegpuv1.UploadResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.environments.UploadFiles(ctx)
	if err != nil {
		return nil, err
	}
	start := &remotegpuv1.UploadFilesRequest{Message: &remotegpuv1.UploadFilesRequest_Start{Start: &remotegpuv1.UploadFilesStart{
		Environment: e.name, Project: e.project, Path: dir, KeepOwnership: f.archive, Owner: f.owner, NoOverwrite: f.noOverwrite,
	}}}
	if err := sendAll(stream.Send, start, in, func(data []byte) *remotegpuv1.UploadFilesRequest {
		return &remotegpuv1.UploadFilesRequest{Message: &remotegpuv1.UploadFilesRequest_Data{Data: data}}
	}); err != nil {
		return nil, err
	}
	response, err := stream.CloseAndReceive()
	return response.GetResult(), err
}

func (e envFiles) download(ctx context.Context, path string, follow bool) (*download, error) {
	stream, err := e.environments.DownloadFiles(ctx, &remotegpuv1.DownloadFilesRequest{
		Environment: e.name, Project: e.project, Path: path, FollowLink: follow,
	})
	if err != nil {
		return nil, err
	}
	return begin(func() (downloadMessage, error) { return stream.Receive() }, stream.Close)
}

type volumeFiles struct {
	*clients
	name string
}

func (v volumeFiles) stat(ctx context.Context, path string) (*remotegpuv1.FileInfo, error) {
	response, err := v.volumes.StatVolumeFile(ctx, &remotegpuv1.StatVolumeFileRequest{Volume: v.name, Path: path})
	return response.GetFile(), err
}

func (v volumeFiles) upload(ctx context.Context, dir string, f *copyFlags, in io.Reader) (*remotegpuv1.UploadResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := v.volumes.UploadVolumeFiles(ctx)
	if err != nil {
		return nil, err
	}
	start := &remotegpuv1.UploadVolumeFilesRequest{Message: &remotegpuv1.UploadVolumeFilesRequest_Start{Start: &remotegpuv1.UploadVolumeFilesStart{
		Volume: v.name, Path: dir, KeepOwnership: f.archive, Owner: f.owner, NoOverwrite: f.noOverwrite,
	}}}
	if err := sendAll(stream.Send, start, in, func(data []byte) *remotegpuv1.UploadVolumeFilesRequest {
		return &remotegpuv1.UploadVolumeFilesRequest{Message: &remotegpuv1.UploadVolumeFilesRequest_Data{Data: data}}
	}); err != nil {
		return nil, err
	}
	response, err := stream.CloseAndReceive()
	return response.GetResult(), err
}

func (v volumeFiles) download(ctx context.Context, path string, follow bool) (*download, error) {
	stream, err := v.volumes.DownloadVolumeFiles(ctx, &remotegpuv1.DownloadVolumeFilesRequest{Volume: v.name, Path: path, FollowLink: follow})
	if err != nil {
		return nil, err
	}
	return begin(func() (downloadMessage, error) { return stream.Receive() }, stream.Close)
}

// sendAll sends start and then what is read. An upload that the node has ended
// is no error here: its answer tells why. Whether it has is found out by
// sending, so while there is nothing to read, nothing is sent once a second.
func sendAll[M any](send func(M) error, start M, in io.Reader, wrap func([]byte) M) error {
	type part struct {
		data []byte
		err  error
	}
	// Two buffers take turns, one to be read into while the other is sent: a
	// message is encoded, and its data not needed any more, when send returns. A
	// reader that hangs goes with the program.
	parts, free, over := make(chan part), make(chan []byte, 2), make(chan struct{})
	for range cap(free) {
		free <- make([]byte, uploadChunk)
	}
	defer close(over)
	go func() {
		for {
			var buffer []byte
			select {
			case buffer = <-free:
			case <-over:
				return
			}
			n, err := in.Read(buffer)
			select {
			case parts <- part{buffer[:n], err}:
			case <-over:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	err := send(start)
	for err == nil {
		select {
		case next := <-parts:
			if len(next.data) > 0 {
				err = send(wrap(next.data))
			}
			free <- next.data[:cap(next.data)]
			if errors.Is(next.err, io.EOF) {
				return ended(err)
			}
			if next.err != nil && err == nil {
				return next.err
			}
		case <-tick.C:
			err = send(wrap(nil))
		}
	}
	return ended(err)
}

// ended makes the end of a stream by the other side no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type downloadMessage interface {
	GetInfo() *remotegpuv1.FileInfo
	GetData() []byte
	GetSummary() *remotegpuv1.DownloadSummary
}

// download is a tar stream that comes in.
type download struct {
	info    *remotegpuv1.FileInfo
	summary *remotegpuv1.DownloadSummary // once the stream is whole
	receive func() (downloadMessage, error)
	close   func() error
	rest    []byte
	failed  error
}

// begin waits for the first message.
func begin(receive func() (downloadMessage, error), closeStream func() error) (*download, error) {
	first, err := receive()
	if err == nil && first.GetInfo() == nil {
		err = errCut
	}
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	if err != nil {
		return nil, errors.Join(err, closeStream())
	}
	return &download{info: first.GetInfo(), receive: receive, close: closeStream}, nil
}

var errCut = errors.New("the node ended the call before all was sent")

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	for len(d.rest) == 0 && d.failed == nil {
		message, err := d.receive()
		switch {
		case errors.Is(err, io.EOF) && d.summary == nil:
			d.failed = errCut
		case errors.Is(err, io.EOF):
			d.failed = io.EOF
		case err != nil:
			d.failed = err
		case message.GetSummary() != nil:
			d.summary = message.GetSummary()
		default:
			d.rest = message.GetData()
		}
	}
	if len(d.rest) == 0 {
		return 0, d.failed
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}
