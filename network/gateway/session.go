package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/remotegpu/remotegpu/desktop/rfb"
)

// A WebSocket that is refused before it opens tells a page nothing, so it is
// opened and closed at once with one of these codes; web/app.js knows them.
const (
	closeExpired     websocket.StatusCode = 4401
	closeRefused     websocket.StatusCode = 4403
	closeGone        websocket.StatusCode = 4404
	closeStopped     websocket.StatusCode = 4409
	closeEnded       websocket.StatusCode = 4410
	closePaused      websocket.StatusCode = 4423
	closeTooMany     websocket.StatusCode = 4429
	closeFailed      websocket.StatusCode = 4500
	closeUnavailable websocket.StatusCode = 4503
)

const (
	subprotocol      = "binary"
	tokenSubprotocol = "remotegpu.token." //nolint:gosec // G101: a prefix, no token
	connectTimeout   = 10 * time.Second
	welcomeTimeout   = 15 * time.Second
	pingEvery        = 30 * time.Second
	pingTimeout      = 30 * time.Second
	bufferSize       = 256 << 10
	maxReason        = 120 // bytes; a close frame takes 123
)

// ending is how a session ended: what the browser is told, or nothing when it
// is not there any more.
type ending struct {
	code   websocket.StatusCode
	reason string
	err    error // for the log
}

// serveRFB carries one RFB connection. A browser may come from our own pages
// only; the token is not in a cookie, so another page would have to know it.
func (g *Gateway) serveRFB(w http.ResponseWriter, r *http.Request) {
	envID := r.PathValue("id")
	if !validID(envID) {
		g.web.notFound(w, r)
		return
	}
	g.running.Add(1)
	defer g.running.Done()
	base := g.publicURL()
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:    []string{subprotocol},
		OriginPatterns:  []string{base.Scheme + "://" + base.Host},
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil { // the client was told
		g.log.DebugContext(r.Context(), "websocket refused", "environment", envID, "remote", r.RemoteAddr, "error", err)
		return
	}
	defer socket.CloseNow() //nolint:errcheck // what Close did not close
	log := g.log.With("environment", envID, "remote", r.RemoteAddr)
	claims, err := g.keys.verify(tokenOf(r), envID, g.now())
	if err != nil {
		code := closeRefused
		if errors.Is(err, errTokenExpired) {
			code = closeExpired
		}
		log.InfoContext(r.Context(), "desktop session refused", "reason", err)
		finish(socket, ending{code: code, reason: err.Error()})
		return
	}
	here, leave, ok := g.enter(envID)
	if !ok {
		log.WarnContext(r.Context(), "desktop session refused", "reason", "too many", "limit", g.maxSessions)
		finish(socket, ending{code: closeTooMany, reason: "too many sessions on this desktop"})
		return
	}
	defer leave()
	if end, absent := g.absent(r.Context(), envID); absent {
		log.InfoContext(r.Context(), "desktop session refused", "reason", end.reason)
		leave()
		finish(socket, end)
		return
	}
	start := time.Now()
	log.InfoContext(r.Context(), "desktop session begins", "view_only", claims.access == View)
	end := g.session(r.Context(), socket, envID, claims.access == View, here.told)
	leave() // a browser that is told may come back at once
	finish(socket, end)
	log.InfoContext(r.Context(), "desktop session ended", "code", int(end.code), "reason", end.reason,
		"error", end.err, "duration", time.Since(start))
}

// tokenOf finds the token among the offered subprotocols: the one header that
// a page can set on a WebSocket.
func tokenOf(r *http.Request) string {
	for _, header := range r.Header.Values("Sec-WebSocket-Protocol") {
		for protocol := range strings.SplitSeq(header, ",") {
			if token, ok := strings.CutPrefix(strings.TrimSpace(protocol), tokenSubprotocol); ok {
				return token
			}
		}
	}
	return ""
}

// enter takes one of the environment's sessions. leave, which may be called
// again, gives it back.
func (g *Gateway) enter(envID string) (here *entered, leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sessions[envID]) >= g.maxSessions {
		return nil, nil, false
	}
	if g.sessions[envID] == nil {
		g.sessions[envID] = make(map[*entered]struct{})
	}
	here = &entered{told: make(chan ending, 1)}
	g.sessions[envID][here] = struct{}{}
	return here, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.sessions[envID], here)
		if len(g.sessions[envID]) == 0 {
			delete(g.sessions, envID)
		}
	}, true
}

func finish(socket *websocket.Conn, end ending) {
	if end.code == 0 {
		return
	}
	reason := strings.ToValidUTF8(end.reason[:min(len(end.reason), maxReason)], "")
	_ = socket.Close(end.code, reason) // the browser may be gone
}

// session logs in to the desktop, welcomes the browser, and carries bytes both
// ways until one of them, the environment or ctx ends, or told says how.
func (g *Gateway) session(ctx context.Context, socket *websocket.Conn, envID string, viewOnly bool, told <-chan ending) ending {
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	server, init, err := g.desktops.Connect(connecting, envID, viewOnly)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return restarting()
		}
		return ending{closeUnavailable, "the desktop does not answer", err}
	}
	defer server.Close() //nolint:errcheck // ends the copies
	// Not ctx: its end would tear the WebSocket down without a word.
	browser := websocket.NetConn(context.WithoutCancel(ctx), socket, websocket.MessageBinary)
	if err := browser.SetDeadline(time.Now().Add(welcomeTimeout)); err != nil {
		return ending{websocket.StatusInternalError, "internal error", err}
	}
	stopWaiting := context.AfterFunc(ctx, func() {
		_ = browser.SetDeadline(time.Unix(1, 0)) // only a closed connection refuses
	})
	err = rfb.Welcome(browser, init)
	if !stopWaiting() {
		return restarting()
	}
	if err != nil {
		return fromBrowser(err)
	}
	if err := browser.SetDeadline(time.Time{}); err != nil {
		return ending{websocket.StatusInternalError, "internal error", err}
	}
	ended := make(chan ending, 3)
	go func() { ended <- fromBrowser(rfb.Filter{ViewOnly: viewOnly}.Copy(server, browser)) }()
	go func() { ended <- toBrowser(browser, server) }()
	alive, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		if err := keepAlive(alive, socket); err != nil {
			ended <- ending{err: err}
		}
	}()
	select {
	case end := <-ended:
		return end
	case end := <-told:
		return end
	case <-ctx.Done():
		return restarting()
	}
}

func restarting() ending {
	return ending{code: websocket.StatusGoingAway, reason: "the gateway restarts"}
}

// fromBrowser is the ending when the browser's side of a session is over.
func fromBrowser(err error) ending {
	if violation, ok := errors.AsType[*rfb.ProtocolError](err); ok {
		return ending{websocket.StatusPolicyViolation, violation.Error(), err}
	}
	if writeErr, ok := errors.AsType[*net.OpError](err); ok && writeErr.Op == "write" {
		return ending{closeEnded, "the desktop ended", err}
	}
	return ending{websocket.StatusNormalClosure, "", err}
}

func toBrowser(browser, server net.Conn) ending {
	buffer := make([]byte, bufferSize)
	for {
		n, err := server.Read(buffer)
		if n > 0 {
			if _, err := browser.Write(buffer[:n]); err != nil {
				return ending{err: err}
			}
		}
		if err != nil {
			return ending{closeEnded, "the desktop ended", err}
		}
	}
}

// keepAlive finds browsers that are gone or take nothing any more.
func keepAlive(ctx context.Context, socket *websocket.Conn) error {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			ping, cancel := context.WithTimeout(ctx, pingTimeout)
			err := socket.Ping(ping)
			cancel()
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
