package runtimetest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// FakeImages is a runtime.Images in memory. Calls are named "Images.…".
type FakeImages struct {
	Faults *Faults

	mu     sync.Mutex
	local  map[string]runtime.Image
	remote map[string]runtime.Image
	logins map[string]runtime.Login       // what the registry asks for, by reference
	says   map[string]runtime.ImageConfig // by digest
	held   map[string]int64               // bytes by digest, whatever has a name
}

var _ runtime.Images = (*FakeImages)(nil)

// Add makes an image local. Its name is normalised; a missing digest is made
// up from it.
func (i *FakeImages) Add(image runtime.Image) { i.add(&i.local, image) }

// AddRemote makes an image known to the registry.
func (i *FakeImages) AddRemote(image runtime.Image) { i.add(&i.remote, image) }

func (i *FakeImages) add(to *map[string]runtime.Image, image runtime.Image) {
	if full, err := imageref.Normalize(image.Name); err == nil {
		image.Name = full
	}
	if image.Digest == "" {
		image.Digest = "sha256:" + strings.Repeat("f", 64)
	}
	if image.Platform == "" {
		image.Platform = "linux/amd64"
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if *to == nil {
		*to = make(map[string]runtime.Image)
	}
	(*to)[image.Name] = image
}

// Image returns a local image.
func (i *FakeImages) Image(_ context.Context, ref string) (image runtime.Image, err error) {
	err = i.Faults.Do("Images.Image", func() (err error) {
		image, err = i.find(ref)
		return err
	})
	return image, err
}

// Configure says what the configuration of images of a digest is.
func (i *FakeImages) Configure(digest string, config runtime.ImageConfig) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.says == nil {
		i.says = make(map[string]runtime.ImageConfig)
	}
	i.says[digest] = config
}

// Details returns a local image of one layer, for one platform.
func (i *FakeImages) Details(_ context.Context, ref string) (details runtime.ImageDetails, err error) {
	err = i.Faults.Do("Images.Details", func() error {
		image, err := i.find(ref)
		if err != nil {
			return err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		details = runtime.ImageDetails{
			Image: image, Config: i.says[image.Digest], Layers: []runtime.ImageLayer{{Digest: image.Digest, Size: image.Size}},
			Platforms: []runtime.ImagePlatform{{Platform: image.Platform, Digest: image.Digest, Present: true}},
		}
		return nil
	})
	return details, err
}

// Images returns all local images by name.
func (i *FakeImages) Images(context.Context) (all []runtime.Image, err error) {
	err = i.Faults.Do("Images.Images", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(i.local)) {
			all = append(all, i.local[name])
		}
		return nil
	})
	return all, err
}

// Pull makes an image of the registry local.
func (i *FakeImages) Pull(ctx context.Context, ref string, login *runtime.Login, progress func(operation.Progress)) (image runtime.Image, err error) {
	err = i.Faults.Do("Images.Pull", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full, err := imageref.Normalize(ref)
		if err != nil {
			return err
		}
		i.mu.Lock()
		found, ok := i.remote[full]
		found.Pinned = i.local[full].Pinned
		err = i.admit(full, login)
		i.mu.Unlock()
		if err != nil {
			return err
		}
		if !ok {
			return imageNotFound(full)
		}
		if progress != nil {
			progress(operation.Progress{Step: "pull", Done: found.Size, Total: found.Size, Layers: []operation.Layer{{
				Digest: found.Digest, Done: found.Size, Total: found.Size, State: operation.LayerUnpacked,
			}}})
		}
		i.Add(found)
		image = found
		return nil
	})
	return image, err
}

// Resolve asks whether the registry has an image.
func (i *FakeImages) Resolve(_ context.Context, ref string) error {
	return i.Faults.Do("Images.Resolve", func() error {
		full, err := imageref.Normalize(ref)
		if err != nil {
			return err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		if _, ok := i.remote[full]; !ok {
			return imageNotFound(full)
		}
		return nil
	})
}

// DeleteImage forgets a local image.
func (i *FakeImages) DeleteImage(_ context.Context, ref string) error {
	return i.Faults.Do("Images.DeleteImage", func() error {
		full, err := imageref.Normalize(ref)
		if err != nil {
			return err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		if _, ok := i.local[full]; !ok {
			return imageNotFound(full)
		}
		delete(i.local, full)
		return nil
	})
}

// RemoveImage forgets a local image that is as it was.
func (i *FakeImages) RemoveImage(_ context.Context, image runtime.Image) error {
	return i.Faults.Do("Images.RemoveImage", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		now, ok := i.local[image.Name]
		if !ok {
			return imageNotFound(image.Name)
		}
		if now.Digest != image.Digest || !now.UpdatedAt.Equal(image.UpdatedAt) {
			return runtime.ImageChanged(image.Name)
		}
		delete(i.local, image.Name)
		return nil
	})
}

// Ask makes the registry ask for a login before it gives or takes an image.
func (i *FakeImages) Ask(ref string, login runtime.Login) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.logins == nil {
		i.logins = make(map[string]runtime.Login)
	}
	i.logins[ref] = login
}

// admit is the registry's decision. i.mu is held.
func (i *FakeImages) admit(full string, login *runtime.Login) error {
	wanted, asks := i.logins[full]
	if asks && (login == nil || *login != wanted) {
		return problem.New(problem.RegistryDenied, "the registry does not give or take image %s", full).WithField("spec.image").
			WithHint("give it what it asks for")
	}
	return nil
}

func imageNotFound(name string) error {
	return problem.New(problem.ImageNotFound, "image %s is not here", name).WithField("spec.image").WithHint("pull it")
}
