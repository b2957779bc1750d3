package gateway_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/gateway"
)

// Whoever opens connections and says nothing gets so many, and what is closed
// makes room for others.
func TestConnectionsAreLimited(t *testing.T) {
	const limit = 5
	g := run(t, func(c *gateway.Config) { c.MaxConnections = limit })
	open := func() net.Conn {
		t.Helper()
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	// lives tells whether the gateway keeps a silent connection.
	lives := func(conn net.Conn, patience time.Duration) bool {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	var silent []net.Conn
	for range limit {
		silent = append(silent, open())
	}
	for i, conn := range silent {
		if !lives(conn, 50*time.Millisecond) {
			t.Errorf("connection %d of %d was closed", i+1, limit)
		}
	}
	if lives(open(), 5*time.Second) {
		t.Errorf("connection %d of %d was kept", limit+1, limit)
	}
	if err := silent[0].Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.address+"/healthz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := g.client.Do(request)
		if err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the place of a closed connection is not given to another: %v", err)
		}
	}
}
