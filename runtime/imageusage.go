package runtime

import (
	"context"
	"time"
)

// ImageUsage is how much of the disk one image takes, in bytes. Unique is what
// would go with it.
type ImageUsage struct {
	ImageUse
	Content, ContentUnique     int64
	Snapshots, SnapshotsUnique int64
}

// DiskUsage is how much of the disk images take, in bytes.
type DiskUsage struct {
	Images      []ImageUsage // by name
	Content     int64        // all that is in the content store
	Snapshots   int64        // all that is unpacked, but for writable layers
	Reclaimable int64        // what PruneImages would free
	// What none of Images has, of Content and Snapshots: that of environments and
	// snapshots whose image has no name any more, and layers of snapshots.
	ContentElsewhere, SnapshotsElsewhere int64
}

// ImageDiskUsage tells how much of the disk images take.
func (m *Manager) ImageDiskUsage(ctx context.Context) (DiskUsage, error) {
	images, err := m.ListImages(ctx)
	if err != nil {
		return DiskUsage{}, err
	}
	prunable, err := m.prunable(ctx, time.Now())
	if err != nil {
		return DiskUsage{}, err
	}
	contents, err := m.cfg.Images.Contents(ctx)
	if err != nil {
		return DiskUsage{}, err
	}
	usage := DiskUsage{Reclaimable: freedBy(contents, prunable)}
	blobs, snapshots := listed(contents, images)
	for digest, bytes := range contents.Blobs {
		if usage.Content += bytes; !blobs[digest] {
			usage.ContentElsewhere += bytes
		}
	}
	for name, snapshot := range contents.Snapshots {
		if usage.Snapshots += snapshot.Bytes; !snapshots[name] {
			usage.SnapshotsElsewhere += snapshot.Bytes
		}
	}
	usage.Images = usageOf(contents, images)
	return usage, nil
}

// listed are the blobs and snapshots that images have.
func listed(contents Contents, images []ImageUse) (blobs, snapshots map[string]bool) {
	names := make(map[string]bool, len(images))
	for _, image := range images {
		names[image.Name] = true
	}
	blobs, snapshots = make(map[string]bool), make(map[string]bool)
	for _, image := range contents.Images {
		if names[image.Name] {
			add(blobs, image.Blobs)
			add(snapshots, image.Snapshots)
		}
	}
	return blobs, snapshots
}

// usageOf is what images take, in their order.
func usageOf(contents Contents, images []ImageUse) []ImageUsage {
	blobs, snapshots := sharers(contents)
	parts := make(map[string]ImageContents, len(contents.Images))
	for _, one := range contents.Images {
		parts[one.Name] = one
	}
	all := make([]ImageUsage, 0, len(images))
	for _, image := range images {
		one := ImageUsage{ImageUse: image}
		for _, digest := range parts[image.Name].Blobs {
			bytes := contents.Blobs[digest]
			one.Content += bytes
			if blobs[digest] == 1 {
				one.ContentUnique += bytes
			}
		}
		for _, name := range parts[image.Name].Snapshots {
			snapshot := contents.Snapshots[name]
			one.Snapshots += snapshot.Bytes
			if snapshots[name] == 1 && !snapshot.Held {
				one.SnapshotsUnique += snapshot.Bytes
			}
		}
		all = append(all, one)
	}
	return all
}

// sharers counts the images that have each blob and each snapshot. An image
// with the same layer twice has it once.
func sharers(contents Contents) (blobs, snapshots map[string]int) {
	blobs, snapshots = make(map[string]int), make(map[string]int)
	for _, image := range contents.Images {
		for digest := range setOf(image.Blobs) {
			blobs[digest]++
		}
		for name := range setOf(image.Snapshots) {
			snapshots[name]++
		}
	}
	return blobs, snapshots
}

// freedBy is how many bytes the removal of images would free: those of blobs
// and snapshots that no other image has, and no container is made on.
func freedBy(contents Contents, images []Image) (bytes int64) {
	leaving := make(map[string]bool, len(images))
	for _, image := range images {
		leaving[image.Name] = true
	}
	blobs, snapshots := make(map[string]bool), make(map[string]bool)
	for _, image := range contents.Images {
		if leaving[image.Name] {
			add(blobs, image.Blobs)
			add(snapshots, image.Snapshots)
		}
	}
	for _, image := range contents.Images {
		if !leaving[image.Name] {
			remove(blobs, image.Blobs)
			remove(snapshots, image.Snapshots)
		}
	}
	for digest := range blobs {
		bytes += contents.Blobs[digest]
	}
	for name := range snapshots {
		if snapshot := contents.Snapshots[name]; !snapshot.Held {
			bytes += snapshot.Bytes
		}
	}
	return bytes
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	add(set, names)
	return set
}

func add(set map[string]bool, names []string) {
	for _, name := range names {
		set[name] = true
	}
}

func remove(set map[string]bool, names []string) {
	for _, name := range names {
		delete(set, name)
	}
}
