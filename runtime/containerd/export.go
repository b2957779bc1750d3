package containerd

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"

	"github.com/remotegpu/remotegpu/internal/imageref"
)

// ExportImages writes an OCI image layout that "docker load" reads too.
func (e *Engine) ExportImages(ctx context.Context, refs []string, w io.Writer) (err error) {
	var records []images.Image
	var digests []string
	for _, ref := range refs {
		record, err := e.record(ctx, ref)
		if err != nil {
			return err
		}
		records, digests = append(records, record), append(digests, record.Target.Digest.String())
	}
	ctx, release, err := e.holdContent(ctx, digests...)
	if err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	defer release(&err)
	for i, record := range records {
		if records[i].Target, _, err = e.whole(ctx, record); err != nil {
			return err
		}
		// A digest in a name says what it names: not the index any more.
		if repository, _, digested := imageref.Digested(record.Name); digested {
			records[i].Name = repository + "@" + records[i].Target.Digest.String()
		}
	}
	err = archive.Export(ctx, e.client.ContentStore(), w, archive.WithImages(records), archive.WithPlatform(platforms.Default()), archive.WithAllPlatforms())
	if err != nil {
		return fmt.Errorf("export images: %w", e.explain(ctx, err))
	}
	return nil
}
