package certificate

import (
	"bytes"
	"crypto/tls"
	"errors"
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

func named(hosts ...string) func() []string { return func() []string { return hosts } }

func TestSelfSignedCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tls.pem")
	load := func(hosts ...string) (*Source, error) {
		return New(Config{Path: path, Hosts: named(hosts...), Name: "test", Log: slog.New(slog.DiscardHandler)})
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

// A host that moves, or had no address when the daemon started.
func TestSelfSignedCertificateFollowsTheHost(t *testing.T) {
	hosts := []string{"127.0.0.1", "localhost", "gpu1"}
	c, err := New(Config{
		Path: filepath.Join(t.TempDir(), "tls.pem"), Hosts: func() []string { return hosts }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	first := serial(t, c)
	hosts = []string{"192.0.2.1", "10.9.0.1", "127.0.0.1", "localhost", "gpu1"}
	c.looked = time.Time{}
	moved := serial(t, c)
	if bytes.Equal(moved, first) || c.current.Leaf.VerifyHostname("192.0.2.1") != nil || c.current.Leaf.VerifyHostname("10.9.0.1") != nil {
		t.Error("the certificate does not follow the host's address")
	}
	hosts = []string{"192.0.2.1", "10.9.1.1", "127.0.0.1", "localhost", "gpu1"} // another bridge
	c.looked = time.Time{}
	if !bytes.Equal(serial(t, c), moved) {
		t.Error("people have to trust another certificate though the host is where it was")
	}
}

// A name that no browser would ask for by itself is kept as it is: a
// certificate that is made anew every minute would have to be trusted anew.
func TestSelfSignedCertificateOfOddNamesIsKept(t *testing.T) {
	for _, host := range []string{"*.gpu.example.com", "gpu_1", "GPU1.example.com.", "[fd00::1]", "FD00::0:1", "fe80::1%eth0"} {
		config := Config{Path: filepath.Join(t.TempDir(), "tls.pem"), Hosts: named(host), Log: slog.New(slog.DiscardHandler)}
		first, err := New(config)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		again, err := New(config)
		if err != nil || !bytes.Equal(serial(t, again), serial(t, first)) {
			t.Errorf("%s: another certificate after a restart, %v", host, err)
		}
		if host == "[fd00::1]" && first.current.Leaf.VerifyHostname("fd00::1") != nil {
			t.Errorf("the certificate is not for %s", host)
		}
	}
}

// Whoever copies files with their times may put an older one in place.
func TestOperatorsOlderCertificateIsReadToo(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	text, err := selfSigned("one", []string{"one"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	write := func(path string, text []byte, age time.Duration) {
		t.Helper()
		at := now.Add(-age)
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write(cert, text, 3*time.Hour)
	write(key, text, time.Hour)
	c, err := New(Config{CertFile: cert, KeyFile: key, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	first := serial(t, c)
	renewed, err := selfSigned("one", []string{"one"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	write(key, renewed, time.Hour)
	write(cert, renewed, 2*time.Hour)
	c.looked = time.Time{}
	if bytes.Equal(serial(t, c), first) {
		t.Error("the renewed certificate does not serve")
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
