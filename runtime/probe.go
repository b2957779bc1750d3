package runtime

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// HealthCheck is how to tell that an environment works: exactly one of
// Command, TCPPort, HTTPPort and Desktop. Ports are asked at the environment's
// address: what listens on its loopback only is not seen.
type HealthCheck struct {
	Command     []string      `json:"command,omitempty"`
	TCPPort     int           `json:"tcp_port,omitempty"`
	HTTPPort    int           `json:"http_port,omitempty"`
	HTTPPath    string        `json:"http_path,omitempty"` // path and query
	Desktop     bool          `json:"desktop,omitempty"`
	Interval    time.Duration `json:"interval"` // nanoseconds, as all times here
	Timeout     time.Duration `json:"timeout"`
	Retries     int           `json:"retries"` // failures one after another that make it unhealthy
	StartPeriod time.Duration `json:"start_period,omitempty"`
}

// Defaults and limits of health checks.
const (
	DefaultHealthInterval = 30 * time.Second
	DefaultHealthTimeout  = 10 * time.Second
	DefaultHealthRetries  = 3
	// MaxHealthTimeout keeps environments that hang from holding up the checks
	// of others for long.
	MaxHealthTimeout = time.Minute
	minHealthTime    = 10 * time.Millisecond
)

func checkHealth(spec *Spec) error {
	if spec.HealthCheck == nil {
		return nil
	}
	copied := *spec.HealthCheck // the caller may use the request again
	c := &copied
	spec.HealthCheck = c
	c.Interval, c.Timeout = cmp.Or(c.Interval, DefaultHealthInterval), cmp.Or(c.Timeout, DefaultHealthTimeout)
	c.Retries = cmp.Or(c.Retries, DefaultHealthRetries)
	const field = "spec.health_check"
	var errs []error
	kinds := 0
	for _, said := range []bool{len(c.Command) > 0, c.TCPPort != 0, c.HTTPPort != 0, c.Desktop} {
		if said {
			kinds++
		}
	}
	if kinds != 1 {
		errs = append(errs, invalid(field, "name exactly one of command, tcp, http and desktop", "%d kinds of check are named", kinds))
	}
	if c.Desktop && spec.Desktop == nil {
		errs = append(errs, invalid(field+".desktop", "set spec.desktop, or check something else", "the environment has no desktop"))
	}
	if len(c.Command) > 0 && c.Command[0] == "" {
		errs = append(errs, invalid(field+".command.argv", "name a program; for a shell write sh, -c and the line", "the command has no program"))
	}
	for _, argument := range c.Command {
		if strings.ContainsRune(argument, 0) {
			errs = append(errs, invalid(field+".command.argv", "arguments cannot carry binary data", "an argument contains a NUL byte"))
		}
	}
	if c.HTTPPort != 0 {
		c.HTTPPath = cmp.Or(c.HTTPPath, "/")
		if u, err := url.ParseRequestURI(c.HTTPPath); err != nil || u.Host != "" || c.HTTPPath[0] != '/' {
			errs = append(errs, invalid(field+".http.path", "begin it with /, and escape what RFC 3986 does not allow", "%q is not a path", c.HTTPPath))
		}
	}
	if c.Timeout > MaxHealthTimeout || c.Timeout < minHealthTime {
		errs = append(errs, invalid(field+".timeout", "use 10ms to 1m", "a check cannot take %s", c.Timeout))
	}
	if c.Interval < minHealthTime {
		errs = append(errs, invalid(field+".interval", "use 100ms or more", "an interval of %s is too short", c.Interval))
	}
	return errors.Join(errs...)
}

// probe checks once. detail is what it said.
func (m *Manager) probe(ctx context.Context, of *monitor) (detail string, err error) {
	c := &of.check
	switch {
	case len(c.Command) > 0:
		return m.probeCommand(ctx, of)
	case c.TCPPort != 0:
		conn, err := m.cfg.Dial(ctx, "tcp", net.JoinHostPort(of.address, strconv.Itoa(c.TCPPort)))
		if err != nil {
			return "", fmt.Errorf("connect to port %d: %w", c.TCPPort, err)
		}
		return "port " + strconv.Itoa(c.TCPPort) + " accepts connections", conn.Close()
	case c.HTTPPort != 0:
		return m.probeHTTP(ctx, of)
	default:
		return m.probeDesktop(ctx, of)
	}
}

// probeDesktop awaits that a desktop draws. From then on it must let people in,
// whatever it shows: a slide or a player may well be black.
func (m *Manager) probeDesktop(ctx context.Context, of *monitor) (string, error) {
	env, err := m.cfg.Store.Environment(ctx, of.id)
	if err == nil && env.Ready && env.StartedAt.Equal(of.started) {
		if err := m.cfg.Desktops.AwaitConnectable(ctx, of.id); err != nil {
			return "", err
		}
		return "the desktop has drawn, and can be connected to", nil
	}
	if err := m.cfg.Desktops.AwaitDrawn(ctx, of.id); err != nil {
		return "", err
	}
	return "the desktop has drawn", nil
}

func (m *Manager) probeCommand(ctx context.Context, of *monitor) (string, error) {
	result, err := m.cfg.Engine.Run(ctx, of.id, Command{
		Argv: of.check.Command, Timeout: of.check.Timeout, OutputLimit: HealthDetailLimit,
	})
	said := string(bytes.TrimSpace(bytes.Join([][]byte{result.Stdout, result.Stderr}, []byte("\n"))))
	if err != nil {
		return "", failedCommand(of, said, err)
	}
	if result.ExitCode != 0 {
		return "", fmt.Errorf("exit code %d: %s", result.ExitCode, said)
	}
	return said, nil
}

// failedCommand is what people are told of a command that has no exit code: not
// how the parts of a node tell it one another. said is what it wrote.
func failedCommand(of *monitor, said string, err error) error {
	if notChecked(err) {
		return err // of the node, and not kept
	}
	// The check's own time may be over before the engine says that the command's is.
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		if said != "" {
			return fmt.Errorf("did not end within %s: %s", of.check.Timeout, said)
		}
		return fmt.Errorf("did not end within %s", of.check.Timeout)
	}
	return errors.New(problem.Of(err).Said())
}

// probeHTTP asks an HTTP server of the environment. It goes nowhere else:
// through no proxy, after no redirect.
func (m *Manager) probeHTTP(ctx context.Context, of *monitor) (string, error) {
	host := net.JoinHostPort(of.address, strconv.Itoa(of.check.HTTPPort))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+of.check.HTTPPath, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", of.check.HTTPPath, err)
	}
	req.Header.Set("User-Agent", "remotegpu-health")
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { return m.cfg.Dial(ctx, network, host) },
		// One connection, and answers of a size that does not hurt.
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(req) // a Client would follow redirects
	if err != nil {
		return "", fmt.Errorf("ask port %d: %w", of.check.HTTPPort, err)
	}
	defer response.Body.Close() //nolint:errcheck // nothing was written
	if response.StatusCode >= http.StatusBadRequest {
		body, _ := io.ReadAll(io.LimitReader(response.Body, HealthDetailLimit)) // what there is says more than nothing
		return "", fmt.Errorf("port %d answers %s: %s", of.check.HTTPPort, response.Status, body)
	}
	return fmt.Sprintf("port %d answers %s", of.check.HTTPPort, response.Status), nil
}
