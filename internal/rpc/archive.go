package rpc

import (
	"bufio"
	"context"
	"errors"
	"io"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// chunkSize is how many bytes of an archive go into one message.
const chunkSize = 512 << 10

// ImportImage implements the RPC.
func (s *imageService) ImportImage(ctx context.Context, stream remotegpuv1connect.ImageServiceImportImageServerStream) (*remotegpuv1.ImportImageResponse, error) {
	first, err := stream.Receive()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if first.GetStart() == nil {
		return nil, problem.New(problem.FieldInvalid, "the first message does not start an import").WithField("start").
			WithHint("send start first, the archive then")
	}
	images, err := s.cfg.Manager.ImportImages(ctx, &archiveReader{stream: stream}, first.GetStart().GetReference())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.ImportImageResponse{Images: s.base().toImages(images)}, nil
}

// archiveReader reads the chunks of an import. It ends with io.EOF only when
// the caller has sent all.
type archiveReader struct {
	stream remotegpuv1connect.ImageServiceImportImageServerStream
	rest   []byte
}

// Read implements io.Reader.
func (r *archiveReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		message, err := r.stream.Receive()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF // readers compare it
		} else if err != nil {
			return 0, err
		}
		if message.GetStart() != nil {
			return 0, problem.New(problem.FieldInvalid, "the import was started already").WithField("start").
				WithHint("import each archive with a call of its own")
		}
		r.rest = message.GetChunk()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// ExportImage implements the RPC.
func (s *imageService) ExportImage(ctx context.Context, req *remotegpuv1.ExportImageRequest, stream remotegpuv1connect.ImageServiceExportImageServerStream) error {
	// Send may keep what it is given no longer than the call.
	chunks := bufio.NewWriterSize(writerFunc(func(p []byte) (int, error) {
		return len(p), stream.Send(&remotegpuv1.ExportImageResponse{Chunk: p})
	}), chunkSize)
	if err := s.cfg.Manager.ExportImages(ctx, req.GetReferences(), chunks); err != nil {
		return err
	}
	return chunks.Flush()
}
