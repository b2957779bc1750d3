package containerd

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// serveFor starts a server for the test, with HTTP/2 when it is told so.
func serveFor(t *testing.T, second bool, handler http.HandlerFunc) (client *http.Client, url string) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	if second {
		server.EnableHTTP2 = true
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	client = server.Client()
	client.Transport = impatient{client.Transport, 200 * time.Millisecond}
	return client, server.URL
}

func get(t *testing.T, client *http.Client, method, url string, body io.Reader) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err == nil {
		t.Cleanup(func() { _ = response.Body.Close() })
	}
	return response, err
}

// A transfer that breaks off, or stands still, is the registry's fault, in
// whatever version of HTTP.
func TestTransferEnds(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			half := func(w http.ResponseWriter) {
				w.Header().Set("Content-Length", "1000")
				_, _ = w.Write(make([]byte, 500))
				_ = http.NewResponseController(w).Flush()
			}
			over := make(chan struct{}) // a server does not see who leaves before it has read all
			for what, test := range map[string]struct {
				handler http.HandlerFunc
				want    error // nil: any
			}{
				"broken off": {func(w http.ResponseWriter, _ *http.Request) { half(w); panic(http.ErrAbortHandler) }, nil},
				"standstill": {func(w http.ResponseWriter, _ *http.Request) { half(w); <-over }, errStandstill},
			} {
				client, url := serveFor(t, second, test.handler)
				response, err := get(t, client, http.MethodGet, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				if n != 500 || !atFault(err) || test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("%s: %d bytes, %v", what, n, err)
				}
				if why, hint := unreachable("host", err); hint == "" || why == "the answer cannot be understood" {
					t.Errorf("%s: %s (%s)", what, why, hint)
				}
			}
			client, url := serveFor(t, second, func(http.ResponseWriter, *http.Request) { <-over })
			t.Cleanup(func() { close(over) }) // before the servers are closed
			response, err := get(t, client, http.MethodPut, url, bytes.NewReader(make([]byte, 64<<20)))
			if err == nil {
				_ = response.Body.Close()
			}
			if !errors.Is(err, errStandstill) || !atFault(err) {
				t.Errorf("a registry that does not read: %v", err)
			}
		})
	}
}

// Who takes what comes may take its time.
func TestTransferWaitsForUs(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	client, url := serveFor(t, false, func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); n != size || err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write(make([]byte, size))
	})
	response, err := get(t, client, http.MethodPut, url, &slow{Reader: bytes.NewReader(make([]byte, size))})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatal(response.Status)
	}
	if n, err := io.Copy(io.Discard, &slow{Reader: response.Body}); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// slow waits before its first read for longer than the client has patience.
type slow struct {
	io.Reader
	waited bool
}

func (s *slow) Read(p []byte) (int, error) {
	if !s.waited {
		s.waited = true
		time.Sleep(500 * time.Millisecond)
	}
	return s.Reader.Read(p)
}
