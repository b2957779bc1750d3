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

// The token of the metrics opens them and nothing else, however it is asked.
func TestTokens(t *testing.T) {
	reached := ""
	handler := authenticate("all", "scrape", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached = r.URL.Path }))
	for _, test := range []struct {
		path, authorization string
		through             bool
	}{
		{"/metrics", "Bearer all", true},
		{"/metrics", "Bearer scrape", true},
		{"/metrics", "bearer scrape", false},
		{"/metrics", "Bearer ", false},
		{"/metrics", "", false},
		{"/metrics/", "Bearer scrape", false},
		{"/metrics/../remotegpu.v1.NodeService/GetNodeInfo", "Bearer scrape", false},
		{"//metrics", "Bearer scrape", false},
		{"/remotegpu.v1.NodeService/GetNodeInfo", "Bearer scrape", false},
		{"/remotegpu.v1.NodeService/GetNodeInfo", "Bearer all", true},
		{"/grpc.health.v1.Health/Check", "", true},
	} {
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.path, http.NoBody)
		request.Header.Set("Authorization", test.authorization)
		answer := httptest.NewRecorder()
		reached = ""
		handler.ServeHTTP(answer, request)
		if through := reached != ""; through != test.through || !through && answer.Code != http.StatusUnauthorized {
			t.Errorf("%s with %q: reached %q, status %d", test.path, test.authorization, reached, answer.Code)
		}
	}
}
