package runtimetest

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Push makes a local image one of the registry.
func (i *FakeImages) Push(ctx context.Context, ref, destination string, login *runtime.Login, progress func(operation.Progress)) (digest string, err error) {
	err = i.Faults.Do("Images.Push", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full, err := imageref.Normalize(destination)
		if err != nil {
			return err
		}
		image, err := i.find(ref)
		if err != nil {
			return err
		}
		i.mu.Lock()
		err = i.admit(full, login)
		i.mu.Unlock()
		if err != nil {
			return err
		}
		if progress != nil {
			progress(operation.Progress{Step: "push", Done: image.Size, Total: image.Size, Layers: []operation.Layer{{
				Digest: image.Digest, Done: image.Size, Total: image.Size, State: operation.LayerTransferred,
			}}})
		}
		image.Name, image.Pinned = full, false
		i.AddRemote(image)
		digest = image.Digest
		return nil
	})
	return digest, err
}

// find returns a local image.
func (i *FakeImages) find(ref string) (runtime.Image, error) {
	full, err := imageref.Normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	image, ok := i.local[full]
	if ok {
		return image, nil
	}
	if repository, digest, digested := imageref.Digested(full); digested {
		for name, image := range i.local {
			if image.Digest == digest && imageref.Repository(name) == repository {
				return image, nil
			}
		}
	}
	return runtime.Image{}, imageNotFound(full)
}

// Tag gives a local image another name.
func (i *FakeImages) Tag(_ context.Context, ref, tag string) (image runtime.Image, err error) {
	err = i.Faults.Do("Images.Tag", func() error {
		full, err := imageref.Normalize(tag)
		if err != nil {
			return err
		}
		if image, err = i.find(ref); err != nil {
			return err
		}
		if err := imageref.CheckDigest(full, image.Digest, "tag"); err != nil {
			return err
		}
		i.mu.Lock()
		image.Name, image.Pinned, image.UpdatedAt = full, i.local[full].Pinned, time.Now()
		i.mu.Unlock()
		i.Add(image)
		return nil
	})
	return image, err
}

// SetPinned keeps in mind that a local image is pinned.
func (i *FakeImages) SetPinned(_ context.Context, ref string, pinned bool) (image runtime.Image, err error) {
	err = i.Faults.Do("Images.SetPinned", func() error {
		if image, err = i.find(ref); err != nil {
			return err
		}
		image.Pinned = pinned
		i.Add(image)
		return nil
	})
	return image, err
}

// Hold has an environment hold what an image is made of, though it has no name.
func (i *FakeImages) Hold(digest string, bytes int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.held == nil {
		i.held = make(map[string]int64)
	}
	i.held[digest] = bytes
}

// Contents says that each digest is one blob and one snapshot of the image's
// size.
func (i *FakeImages) Contents(context.Context) (all runtime.Contents, err error) {
	err = i.Faults.Do("Images.Contents", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		all.Blobs, all.Snapshots = make(map[string]int64), make(map[string]runtime.UnpackedLayer)
		for digest, bytes := range i.held {
			all.Blobs[digest] = bytes
			all.Snapshots[digest] = runtime.UnpackedLayer{Bytes: bytes, Held: true}
		}
		for name, image := range i.local {
			all.Blobs[image.Digest] = image.Size
			all.Snapshots[image.Digest] = runtime.UnpackedLayer{Bytes: image.Size, Held: all.Snapshots[image.Digest].Held}
			all.Images = append(all.Images, runtime.ImageContents{
				Name: name, Blobs: []string{image.Digest}, Snapshots: []string{image.Digest},
			})
		}
		return nil
	})
	return all, err
}

// ExportImages writes a tar archive with one file of JSON per image.
func (i *FakeImages) ExportImages(_ context.Context, refs []string, archive io.Writer) error {
	return i.Faults.Do("Images.ExportImages", func() error {
		var images []runtime.Image
		for _, ref := range refs {
			image, err := i.find(ref)
			if err != nil {
				return err
			}
			images = append(images, image)
		}
		writer := tar.NewWriter(archive)
		for _, image := range images {
			image.Pinned = false
			text, err := json.Marshal(image)
			if err != nil {
				return err
			}
			if err := writer.WriteHeader(&tar.Header{Name: "image", Mode: 0o644, Size: int64(len(text))}); err != nil {
				return err
			}
			if _, err := writer.Write(text); err != nil {
				return err
			}
		}
		return writer.Close()
	})
}

// ImportImages reads what ExportImages wrote.
func (i *FakeImages) ImportImages(ctx context.Context, archive io.Reader, ref string) (imported []runtime.Image, err error) {
	err = i.Faults.Do("Images.ImportImages", func() error {
		var found []runtime.Image
		if ref != "" {
			full, err := imageref.Normalize(ref)
			if err != nil {
				return err
			}
			ref = full
		}
		for reader := tar.NewReader(archive); ; {
			_, err := reader.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			var image runtime.Image
			if err == nil {
				err = json.NewDecoder(reader).Decode(&image)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				return problem.New(problem.ImageArchiveInvalid, "the archive is not one of images").WithHint("export one").WithCause(err)
			}
			found = append(found, image)
		}
		if len(found) == 0 || ref != "" && len(found) > 1 {
			return problem.New(problem.ImageArchiveInvalid, "the archive has %d images", len(found)).WithHint("export one")
		}
		for n := range found {
			if ref != "" {
				found[n].Name = ref
			}
			if err := imageref.CheckDigest(found[n].Name, found[n].Digest, "reference"); err != nil {
				return err
			}
		}
		for _, image := range found {
			i.mu.Lock()
			image.Pinned = i.local[image.Name].Pinned
			i.mu.Unlock()
			image.UpdatedAt = time.Now()
			i.Add(image)
			imported = append(imported, image)
		}
		return nil
	})
	return imported, err
}
