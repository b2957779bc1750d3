package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/version"
)

// maxAnswer is the largest answer taken: a screenshot of an 8K desktop.
const maxAnswer = 128 << 20

// clients are the services at the address.
type clients struct {
	environments remotegpuv1connect.EnvironmentServiceClient
	operations   remotegpuv1connect.OperationServiceClient
	images       remotegpuv1connect.ImageServiceClient
	ports        remotegpuv1connect.PortServiceClient
	dns          remotegpuv1connect.DNSServiceClient
	gpus         remotegpuv1connect.GPUServiceClient
	desktops     remotegpuv1connect.DesktopServiceClient
	node         remotegpuv1connect.NodeServiceClient
	volumes      remotegpuv1connect.VolumeServiceClient
	snapshots    remotegpuv1connect.SnapshotServiceClient
}

// dial makes the clients. Nothing is connected yet.
func (a *app) dial() (*clients, error) {
	client, base, err := a.httpClient()
	if err != nil {
		return nil, err
	}
	c := connect.NewClient(connecthttp.NewTransport(client, base, connecthttp.WithReadMaxBytes(maxAnswer)), onlyUTF8)
	return &clients{
		environments: remotegpuv1connect.NewEnvironmentServiceClient(c),
		operations:   remotegpuv1connect.NewOperationServiceClient(c),
		images:       remotegpuv1connect.NewImageServiceClient(c),
		ports:        remotegpuv1connect.NewPortServiceClient(c),
		dns:          remotegpuv1connect.NewDNSServiceClient(c),
		gpus:         remotegpuv1connect.NewGPUServiceClient(c),
		desktops:     remotegpuv1connect.NewDesktopServiceClient(c),
		node:         remotegpuv1connect.NewNodeServiceClient(c),
		volumes:      remotegpuv1connect.NewVolumeServiceClient(c),
		snapshots:    remotegpuv1connect.NewSnapshotServiceClient(c),
	}, nil
}

// httpClient speaks HTTP/2 everywhere, without TLS by prior knowledge, so that
// streams work.
func (a *app) httpClient() (*http.Client, string, error) {
	const hint = "use unix:///path/of/socket, http://host:port or https://host:port"
	address, err := url.Parse(a.addr)
	if err != nil {
		return nil, "", usagef(hint, "address %q: %v", a.addr, err)
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, Protocols: new(http.Protocols)}
	var base string
	switch {
	case address.Scheme == "unix" && address.Host == "" && address.Path != "":
		transport.Protocols.SetUnencryptedHTTP2(true)
		path := filepath.FromSlash(address.Path)
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
		base = "http://node"
	case address.Scheme == "http" && address.Host != "":
		transport.Protocols.SetUnencryptedHTTP2(true)
		if a.getenv("REMOTEGPU_TOKEN") != "" && !loopback(address.Hostname()) {
			return nil, "", usagef("use https, or tunnel to a loopback address",
				"the token would travel to %s in clear text", address.Host)
		}
		base = address.String()
	case address.Scheme == "https" && address.Host != "":
		transport.Protocols.SetHTTP1(true)
		transport.Protocols.SetHTTP2(true)
		transport.Proxy = http.ProxyFromEnvironment
		if transport.TLSClientConfig, err = a.tlsConfig(); err != nil {
			return nil, "", err
		}
		base = address.String()
	default:
		return nil, "", usagef(hint, "address %q is not one", a.addr)
	}
	return &http.Client{
		Transport: &authorized{next: transport, token: a.getenv("REMOTEGPU_TOKEN")},
		// The API never redirects; whoever does shall not get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, base, nil
}

func (a *app) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.caCert == "" {
		return config, nil
	}
	pem, err := os.ReadFile(a.caCert)
	if err != nil {
		return nil, usagef("name a PEM file", "read certificate authority: %v", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, usagef("name a PEM file", "%s has no certificate in it", a.caCert)
	}
	return config, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// authorized adds the token and the program's name to each request.
type authorized struct {
	next  http.RoundTripper
	token string
}

// RoundTrip sends the request.
func (t *authorized) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("User-Agent", "remotegpu/"+version.Version)
	if t.token != "" {
		request.Header.Set("Authorization", "Bearer "+t.token)
	}
	if request.ContentLength < 0 && request.Body != nil {
		request.Body = endWith(request.Context(), request.Body)
	}
	return t.next.RoundTrip(request)
}

// endingBody is the body of a request that is closed at the end of its context.
type endingBody struct {
	io.ReadCloser
	stop func() bool
}

// endWith closes a body when ctx ends. While net/http waits for the next piece
// of a body it does not look at the context, so that a stream on which nothing
// is sent would go on, and whoever waits for its answer would wait, too.
func endWith(ctx context.Context, body io.ReadCloser) io.ReadCloser {
	return &endingBody{ReadCloser: body, stop: context.AfterFunc(ctx, func() { _ = body.Close() })}
}

// Close implements io.Closer.
func (b *endingBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
