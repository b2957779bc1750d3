package gateway_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/network/gateway"
)

// served is the certificate that a gateway shows to whoever connects.
func served(t *testing.T, r *running) *x509.Certificate {
	t.Helper()
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(t.Context(), "tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tlsConn, ok := conn.(*tls.Conn)
	if !ok {
		t.Fatalf("dialed a %T", conn)
	}
	return tlsConn.ConnectionState().PeerCertificates[0]
}

func TestCertificateIsMadeOnceAndForTheseHosts(t *testing.T) {
	dir := t.TempDir()
	with := func(hosts ...string) func(*gateway.Config) {
		return func(c *gateway.Config) { c.StateDir, c.Hosts = dir, named(hosts...) }
	}
	first := served(t, run(t, with("gpu1", "10.0.0.1")))
	for _, host := range []string{"gpu1", "10.0.0.1", "localhost", "127.0.0.1"} {
		if err := first.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d files in the state directory, %v", len(entries), err)
	}
	for _, entry := range entries { // the keys of tokens and of TLS
		if info, err := entry.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", entry.Name(), info, err)
		}
	}
	if again := served(t, run(t, with("gpu1"))); !again.Equal(first) {
		t.Error("another certificate after a restart")
	}
	if other := served(t, run(t, with("gpu2"))); other.VerifyHostname("gpu2") != nil {
		t.Error("the certificate does not follow the names")
	}
	// The operator's own, which here is the one that was made.
	path := filepath.Join(dir, "gateway-tls.pem")
	before := served(t, run(t, with("gpu2")))
	operator := run(t, func(c *gateway.Config) { c.CertFile, c.KeyFile = path, path })
	if !served(t, operator).Equal(before) {
		t.Error("the operator's certificate is not served")
	}
	if _, header, _ := operator.get(t, "/healthz"); header.Get("Strict-Transport-Security") == "" {
		t.Error("no strict transport security with the operator's certificate")
	}
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.New(gateway.Config{Listen: ":7443", StateDir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a broken certificate was replaced without a word")
	}
}
