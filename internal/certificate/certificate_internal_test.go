package certificate

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func serial(t *testing.T, c *Source) []byte {
	t.Helper()
	pair, err := c.TLS().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf.SerialNumber.Bytes()
}

func TestSelfSignedCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tls.pem")
	load := func(hosts ...string) (*Source, error) {
		return New(Config{Path: path, Hosts: hosts, Name: "test", Log: slog.New(slog.DiscardHandler)})
	}
	first, err := load("gpu1", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("certificate file: %v, %v", info, err)
	}
	for _, host := range []string{"gpu1", "10.0.0.1", "localhost", "127.0.0.1", "::1"} {
		if err := first.current.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	same, err := load("gpu1")
	if err != nil || !bytes.Equal(serial(t, same), serial(t, first)) {
		t.Errorf("another certificate after a restart, %v", err)
	}
	other, err := load("gpu2")
	if err != nil || bytes.Equal(serial(t, other), serial(t, first)) || other.current.Leaf.VerifyHostname("gpu2") != nil {
		t.Errorf("the certificate does not follow the names, %v", err)
	}
	before := serial(t, other)
	if err := other.look(time.Now().Add(selfSignedLife - renewBefore + time.Hour)); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(serial(t, other), before) {
		t.Error("it was not renewed before its end")
	}
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil {
		t.Error("a broken file was replaced without a word")
	}
}

func TestOperatorsCertificateIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tls.pem")
	write := func(name string, at time.Time) {
		text, err := selfSigned(name, []string{name}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now().Add(-time.Hour)
	write("one", start)
	config := Config{CertFile: path, KeyFile: path, Log: slog.New(slog.DiscardHandler)}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	first := serial(t, c)
	write("two", start.Add(time.Minute))
	c.looked = time.Time{}
	second := serial(t, c)
	if bytes.Equal(first, second) {
		t.Error("the new certificate does not serve")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.looked = time.Time{}
	if !bytes.Equal(serial(t, c), second) {
		t.Error("the old certificate does not serve while the new one is being written")
	}
	if _, err := New(config); err == nil {
		t.Error("a missing certificate was taken")
	}
}
