package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// explain makes of an error what people and programs should see.
func (a *app) explain(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if ctx.Err() != nil {
		return &failure{Code: "canceled", Message: "interrupted", exit: exitInterrupted}
	}
	remote, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return &failure{Message: err.Error(), exit: exitUnexpected}
	}
	if !remote.IsRemote() {
		if f := a.explainConnection(remote); f != nil {
			return f
		}
	}
	f := &failure{Code: remote.Code().String(), Message: remote.Message(), exit: exitOf(remote.Code())}
	if f.Message == "" {
		f.Message = strings.ReplaceAll(f.Code, "_", " ")
	}
	for _, detail := range remote.Details() {
		if message, err := connectproto.UnmarshalErrorDetail(detail); err == nil {
			f.add(message)
		}
	}
	if len(f.Hints) == 0 {
		switch remote.Code() {
		case connect.CodeUnauthenticated:
			f.Hints = []string{"set REMOTEGPU_TOKEN to a token of this address"}
		case connect.CodeUnimplemented:
			f.Hints = []string{"the node may be older than this program: compare with remotegpu version"}
		default:
		}
	}
	return f
}

// add takes what one error detail says.
func (f *failure) add(detail any) {
	switch d := detail.(type) {
	case *errdetails.ErrorInfo:
		if d.GetDomain() == "remotegpu" {
			f.Reason = d.GetReason()
		}
	case *errdetails.BadRequest:
		for _, violation := range d.GetFieldViolations() {
			f.Fields = append(f.Fields, fieldFault{
				Field: violation.GetField(), Description: violation.GetDescription(), Reason: violation.GetReason(),
			})
			f.hint(violation.GetLocalizedMessage().GetMessage())
		}
	case *errdetails.LocalizedMessage:
		f.hint(d.GetMessage())
	case *errdetails.Help:
		for _, link := range d.GetLinks() {
			f.Links = append(f.Links, link.GetUrl())
		}
	}
}

func (f *failure) hint(text string) {
	if text != "" && !slices.Contains(f.Hints, text) {
		f.Hints = append(f.Hints, text)
	}
}

// explainConnection explains that nobody answered. nil: it was something else.
func (a *app) explainConnection(err *connect.Error) *failure {
	unknown, other := x509.UnknownAuthorityError{}, x509.HostnameError{}
	switch {
	case errors.As(err, &unknown):
		return &failure{
			Code: "unavailable", Message: "the certificate of " + a.addr + " is not known: " + unknown.Error(),
			Hints: []string{"name its certificate authority with --cacert or REMOTEGPU_CACERT"}, exit: exitUnavailable,
		}
	case errors.As(err, &other):
		return &failure{
			Code: "unavailable", Message: "the certificate of " + a.addr + " is for another name: " + other.Error(),
			Hints: []string{"use the name that the certificate was made for"}, exit: exitUnavailable,
		}
	case errors.Is(err, fs.ErrPermission):
		return &failure{
			Code: "permission_denied", Message: "no permission to open " + a.addr,
			Hints: []string{"use sudo, or an http address with --addr and REMOTEGPU_TOKEN"}, exit: exitDenied,
		}
	case cutOff(err):
		return &failure{
			Code: "unavailable", Message: "the connection to " + a.addr + " broke: the node went away",
			Hints: []string{"see that the node runs and can be reached, then try again"}, exit: exitUnavailable,
		}
	case err.Code() == connect.CodeUnavailable:
		hint := "check the address, and that the node runs and listens there"
		if strings.HasPrefix(a.addr, "unix://") {
			hint = "start the node (remotegpud), or name another one with --addr or REMOTEGPU_ADDR"
		}
		return &failure{
			Code: "unavailable", Message: "cannot reach " + a.addr + ": " + err.Message(),
			Hints: []string{hint}, exit: exitUnavailable,
		}
	}
	return nil
}

// cutOff says that the connection broke in the middle of an answer.
func cutOff(err error) bool {
	remote, ok := errors.AsType[*connect.Error](err)
	if ok && (remote.IsRemote() || remote.Code() == connect.CodeUnavailable) {
		return false
	}
	_, network := errors.AsType[*net.OpError](err)
	// Connect and net/http have no types for how else a connection can end.
	return network || errors.Is(err, io.ErrUnexpectedEOF) || err != nil && strings.Contains(err.Error(), "protocol error: incomplete envelope")
}

// problemFailure is the failure that a resource remembers. It exits as the
// same failure would have done when answered at once, so that a script need
// not care when it was noticed.
func problemFailure(what string, p *remotegpuv1.Problem) *failure {
	f := &failure{Code: p.GetCode(), Reason: p.GetReason(), Message: what, exit: exitFailed}
	if p.GetMessage() != "" {
		f.Message += ": " + p.GetMessage()
	}
	if p.GetField() != "" {
		f.Fields = []fieldFault{{Field: p.GetField(), Reason: p.GetReason()}}
	}
	f.hint(p.GetHint())
	var code connect.Code
	if code.UnmarshalText([]byte(p.GetCode())) == nil {
		if exit := exitOf(code); exit != exitUnexpected {
			f.exit = exit
		}
	}
	return f
}
