package gateway

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
)

// files are our page and, once web/fetch.sh has run, the VNC client in
// web/novnc.
//
//go:embed web
var files embed.FS

const vncClient = "web/novnc/core/rfb.js"

// HasNoVNC tells whether the VNC client is built in. Without it the gateway
// carries connections, but its page says that it cannot show them.
func HasNoVNC() bool {
	_, err := fs.Stat(files, vncClient)
	return err == nil
}

// web serves the page and its parts from memory.
type web struct {
	index   []byte
	failure []byte // the page of an error, with {{title}} and {{text}}
	digest  string // of all parts: their URLs change when they do
	csp     string
	sameTop bool // X-Frame-Options says the same as the policy
	hsts    bool
}

func newWeb(frameAncestors []string, trusted bool) (*web, error) {
	digest := sha256.New()
	if err := fs.WalkDir(files, "web", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := files.ReadFile(name)
		digest.Write(fmt.Appendf(nil, "%s %d\n", name, len(content)))
		digest.Write(content)
		return err
	}); err != nil {
		return nil, fmt.Errorf("read gateway files: %w", err)
	}
	w := &web{digest: hex.EncodeToString(digest.Sum(nil)[:8]), sameTop: len(frameAncestors) == 0, hsts: trusted}
	index, err := files.ReadFile("web/index.html")
	if err != nil {
		return nil, fmt.Errorf("read gateway files: %w", err)
	}
	w.index = bytes.ReplaceAll(index, []byte("{{assets}}"), []byte("../static/"+w.digest))
	if w.failure, err = files.ReadFile("web/failure.html"); err != nil {
		return nil, fmt.Errorf("read gateway files: %w", err)
	}
	// Cursors and some rectangles are data: images.
	w.csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; " +
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
	for _, origin := range frameAncestors {
		w.csp += " " + origin
	}
	return w, nil
}

// secure sets the headers that every answer has.
func (s *web) secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", s.csp)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), clipboard-read=(self), clipboard-write=(self), fullscreen=(self)")
		if s.sameTop {
			header.Set("X-Frame-Options", "SAMEORIGIN")
		}
		if s.hsts { // with a certificate of our own nobody could come back
			header.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

func validID(id string) bool {
	return regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$`).MatchString(id)
}

func (s *web) page(w http.ResponseWriter, r *http.Request) {
	if !validID(r.PathValue("id")) {
		s.notFound(w, r)
		return
	}
	if !HasNoVNC() {
		s.fail(w, http.StatusServiceUnavailable, "No desktop viewer",
			"This gateway was built without its desktop viewer. Build it again after running network/gateway/web/fetch.sh.")
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(s.index) // the client may be gone
}

// asset serves the parts of the page, and nothing else of the directory.
func (s *web) asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("path")
	kinds := map[string]string{
		".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
		".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
	}
	kind, served := kinds[path.Ext(name)]
	if r.PathValue("digest") != s.digest || !served || strings.Contains(name, "..") {
		s.notFound(w, r)
		return
	}
	content, err := files.ReadFile(path.Join("web", name))
	if err != nil {
		s.notFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(content) //nolint:gosec // G705: a file that is built in; the client may be gone
}

func (s *web) notFound(w http.ResponseWriter, _ *http.Request) {
	s.fail(w, http.StatusNotFound, "Nothing here", "This address leads nowhere. Ask for a new link to your desktop.")
}

func (s *web) fail(w http.ResponseWriter, status int, title, text string) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = strings.NewReplacer("{{title}}", title, "{{text}}", text).WriteString(w, string(s.failure)) // the client may be gone
}
