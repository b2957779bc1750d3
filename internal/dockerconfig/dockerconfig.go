// Package dockerconfig finds what registries ask for where "docker login" and
// its like keep it: in a config.json (auths), or with a credential helper that
// one names (credHelpers, credsStore). It only reads, and reads anew each time.
package dockerconfig

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// DefaultHelperTimeout is how long a credential helper may take.
const DefaultHelperTimeout = 30 * time.Second

// Docker Hub is kept under another name than those it is asked by.
const hubKey = "https://index.docker.io/v1/"

var hubHosts = []string{"docker.io", "index.docker.io", "registry-1.docker.io"}

// Config is a docker configuration.
type Config struct {
	// Path of config.json. A file that is not there has nothing.
	Path string
	// HelperTimeout is DefaultHelperTimeout when it is 0.
	HelperTimeout time.Duration
}

type file struct {
	Auths       map[string]auth   `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

type auth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// Credentials returns user name and password for a registry's host (and port),
// or an identity token as the secret of an empty name. All are empty when there
// are none. REGISTRY_CREDENTIALS_UNUSABLE when the file cannot be read or a
// helper fails.
func (c Config) Credentials(ctx context.Context, host string) (username, secret string, err error) {
	text, err := os.ReadFile(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	} else if err != nil {
		return "", "", c.unusable("%s cannot be read", c.Path).WithCause(err)
	}
	var config file
	if err := json.Unmarshal(text, &config); err != nil {
		return "", "", c.unusable("%s is not a docker configuration", c.Path).WithCause(err)
	}
	names := []string{host}
	server := host
	if slices.Contains(hubHosts, host) {
		names, server = append([]string{host}, hubHosts...), hubKey
	}
	for key, helper := range config.CredHelpers {
		if slices.Contains(names, hostOf(key)) {
			return c.ask(ctx, helper, key)
		}
	}
	if config.CredsStore != "" {
		username, secret, err = c.ask(ctx, config.CredsStore, server)
		if secret != "" || err != nil {
			return username, secret, err
		}
	}
	for key, entry := range config.Auths {
		if slices.Contains(names, hostOf(key)) {
			return c.decode(key, entry)
		}
	}
	return "", "", nil
}

func (c Config) unusable(format string, args ...any) *problem.Problem {
	return problem.New(problem.CredentialsUnusable, format, args...).WithHint("mend the node's docker configuration (%s)", c.Path)
}

// hostOf is the host of a key, which may be a URL of old.
func hostOf(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, _, _ := strings.Cut(key, "/")
	return host
}

// decode reads an entry of auths.
func (c Config) decode(key string, entry auth) (username, secret string, err error) {
	if entry.IdentityToken != "" {
		return "", entry.IdentityToken, nil
	}
	if entry.Auth == "" {
		return entry.Username, entry.Password, nil
	}
	// Some write it without padding.
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(entry.Auth, "="))
	username, secret, found := strings.Cut(string(text), ":")
	if err != nil || !found {
		return "", "", c.unusable("auths[%q] of %s is not base64 of user:password", key, c.Path)
	}
	return username, strings.TrimRight(secret, "\x00"), nil
}

// Suffixes of docker-credential-… that name a program on PATH and nothing else.
var helperName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// What helpers say, on standard output, when they know nothing of a server;
// there is no other sign of it (docker-credential-helpers,
// credentials/error.go).
var unknownServer = []byte("credentials not found")

// ask runs a credential helper.
func (c Config) ask(ctx context.Context, helper, server string) (username, secret string, err error) {
	if !helperName.MatchString(helper) {
		return "", "", c.unusable("%q in %s is no name of a credential helper", helper, c.Path)
	}
	timeout := c.HelperTimeout
	if timeout == 0 {
		timeout = DefaultHelperTimeout
	}
	program := "docker-credential-" + helper
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := hostexec.Run(asking, strings.NewReader(server), program, "get")
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return "", "", fmt.Errorf("ask %s: %w", program, context.Cause(ctx))
	case asking.Err() != nil:
		return "", "", c.unusable("%s did not answer within %v", program, timeout).WithCause(err)
	case bytes.Contains(out, unknownServer):
		return "", "", nil
	default:
		return "", "", c.unusable("%s fails", program).WithCause(err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil || answer.Secret == "" {
		// Not the cause: it may quote a secret.
		return "", "", c.unusable("%s does not answer as a credential helper does", program)
	}
	if answer.Username == "<token>" { // the mark of an identity token
		answer.Username = ""
	}
	return answer.Username, answer.Secret, nil
}
