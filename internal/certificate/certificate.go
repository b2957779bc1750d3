// Package certificate hands a listener its TLS certificate: the operator's,
// read again when its files change, or a self-signed one that is kept and
// renewed.
package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/problem"
)

const (
	selfSignedLife = 397 * 24 * time.Hour // what browsers accept at most
	renewBefore    = 30 * 24 * time.Hour
	lookEvery      = time.Minute // at the files, when a client connects
)

// Config says where a certificate comes from.
type Config struct {
	// CertFile and KeyFile are the operator's PEM certificate chain and key.
	// "": a self-signed one is kept in Path.
	CertFile, KeyFile string
	// Path is the file of the self-signed certificate and its key.
	Path string
	// Hosts returns the names and addresses the self-signed certificate is for,
	// besides those of loopback, the most used one first. It is asked again each
	// minute that somebody connects in: another certificate is made when the
	// first is not in this one. What else comes and goes, as the addresses of
	// bridges do, is left to the next New: people would have to trust each anew.
	// nil: none.
	Hosts func() []string
	// Name is the common name of the self-signed certificate.
	Name string
	Log  *slog.Logger
}

// Source hands out the present certificate. It is safe for concurrent use.
type Source struct {
	certFile, keyFile string          // of the operator
	path, name        string          // of our own, certificate and key in one file
	hosts             func() []string // of our own
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time // modification of the operator's files
	looked  time.Time
}

// New loads the certificate, or makes one. CONFIG_INVALID when a file cannot
// be used.
func New(c Config) (*Source, error) {
	cert := &Source{certFile: c.CertFile, keyFile: c.KeyFile, path: c.Path, name: c.Name, hosts: c.Hosts, log: c.Log}
	if err := cert.look(time.Now()); err != nil {
		return nil, err
	}
	return cert, nil
}

// TLS is the configuration of a listener that uses the certificate.
func (c *Source) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if now := time.Now(); now.Sub(c.looked) > lookEvery {
				if err := c.look(now); err != nil { // the files are being replaced, or worse
					c.log.WarnContext(hello.Context(), "the old certificate is served", "error", err)
				}
			}
			return c.current, nil
		},
	}
}

// look reads, makes or renews the certificate as needed.
func (c *Source) look(now time.Time) error {
	c.looked = now
	if c.certFile != "" || c.keyFile != "" {
		return c.lookOperator()
	}
	hosts := c.names()
	needed := hosts[:1]
	if c.current == nil {
		needed = hosts
		pair, err := tls.LoadX509KeyPair(c.path, c.path)
		if err == nil {
			c.current = &pair
		} else if _, statErr := os.Stat(c.path); statErr == nil || !errors.Is(statErr, fs.ErrNotExist) {
			return problem.New(problem.ConfigInvalid, "certificate %s cannot be read", c.path).
				WithHint("delete the file: a new one is made").WithCause(err)
		}
	}
	if c.current != nil && c.fits(now, needed) {
		return nil
	}
	text, err := selfSigned(c.name, hosts, now)
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	if err := atomicfile.Write(c.path, text, 0o600); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return fmt.Errorf("use certificate: %w", err)
	}
	c.current = &pair
	return nil
}

func (c *Source) lookOperator() error {
	var stamp [2]time.Time
	for i, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return problem.New(problem.ConfigInvalid, "certificate %q cannot be read", path).WithCause(err)
		}
		stamp[i] = info.ModTime()
	}
	if c.current != nil && stamp == c.stamp {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return problem.New(problem.ConfigInvalid, "certificate %s cannot be used with key %s", c.certFile, c.keyFile).
			WithCause(err)
	}
	c.current, c.stamp = &pair, stamp
	return nil
}

// names are the hosts that our own certificate should be for now, as they are
// written in one; there is one at least.
func (c *Source) names() []string {
	var all, names []string
	if c.hosts != nil {
		all = c.hosts()
	}
	for _, host := range append(slices.Clone(all), "localhost", "127.0.0.1", "::1") {
		if inner, ok := strings.CutPrefix(host, "["); ok { // as in a URL
			host = strings.TrimSuffix(inner, "]")
		}
		if host != "" && !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	return names
}

// fits tells whether our own certificate lasts and names these hosts.
func (c *Source) fits(now time.Time, hosts []string) bool {
	leaf := c.current.Leaf
	if leaf == nil || now.Add(renewBefore).After(leaf.NotAfter) {
		return false
	}
	for _, host := range hosts {
		ip := net.ParseIP(host)
		if ip != nil && !slices.ContainsFunc(leaf.IPAddresses, ip.Equal) || ip == nil && !slices.Contains(leaf.DNSNames, host) {
			return false
		}
	}
	return true
}

// selfSigned makes a certificate for hosts, as PEM with its key.
func selfSigned(name string, hosts []string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour), // clocks differ
		NotAfter:              now.Add(selfSignedLife - time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := errors.Join(
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}
