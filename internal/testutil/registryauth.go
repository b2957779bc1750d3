package testutil

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"
)

const tokenPath = "/token"

// guard is what a registry asks for.
type guard struct {
	username, password string // "": nothing
	identity           string // an identity token that does as well, "" for none
	tokens             bool   // in exchange for tokens, not with each request
	seen               []string
}

const bearer = "a-bearer-token"

// AskBasic makes the registry ask for a user name and password with each
// request.
func (r *ImageRegistry) AskBasic(username, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guard = guard{username: username, password: password}
}

// AskToken makes the registry ask for a token, which it gives for a user name
// and password, or for an identity token ("" for none).
func (r *ImageRegistry) AskToken(username, password, identity string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guard = guard{username: username, password: password, identity: identity, tokens: true}
}

// admit says whether a request carries what is asked for, and answers if not.
func (r *ImageRegistry) admit(w http.ResponseWriter, request *http.Request) bool {
	header := request.Header.Get("Authorization")
	if scheme, text, _ := strings.Cut(header, " "); scheme == "Basic" {
		plain, _ := base64.StdEncoding.DecodeString(text)
		header += " " + string(plain)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guard.seen = append(r.guard.seen, header)
	username, password, _ := request.BasicAuth()
	switch {
	case r.guard.username == "":
		return true
	case r.guard.tokens:
		if header == "Bearer "+bearer {
			return true
		}
		scheme := "http"
		if r.CA != nil {
			scheme = "https"
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+scheme+"://"+r.Host+tokenPath+`",service="test"`)
	default:
		if username == r.guard.username && password == r.guard.password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// giveToken exchanges a login for a token, by OAuth 2 and by the older way.
func (r *ImageRegistry) giveToken(w http.ResponseWriter, request *http.Request) {
	username, password, _ := request.BasicAuth()
	identity := ""
	if request.Method == http.MethodPost {
		username, password, identity = request.FormValue("username"), request.FormValue("password"), request.FormValue("refresh_token")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guard.seen = append(r.guard.seen, strings.Join([]string{username, password, identity}, " "))
	if (username != r.guard.username || password != r.guard.password) && (identity == "" || identity != r.guard.identity) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, `{"token": "`+bearer+`", "access_token": "`+bearer+`", "expires_in": 3600}`)
}
