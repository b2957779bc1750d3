package columns

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// WriteArchive writes an image of one static program as "docker save" does;
// containerd, docker and podman all load that.
func WriteArchive(path, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read program of the image: %w", err)
	}
	layer, err := archive(
		entry{name: "workload", content: content, mode: 0o755},
		entry{name: "bin/", mode: 0o755},
		entry{name: "bin/true", link: "/workload"},
		entry{name: "etc/", mode: 0o755},
		entry{name: "etc/passwd", content: []byte("root:x:0:0:root:/:/bin/false\n"), mode: 0o644},
		entry{name: "etc/group", content: []byte("root:x:0:\n"), mode: 0o644},
	)
	if err != nil {
		return err
	}
	created := time.Unix(0, 0).UTC()
	image, err := json.Marshal(ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: goruntime.GOARCH},
		Config: ocispec.ImageConfig{
			Entrypoint: []string{"/workload", ":" + strconv.Itoa(ContainerPort), Banner},
			Env:        []string{"PATH=/bin"},
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return fmt.Errorf("encode image configuration: %w", err)
	}
	sum := sha256.Sum256(image)
	name := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": name, "RepoTags": []string{ImageName}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return fmt.Errorf("encode image manifest: %w", err)
	}
	out, err := archive(
		entry{name: "layer.tar", content: layer, mode: 0o644},
		entry{name: name, content: image, mode: 0o644},
		entry{name: "manifest.json", content: manifest, mode: 0o644},
	)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// entry is a file, a directory (its name ends in "/") or a symbolic link.
type entry struct {
	name    string
	content []byte
	mode    int64
	link    string
}

func archive(entries ...entry) ([]byte, error) {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		switch {
		case e.link != "":
			header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
		case e.name[len(e.name)-1] == '/':
			header.Typeflag = tar.TypeDir
		}
		if err := writer.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("archive %s: %w", e.name, err)
		}
		if _, err := writer.Write(e.content); err != nil {
			return nil, fmt.Errorf("archive %s: %w", e.name, err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("end archive: %w", err)
	}
	return out.Bytes(), nil
}
