package dockerconfig_test

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/dockerconfig"
	"github.com/remotegpu/remotegpu/internal/problem"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// helper puts a credential helper first on PATH.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "docker-credential-"+name), "#!/bin/sh\n"+script, 0o700)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCredentials(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("ann:pass:word"))
	helper(t, "echo", `server=$(cat)
case $server in
known:5000) echo '{"ServerURL":"known:5000","Username":"helped","Secret":"s3"}' ;;
https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"s4"}' ;;
token) echo '{"Username":"<token>","Secret":"identity"}' ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac`)
	for _, test := range []struct{ name, config, host, user, secret string }{
		{"no file", "", "known:5000", "", ""},
		{"nothing in it", `{}`, "known:5000", "", ""},
		{"auth", `{"auths": {"known:5000": {"auth": "` + encoded + `"}}}`, "known:5000", "ann", "pass:word"},
		{"auth without padding", `{"auths": {"known:5000": {"auth": "` + strings.TrimRight(encoded, "=") + `"}}}`, "known:5000", "ann", "pass:word"},
		{"auth of a URL", `{"auths": {"https://known:5000/v2/": {"auth": "` + encoded + `"}}}`, "known:5000", "ann", "pass:word"},
		{"another host", `{"auths": {"known:5001": {"auth": "` + encoded + `"}}}`, "known:5000", "", ""},
		{"user and password", `{"auths": {"known:5000": {"username": "ann", "password": "x"}}}`, "known:5000", "ann", "x"},
		{"identity token", `{"auths": {"known:5000": {"auth": "` + encoded + `", "identitytoken": "id"}}}`, "known:5000", "", "id"},
		{"hub", `{"auths": {"https://index.docker.io/v1/": {"auth": "` + encoded + `"}}}`, "registry-1.docker.io", "ann", "pass:word"},
		{"helper", `{"credHelpers": {"known:5000": "echo"}}`, "known:5000", "helped", "s3"},
		{"helper of another", `{"credHelpers": {"other": "absent"}}`, "known:5000", "", ""},
		{"helper knows nothing", `{"credHelpers": {"strange": "echo"}}`, "strange", "", ""},
		{"store", `{"credsStore": "echo"}`, "known:5000", "helped", "s3"},
		{"store for hub", `{"credsStore": "echo"}`, "registry-1.docker.io", "hub", "s4"},
		{"store with a token", `{"credsStore": "echo"}`, "token", "", "identity"},
		{"store that knows nothing", `{"credsStore": "echo", "auths": {"strange": {"auth": "` + encoded + `"}}}`, "strange", "ann", "pass:word"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := dockerconfig.Config{Path: filepath.Join(t.TempDir(), "config.json")}
			if test.config != "" {
				write(t, config.Path, test.config, 0o600)
			}
			user, secret, err := config.Credentials(t.Context(), test.host)
			if err != nil || user != test.user || secret != test.secret {
				t.Errorf("Credentials(%s) = %q, %q, %v, want %q, %q", test.host, user, secret, err, test.user, test.secret)
			}
		})
	}
}

// What cannot be used is said so, and never quoted.
func TestUnusable(t *testing.T) {
	helper(t, "broken", `echo '{"Secret": "hunter2'`)
	helper(t, "failing", `echo "the vault is shut" >&2; exit 3`)
	helper(t, "slow", `exec sleep 600`)
	for name, config := range map[string]string{
		"no JSON":             `{"auths": {"known": {"auth": "hunter2`,
		"auth not base64":     `{"auths": {"known": {"auth": "hunter2!"}}}`,
		"auth without a user": `{"auths": {"known": {"auth": "aHVudGVyMg=="}}}`,
		"absent helper":       `{"credsStore": "absent"}`,
		"helper with a path":  `{"credHelpers": {"known": "../../bin/sh"}}`,
		"broken answer":       `{"credsStore": "broken"}`,
		"failing helper":      `{"credsStore": "failing"}`,
		"slow helper":         `{"credsStore": "slow"}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := dockerconfig.Config{Path: filepath.Join(t.TempDir(), "config.json"), HelperTimeout: time.Minute}
			if name == "slow helper" {
				c.HelperTimeout = 50 * time.Millisecond
			}
			write(t, c.Path, config, 0o600)
			_, _, err := c.Credentials(t.Context(), "known")
			p, ok := errors.AsType[*problem.Problem](err)
			if !ok || p.Reason != problem.CredentialsUnusable || p.Hint == "" {
				t.Fatalf("error %v, want %s with a hint", err, problem.CredentialsUnusable)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
}

func TestCallerLeaves(t *testing.T) {
	helper(t, "slow", `exec sleep 600`)
	c := dockerconfig.Config{Path: filepath.Join(t.TempDir(), "config.json")}
	write(t, c.Path, `{"credsStore": "slow"}`, 0o600)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, _, err := c.Credentials(ctx, "known"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
