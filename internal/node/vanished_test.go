package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// White-box: the patience of a node is too long for a test. What runs for a
// caller ends when its cable is pulled, whatever its protocol, and whether it
// is silent or something is on its way to it.
func TestCallersThatVanish(t *testing.T) {
	testutil.Require(t, testutil.Root)
	if !testutil.Isolated(t) {
		return
	}
	far := testutil.NewNamespace(t)
	testutil.Sh(t, "ip link add near type veth peer name far netns "+far.Path()+"; ip addr add 198.51.100.1/24 dev near; ip link set near up")
	far.Sh(t, "ip addr add 198.51.100.2/24 dev far; ip link set far up")

	const patience = 2 * time.Second
	listener, err := listenTCP(t.Context(), "198.51.100.1:0", patience)
	if err != nil {
		t.Fatal(err)
	}
	silent, ended := make(chan struct{}), make(chan string, 4)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := http.NewResponseController(w)
		_, _ = io.WriteString(w, "begin")
		_ = answer.Flush()
		if r.URL.Path == "/writes" { // what cannot be written any more must not hold it up
			<-silent
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, "more")
				_ = answer.Flush()
				time.Sleep(time.Millisecond)
			}
		}
		<-r.Context().Done()
		ended <- r.Proto + r.URL.Path
	})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	api := &apiListener{Listener: listener, patience: patience}
	go func() { served <- api.serve(ctx, handler, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		<-served
	})

	want := make(map[string]bool)
	for _, path := range []string{"/waits", "/writes"} {
		for _, h2 := range []bool{false, true} {
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!h2)
			protocols.SetUnencryptedHTTP2(h2)
			client := &http.Client{Transport: &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				far.Do(t, func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, address) })
				return conn, err
			}}}
			request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+path, http.NoBody)
			request.RequestURI = ""
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { response.Body.Close() })
			if _, err := io.ReadFull(response.Body, make([]byte, len("begin"))); err != nil {
				t.Fatal(err)
			}
			want[response.Proto+path] = true
		}
	}
	if len(want) != 4 {
		t.Fatalf("callers: %v", want)
	}
	far.Sh(t, "ip link set far down")
	close(silent)
	limit := time.After(time.Minute) // by itself the kernel gives up after a quarter of an hour
	for len(want) > 0 {
		select {
		case one := <-ended:
			delete(want, one)
		case <-limit:
			t.Fatalf("still served a minute after they vanished: %v", want)
		}
	}
}
