package containerd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Each way in which a registry cannot be asked is told apart in the message, which
// is what an operation keeps, with a hint of its own and no address of a request.
// White-box: a test has no network to break.
func TestWhyARegistryCannotBeAsked(t *testing.T) {
	request := func(err error) error {
		return fmt.Errorf("failed to do request: %w", &url.Error{Op: "Head", URL: "https://r.test/v2/x?sig=hunter2", Err: err})
	}
	dial := func(err error) error {
		return request(&net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 9, 9), Port: 5000}, Err: os.NewSyscallError("connect", err)})
	}
	hints := map[string]string{}
	for want, err := range map[string]error{
		"10.9.9.9:5000 (connection refused)":     dial(syscall.ECONNREFUSED),
		"10.9.9.9:5000 (network is unreachable)": dial(syscall.ENETUNREACH),
		"no route to host":                       dial(syscall.EHOSTUNREACH),
		"does not answer in time":                dial(syscall.ETIMEDOUT),
		"broke the connection off":               request(syscall.ECONNRESET),
		"there is no host r.test":                request(&net.DNSError{Name: "r.test", Err: "no such host", IsNotFound: true}),
		"no name server answers for r.test":      request(&net.DNSError{Name: "r.test", IsTimeout: true}),
		"r.test cannot be resolved":              request(&net.DNSError{Name: "r.test", IsTemporary: true}),
		"authority that the node does not know":  request(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
		"for another name than r.test:5000":      request(&tls.CertificateVerificationError{Err: x509.HostnameError{Host: "r.test"}}),
		"has expired":                            request(&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}),
		"does not speak TLS":                     request(http.ErrSchemeMismatch),
		"(503 Service Unavailable)":              remoteerrors.ErrUnexpectedStatus{StatusCode: 503, RequestURL: "https://r.test/?sig=hunter2"},
		"too many requests":                      remoteerrors.ErrUnexpectedStatus{StatusCode: 429},
		"answers 418":                            remoteerrors.ErrUnexpectedStatus{StatusCode: 418},
		"something else":                         request(errors.New("something else")),
		"the answer cannot be understood":        errors.New("parse https://r.test/?sig=hunter2"),
	} {
		p := problem.Of(registry{host: "r.test:5000"}.problem(t.Context(), "pull", "r.test:5000/x:1", err))
		if p.Reason != problem.RegistryUnavailable || !strings.Contains(p.Message, want) || p.Hint == "" || p.Field != "spec.image" {
			t.Errorf("%v:\n%+v\nwant %q", err, p, want)
		}
		if strings.Contains(p.Message+p.Hint, "hunter2") {
			t.Errorf("%v: it shows what may be secret: %s", err, p.Message)
		}
		if p.Err == nil || p.Err.Error() != err.Error() {
			t.Errorf("%v: its cause is not for the log", err)
		}
		hints[p.Hint] += want + "; "
	}
	if len(hints) < 10 {
		t.Errorf("the hints tell too little apart: %q", hints)
	}
	for status, text := range map[int]string{401: "401 Unauthorized", 403: "403 Forbidden"} {
		p := problem.Of(registry{host: "r.test"}.problem(t.Context(), "push", "r.test/x:1", remoteerrors.ErrUnexpectedStatus{StatusCode: status}))
		if p.Reason != problem.RegistryDenied || !strings.Contains(p.Message, text) {
			t.Errorf("%d: %+v", status, p)
		}
	}
}

// What the client of the standard library says of certificates and of plain HTTP
// is what is looked for.
func TestWhyOfARealServer(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it says that it is not trusted
	server.StartTLS()
	defer server.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for address, want := range map[string]string{
		server.URL: "authority", "https" + strings.TrimPrefix(plain.URL, "http"): "does not speak TLS", closed.URL: "connection refused",
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := (&http.Client{Transport: &http.Transport{}}).Do(request)
		if err == nil {
			_ = response.Body.Close()
			t.Fatalf("%s answers", address)
		}
		if why, hint := unreachable("r.test", err); !strings.Contains(why, want) || hint == "" {
			t.Errorf("%v: %q, want %q", err, why, want)
		}
	}
}
