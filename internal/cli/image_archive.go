package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// archiveChunk is how many bytes of an archive go into one message.
const archiveChunk = 512 << 10

func (a *app) imageImport() *cobra.Command {
	var tag string
	cmd := &cobra.Command{
		Use: "import FILE|-", Short: "Read images from a tar archive", Args: cobra.ExactArgs(1),
		Long: `import reads images from a tar archive, or from standard input when it is "-":
an OCI image layout, or what "docker save" writes; gzip and zstd are undone.
Nothing is kept of an archive that is not whole.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var archive io.Reader
			var size int64
			if args[0] == "-" {
				archive = untilDone(cmd.Context(), a.stdin)
			} else {
				file, err := os.Open(args[0])
				if err != nil {
					return usagef("name a file, or - for standard input", "%v", err)
				}
				defer file.Close() //nolint:errcheck // it is only read
				if info, err := file.Stat(); err == nil {
					size = info.Size()
				}
				archive = file
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := a.sendArchive(cmd.Context(), c, archive, size, tag)
			if err != nil {
				return err
			}
			return a.showImages(response, response.GetImages())
		},
	}
	cmd.Flags().StringVarP(&tag, "tag", "t", "", "name of the image, for an archive of one (default: the names that the archive has)")
	return cmd
}

// sendArchive streams an archive. What fails here ends the stream before its
// end, so that the node keeps nothing.
func (a *app) sendArchive(ctx context.Context, c *clients, archive io.Reader, total int64, tag string) (*remotegpuv1.ImportImageResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.images.ImportImage(ctx)
	if err != nil {
		return nil, err
	}
	bar := newProgress(a.stderr)
	defer bar.close()
	err = stream.Send(&remotegpuv1.ImportImageRequest{Message: &remotegpuv1.ImportImageRequest_Start{
		Start: &remotegpuv1.ImportImageStart{Reference: tag},
	}})
	buffer := make([]byte, archiveChunk)
	for sent := int64(0); err == nil; {
		n, readErr := io.ReadFull(archive, buffer)
		if n > 0 {
			err = stream.Send(&remotegpuv1.ImportImageRequest{Message: &remotegpuv1.ImportImageRequest_Chunk{Chunk: buffer[:n]}})
			sent += int64(n)
			bar.bytes("sending", sent, total)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, fmt.Errorf("read archive: %w", readErr)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: the answer says why
		return nil, err
	}
	return stream.CloseAndReceive()
}

func (a *app) imageExport() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "export REFERENCE...", Short: "Write images to a tar archive", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeImages,
		Long: `export writes images as one tar archive, an OCI image layout that "docker load"
and "image import" read: to a file (-f), or to standard output. A file is there
when it is whole.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" && onTerminal(a.stdout) {
				return usagef("name a file: -f FILE", "the archive is nothing for a terminal")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			stream, err := c.images.ExportImage(cmd.Context(), &remotegpuv1.ExportImageRequest{References: args})
			if err != nil {
				return err
			}
			defer stream.Close() //nolint:errcheck // read to its end, or abandoned
			if path == "" {
				return a.receiveArchive(stream.Receive, a.stdout)
			}
			return writeNamed(cmd.Context(), path, savedFile{mode: 0o644}, func(file io.Writer) error { return a.receiveArchive(stream.Receive, file) })
		},
	}
	cmd.Flags().StringVarP(&path, "file", "f", "", "file to write (default: standard output)")
	return cmd
}

func (a *app) receiveArchive(receive func() (*remotegpuv1.ExportImageResponse, error), to io.Writer) error {
	bar := newProgress(a.stderr)
	defer bar.close()
	for received := int64(0); ; {
		message, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := to.Write(message.GetChunk()); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		received += int64(len(message.GetChunk()))
		bar.bytes("receiving", received, 0)
	}
}
