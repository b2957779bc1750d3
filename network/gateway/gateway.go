// Package gateway is the node's web listener for people, apart from the API:
// it serves the page that shows a desktop in the browser and carries its RFB
// connection over a WebSocket. Short-lived signed tokens, which travel in URL
// fragments and never in query strings, say who may see and who may act.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/internal/certificate"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Desktops connects to the desktops of environments; *desktop.Desktops
// implements it.
type Desktops interface {
	// Connect returns a connection that is logged in, with what its server
	// said about itself. ctx bounds the login only.
	Connect(ctx context.Context, envID string, viewOnly bool) (net.Conn, rfb.ServerInit, error)
}

// Config is what a node says about its gateway.
type Config struct {
	// Listen is the TCP address, for example ":7443".
	Listen string
	// PublicURL is how browsers reach the gateway, for example
	// "https://gpu1.example.com:7443". "": made of the first of Hosts and the
	// port of Listen.
	PublicURL string
	// Hosts returns the names and addresses that people may reach the node by
	// now, the best first: for URLs, and for the certificate that the gateway
	// makes itself. It is asked each time. nil: none.
	Hosts func() []string
	// CertFile and KeyFile are a PEM certificate chain and its key, read again
	// when they change. "": a self-signed one is kept in StateDir.
	CertFile, KeyFile string
	// StateDir is a directory for the token keys and the certificate, both
	// made when they are not there, mode 0600.
	StateDir string
	// FrameAncestors are the origins that may show desktops in a frame, for
	// example "https://portal.example.com". None: the gateway's own only.
	FrameAncestors []string
	// MaxSessions is how many connections one desktop takes at a time. 0: 16.
	MaxSessions int
	// MaxConnections is how many connections the gateway has at a time, those
	// of people without a token included. 0: 4096.
	MaxConnections int
	Desktops       Desktops
	// Conditions tells why a desktop cannot be seen. nil: nobody knows, and
	// browsers are told that it may still be starting.
	Conditions Conditions
	Log        *slog.Logger
}

const (
	certificateFile       = "gateway-tls.pem"
	defaultMaxSessions    = 16
	defaultMaxConnections = 4096
	drainTimeout          = 7 * time.Second
)

// Gateway is the web listener. Its methods are safe for concurrent use.
type Gateway struct {
	listen      string
	publicURL   func() *url.URL // now
	desktops    Desktops
	conditions  Conditions
	log         *slog.Logger
	keys        keyring
	certificate *certificate.Source
	web         *web
	now         func() time.Time
	maxSessions int
	maxConns    int

	running  sync.WaitGroup // sessions
	mu       sync.Mutex
	sessions map[string]map[*entered]struct{} // by environment
}

var origin = regexp.MustCompile(`^https?://[A-Za-z0-9.*:\[\]-]+$`)

// Check refuses what New could do nothing with: CONFIG_INVALID.
func (c *Config) Check() error {
	_, err := publicURL(*c)
	errs := []error{err}
	for _, ancestor := range c.FrameAncestors {
		if !origin.MatchString(ancestor) {
			errs = append(errs, problem.New(problem.ConfigInvalid, "gateway.frame_ancestors: %q is no origin", ancestor).
				WithField("gateway.frame_ancestors").WithHint("write it as https://portal.example.com"))
		}
	}
	return errors.Join(errs...)
}

// New reads or makes keys and certificate; it starts nothing.
func New(c Config) (*Gateway, error) {
	if c.Hosts == nil {
		c.Hosts = func() []string { return nil }
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	publicURL, err := publicURL(c)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make gateway state directory: %w", err)
	}
	keys, err := loadKeys(c.StateDir)
	if err != nil {
		return nil, err
	}
	source, err := certificate.New(certificate.Config{
		CertFile: c.CertFile, KeyFile: c.KeyFile, Path: filepath.Join(c.StateDir, certificateFile),
		Hosts: func() []string { return append([]string{publicURL().Hostname()}, c.Hosts()...) }, Name: "remotegpu gateway", Log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("load gateway certificate: %w", err)
	}
	web, err := newWeb(c.FrameAncestors, c.CertFile != "")
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		listen: c.Listen, publicURL: publicURL, desktops: c.Desktops, conditions: c.Conditions, log: c.Log, keys: keys,
		certificate: source, web: web, now: time.Now, maxSessions: c.MaxSessions,
		maxConns: c.MaxConnections, sessions: make(map[string]map[*entered]struct{}),
	}
	if g.maxConns <= 0 {
		g.maxConns = defaultMaxConnections
	}
	if g.maxSessions <= 0 {
		g.maxSessions = defaultMaxSessions
	}
	return g, nil
}

// publicURL returns what says how browsers reach the gateway: always the same
// when that is configured, else by the host's best name or address, which may
// change, as when the daemon starts before the host has one.
func publicURL(c Config) (func() *url.URL, error) {
	text := c.PublicURL
	if text == "" {
		host, port, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return nil, problem.New(problem.ConfigInvalid, "gateway address %q is not host:port", c.Listen).WithCause(err)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return func() *url.URL {
				host := "localhost"
				if hosts := c.Hosts(); len(hosts) > 0 {
					host = hosts[0]
				}
				return &url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}
			}, nil
		}
		text = "https://" + net.JoinHostPort(host, port)
	}
	parsed, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || parsed.Scheme != "https" && parsed.Scheme != "http" || parsed.Host == "" ||
		parsed.RawQuery != "" || parsed.Fragment != "" {
		return nil, problem.New(problem.ConfigInvalid, "gateway.public_url: %q is not one", text).WithField("gateway.public_url").
			WithHint("write it as https://gpu1.example.com:7443")
	}
	return func() *url.URL { return parsed }, nil
}

// Run listens and serves until ctx ends, then tells the browsers that they may
// come back, and ends their sessions.
func (g *Gateway) Run(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", g.listen)
	if err != nil {
		return fmt.Errorf("listen for the gateway: %w", err)
	}
	return g.Serve(ctx, listener)
}

// Serve does as Run, on a listener that is open. It closes it.
func (g *Gateway) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           g.Handler(),
		TLSConfig:         g.certificate.TLS(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // sessions leave the server: not bound by these
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // handshakes that strangers break off
	}
	address := listener.Addr()
	listener = &limitedListener{Listener: listener, limit: int64(g.maxConns), beyond: func(remote net.Addr) {
		g.log.DebugContext(ctx, "connection closed: there are too many", "remote", remote.String(), "limit", g.maxConns)
	}}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	g.log.InfoContext(ctx, "gateway serves", "address", address.String(), "url", g.publicURL().String())
	select {
	case err := <-served:
		return fmt.Errorf("serve the gateway: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if err != nil {
		err = errors.Join(fmt.Errorf("drain the gateway: %w", err), server.Close())
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve the gateway: %w", serveErr))
	}
	ended := make(chan struct{})
	go func() { g.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-drain.Done():
		err = errors.Join(err, errors.New("drain the gateway: sessions are still open"))
	}
	return err
}

// URL is the page of an environment's desktop, at the address that the host has
// now. It needs a token in its fragment: see Session.
func (g *Gateway) URL(envID string) string {
	return g.publicURL().JoinPath("desktop", envID).String()
}

// Session makes a token that opens connections to a desktop until expires, and
// the URL that carries it. A connection that is open stays open.
func (g *Gateway) Session(envID string, access Access, ttl time.Duration) (pageURL, token string, expires time.Time) {
	expires = g.now().Add(ttl).Truncate(time.Second)
	token = g.keys.sign(claims{envID: envID, access: access, expires: expires})
	fragment := "#token=" + token
	if access == View {
		fragment += "&view=1"
	}
	return g.URL(envID) + fragment, token, expires
}

// Handler serves the gateway's pages. Run serves it; it is here for tests and
// for whoever has a listener of his own.
func (g *Gateway) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // the client may be gone
	})
	mux.HandleFunc("GET /desktop/{id}", g.web.page)
	mux.HandleFunc("GET /desktop/{id}/rfb", g.serveRFB)
	mux.HandleFunc("GET /static/{digest}/{path...}", g.web.asset)
	mux.HandleFunc("/", g.web.notFound)
	return g.web.secure(mux)
}
