package testutil

import (
	"bytes"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageRegistry is a registry (OCI distribution API) on loopback, without TLS
// unless it was started by SecureRegistry.
type ImageRegistry struct {
	// Host is its address, "127.0.0.1:port", the first part of references.
	Host string
	// CA is the certificate to trust, in PEM. Empty without TLS.
	CA []byte

	server *httptest.Server
	mu     sync.Mutex
	tags   map[string]digest.Digest // by repository:tag
	types  map[digest.Digest]string // of manifests
	blobs  map[digest.Digest][]byte
	status map[string]int           // by repository; what to answer instead
	held   map[string]chan struct{} // by repository
	cut    map[string]bool          // by repository
	guard  guard
}

// Registry starts an empty registry that lives as long as the test.
func Registry(tb testing.TB) *ImageRegistry {
	tb.Helper()
	r := newRegistry()
	r.server = httptest.NewServer(http.HandlerFunc(r.serve))
	r.Host = r.server.Listener.Addr().String()
	tb.Cleanup(r.server.Close)
	return r
}

// SecureRegistry is Registry with TLS.
func SecureRegistry(tb testing.TB) *ImageRegistry {
	tb.Helper()
	r := newRegistry()
	r.server = httptest.NewTLSServer(http.HandlerFunc(r.serve))
	r.Host = r.server.Listener.Addr().String()
	r.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	tb.Cleanup(r.server.Close)
	return r
}

func newRegistry() *ImageRegistry {
	return &ImageRegistry{
		tags: make(map[string]digest.Digest), types: make(map[digest.Digest]string), blobs: make(map[digest.Digest][]byte),
		status: make(map[string]int), held: make(map[string]chan struct{}), cut: make(map[string]bool),
	}
}

// Push serves image as repository:tag and returns its full reference.
func (r *ImageRegistry) Push(repository, tag string, image *OCIImage) string {
	return r.PushDescriptor(repository, tag, image.Manifest, image.Blobs)
}

// PushDescriptor serves a manifest or an index.
func (r *ImageRegistry) PushDescriptor(repository, tag string, target ocispec.Descriptor, blobs map[digest.Digest][]byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[repository+":"+tag] = target.Digest
	r.types[target.Digest] = target.MediaType
	maps.Copy(r.blobs, blobs)
	return r.Host + "/" + repository + ":" + tag
}

// Tagged is the digest of what repository:tag names, "" for nothing.
func (r *ImageRegistry) Tagged(repository, tag string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tags[repository+":"+tag].String()
}

// Remove forgets repository:tag.
func (r *ImageRegistry) Remove(repository, tag string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tags, repository+":"+tag)
}

// Answer makes the registry answer every request for a repository with an
// HTTP status, 401 for example.
func (r *ImageRegistry) Answer(repository string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status[repository] = status
}

// Hold makes the registry give only half of each layer of a repository, and
// take no blob, until release.
func (r *ImageRegistry) Hold(repository string) (release func()) {
	over := make(chan struct{})
	r.mu.Lock()
	r.held[repository] = over
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		delete(r.held, repository)
		r.mu.Unlock()
		close(over)
	})
}

// Cut makes the registry break each layer of a repository off in the middle,
// until mend.
func (r *ImageRegistry) Cut(repository string) (mend func()) {
	set := func(cut bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cut[repository] = cut
	}
	set(true)
	return func() { set(false) }
}

// Close stops the registry before the test ends.
func (r *ImageRegistry) Close() { r.server.Close() }

func (r *ImageRegistry) serve(w http.ResponseWriter, request *http.Request) {
	if request.URL.Path == tokenPath {
		r.giveToken(w, request)
		return
	}
	path, ok := strings.CutPrefix(request.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, request)
		return
	}
	if !r.admit(w, request) {
		return
	}
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	repository, kind, name := split(path)
	r.mu.Lock()
	status, over := r.status[repository], r.held[repository]
	r.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	switch request.Method {
	case http.MethodPost, http.MethodPut:
		r.take(w, request, repository, kind, name, over)
	default:
		r.give(w, request, repository, kind, name, over)
	}
}

// give answers with a manifest or a blob.
func (r *ImageRegistry) give(w http.ResponseWriter, request *http.Request, repository, kind, name string, over <-chan struct{}) {
	r.mu.Lock()
	mediaType, d := "application/octet-stream", digest.Digest(name)
	if kind == "manifests" {
		if tagged, found := r.tags[repository+":"+name]; found {
			d = tagged
		}
		mediaType, over = r.types[d], nil
		if mediaType == "" { // of an index
			mediaType = ocispec.MediaTypeImageManifest
		}
	}
	data, found := r.blobs[d]
	cut := r.cut[repository]
	r.mu.Unlock()
	if !found {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if request.Method == http.MethodHead {
		return
	}
	if cut && bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if over != nil && bytes.HasPrefix(data, []byte{0x1f, 0x8b}) { // gzip
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		data = data[len(data)/2:]
		if !waited(request, over) {
			return
		}
	}
	_, _ = w.Write(data)
}

// take stores a manifest or a blob; an upload is one request.
func (r *ImageRegistry) take(w http.ResponseWriter, request *http.Request, repository, kind, name string, over <-chan struct{}) {
	if request.Method == http.MethodPost {
		w.Header().Set("Location", "/v2/"+repository+"/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	data, err := io.ReadAll(request.Body)
	if over != nil && !waited(request, over) { // the server sees who leaves only once all is read
		return
	}
	d := digest.FromBytes(data)
	if wanted := request.URL.Query().Get("digest"); err != nil || kind == "blobs" && wanted != d.String() {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = data
	if kind == "manifests" {
		r.types[d] = request.Header.Get("Content-Type")
		if name != d.String() {
			r.tags[repository+":"+name] = d
		}
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

func waited(request *http.Request, over <-chan struct{}) bool {
	select {
	case <-over:
		return true
	case <-request.Context().Done():
		return false
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

// Saw says whether any request carried text in its Authorization header or the
// form it asked for a token with.
func (r *ImageRegistry) Saw(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.guard.seen, func(seen string) bool { return strings.Contains(seen, text) })
}
