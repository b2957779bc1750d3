package testutil

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// ImageRegistry is a read-only registry (OCI distribution API) on loopback,
// without TLS.
type ImageRegistry struct {
	// Host is its address, "127.0.0.1:port", the first part of references.
	Host string

	server *httptest.Server
	mu     sync.Mutex
	images map[string]*OCIImage // by repository:tag
	status map[string]int       // by repository; what to answer instead
	blobs  map[digest.Digest][]byte
}

// Registry starts an empty registry that lives as long as the test.
func Registry(tb testing.TB) *ImageRegistry {
	tb.Helper()
	r := &ImageRegistry{
		images: make(map[string]*OCIImage), status: make(map[string]int), blobs: make(map[digest.Digest][]byte),
	}
	r.server = httptest.NewServer(http.HandlerFunc(r.serve))
	r.Host = r.server.Listener.Addr().String()
	tb.Cleanup(r.server.Close)
	return r
}

// Push serves image as repository:tag and returns its full reference.
func (r *ImageRegistry) Push(repository, tag string, image *OCIImage) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[repository+":"+tag] = image
	maps.Copy(r.blobs, image.Blobs)
	return r.Host + "/" + repository + ":" + tag
}

// Answer makes the registry answer every request for a repository with an
// HTTP status, 401 for example.
func (r *ImageRegistry) Answer(repository string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status[repository] = status
}

// Close stops the registry before the test ends.
func (r *ImageRegistry) Close() { r.server.Close() }

func (r *ImageRegistry) serve(w http.ResponseWriter, request *http.Request) {
	path, ok := strings.CutPrefix(request.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, request)
		return
	}
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	repository, kind, name := split(path)
	if status := r.status[repository]; status != 0 {
		w.WriteHeader(status)
		return
	}
	mediaType, d := "application/octet-stream", digest.Digest(name)
	if kind == "manifests" {
		for key, image := range r.images {
			if key == repository+":"+name || (strings.HasPrefix(key, repository+":") && image.Manifest.Digest == d) {
				mediaType, d = image.Manifest.MediaType, image.Manifest.Digest
			}
		}
	}
	data, found := r.blobs[d]
	if !found {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if request.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}

// split takes "repository/kind/name" apart; a repository may have slashes.
func split(path string) (repository, kind, name string) {
	for _, kind := range []string{"manifests", "blobs"} {
		if repository, name, ok := strings.Cut(path, "/"+kind+"/"); ok {
			return repository, kind, name
		}
	}
	return "", "", ""
}
