package node

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// White-box: what a listener does to a request is not seen from outside but by
// what it costs.
func TestLocalCallersGetNoCompression(t *testing.T) {
	names := []string{"Accept-Encoding", "Connect-Accept-Encoding", "Grpc-Accept-Encoding"}
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", http.NoBody)
	for _, name := range names {
		request.Header.Set(name, "gzip")
	}
	request.Header.Set("Content-Type", "application/proto")
	called := false
	uncompressed(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		called = true
		for _, name := range names {
			if got := r.Header.Get(name); got != "" {
				t.Errorf("%s is still %q", name, got)
			}
		}
		if r.Header.Get("Content-Type") != "application/proto" {
			t.Error("another header is gone")
		}
	})).ServeHTTP(httptest.NewRecorder(), request)
	if !called {
		t.Error("the request did not arrive")
	}
}
