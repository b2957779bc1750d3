package containerd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// unreachable says in people's words why a registry could not be asked, and what
// to do about it. It quotes no address of a request: these can carry secrets.
func unreachable(host string, err error) (why, hint string) {
	for _, cause := range []func(string, error) (string, string){answeredOddly, notTrusted, notResolved, notConnected} {
		if why, hint := cause(host, err); why != "" {
			return why, hint
		}
	}
	hint = "check the node's network and name resolution; its log has the details"
	if request, ok := errors.AsType[*url.Error](err); ok {
		return request.Err.Error(), hint
	}
	return "the answer cannot be understood", hint
}

func answeredOddly(_ string, err error) (why, hint string) {
	status, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	switch {
	case !ok:
		return "", ""
	case status.StatusCode == http.StatusTooManyRequests:
		return "it has had too many requests for now (429)", "try again later, or log in: registries let those with an account ask more"
	case status.StatusCode >= http.StatusInternalServerError:
		return fmt.Sprintf("it has an error of its own (%d %s)", status.StatusCode, http.StatusText(status.StatusCode)), "try again later, or ask who runs it"
	}
	return fmt.Sprintf("it answers %d %s", status.StatusCode, http.StatusText(status.StatusCode)), "check that host and port are those of a registry"
}

func notTrusted(host string, err error) (why, hint string) {
	trust := "name the certificate of its authority in hosts.toml of the registry (ca = …), in a directory for it below registries.hosts_dir of the node's configuration"
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its TLS certificate is of an authority that the node does not know", trust
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its TLS certificate is for another name than " + host, "use the name that the certificate has, or have one made for this name"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return "its TLS certificate has expired or is not valid yet", "check the clock of the node, or have the certificate renewed"
		}
		return "its TLS certificate is not valid: " + invalid.Error(), trust
	}
	if failed, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its TLS certificate cannot be verified: " + failed.Err.Error(), trust
	}
	_, record := errors.AsType[tls.RecordHeaderError](err)
	if record || errors.Is(err, http.ErrSchemeMismatch) {
		return "it does not speak TLS", `if that is meant to be, write server = "http://` + host +
			`" into hosts.toml of the registry, in a directory for it below registries.hosts_dir of the node's configuration`
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return "it refuses TLS: " + alert.Error(), "ask who runs it what it expects, such as a client certificate (client = … in hosts.toml)"
	}
	return "", ""
}

func notResolved(_ string, err error) (why, hint string) {
	lookup, ok := errors.AsType[*net.DNSError](err)
	switch {
	case !ok:
		return "", ""
	case lookup.IsNotFound:
		return fmt.Sprintf("there is no host %s", lookup.Name), "check the registry's name, and the node's name resolution (/etc/resolv.conf)"
	case lookup.IsTimeout:
		return fmt.Sprintf("no name server answers for %s", lookup.Name), "check the node's name resolution (/etc/resolv.conf) and network"
	}
	return fmt.Sprintf("the name %s cannot be resolved", lookup.Name), "check the node's name resolution (/etc/resolv.conf)"
}

func notConnected(host string, err error) (why, hint string) {
	to := host
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Addr != nil && dial.Op == "dial" {
		to = dial.Addr.String()
	}
	network := "check the node's network and firewall, or the proxy that its environment names (HTTPS_PROXY)"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing accepts connections at " + to + " (connection refused)", "check host and port, and that the registry runs"
	case errors.Is(err, syscall.ENETUNREACH):
		return "the node has no route to " + to + " (network is unreachable)", network
	case errors.Is(err, syscall.EHOSTUNREACH):
		return to + " is not reachable (no route to host)", network
	case errors.Is(err, errStandstill):
		return "nothing was transferred for too long", "try again; " + network
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		return "it broke the connection off", "try again; check that host and port are those of a registry"
	}
	if _, broken := errors.AsType[*brokenOff](err); broken {
		return "it broke the transfer off", "try again; " + network
	}
	if failed, ok := errors.AsType[net.Error](err); ok && failed.Timeout() {
		return "it does not answer in time", network
	}
	return "", ""
}
