package gateway_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/gateway"
)

// Nobody's path, method, query or header makes the gateway fail, leads to an
// environment without a token, or out of the pages it has.
func FuzzPaths(f *testing.F) {
	g, err := gateway.New(gateway.Config{
		Listen: "127.0.0.1:0", Hosts: named("127.0.0.1"), StateDir: f.TempDir(), Desktops: new(desktops), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	handler := g.Handler()
	_, token, _ := g.Session("01J00000000000000000000000", gateway.Control, time.Minute)
	for _, path := range []string{
		"/", "/desktop/", "/desktop/01J00000000000000000000000/", "/desktop/01J00000000000000000000000/rfb", "/desktop/../../etc/passwd",
		"/desktop/%2e%2e/%2e%2e/x", "/assets/", "/assets/../token", "/assets//etc/passwd", "/desktop/a/b/c", "//", "/desktop/\x00/", "*", "/healthz",
	} {
		f.Add(http.MethodGet, path, "", "")
		f.Add(http.MethodPost, path, "token="+token, "Upgrade: websocket")
	}
	f.Add(http.MethodGet, "/desktop/01J00000000000000000000000/rfb", "token=x", "Sec-WebSocket-Protocol: token."+token)
	f.Fuzz(func(t *testing.T, method, path, query, header string) {
		if method == "" || strings.ContainsAny(method, " \r\n\t") || !strings.HasPrefix(path, "/") {
			return // net/http answers these itself
		}
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		if name, value, found := strings.Cut(header, ":"); found {
			r.Header[http.CanonicalHeaderKey(name)] = []string{strings.TrimSpace(value)}
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= http.StatusInternalServerError && w.Code != http.StatusNotImplemented {
			t.Errorf("%s %q?%q with %q answers %d", method, path, query, header, w.Code)
		}
		if strings.Contains(w.Body.String(), "root:x:0:0") {
			t.Errorf("%s %q answers with a file of the host", method, path)
		}
	})
}
