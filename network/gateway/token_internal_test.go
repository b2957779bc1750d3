package gateway

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTokens(t *testing.T) {
	keys, err := loadKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	want := claims{envID: "env", access: View, expires: now.Add(time.Minute)}
	token := keys.sign(want)
	if !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(token) {
		t.Errorf("%s does not fit a subprotocol", token)
	}
	if got, err := keys.verify(token, "env", now); err != nil || got != want {
		t.Errorf("verified %+v, %v", got, err)
	}
	if keys.sign(want) == token {
		t.Error("two tokens are the same")
	}
	if _, err := keys.verify(token, "env", now.Add(time.Minute)); !errors.Is(err, errTokenExpired) {
		t.Errorf("after its time: %v", err)
	}
	stranger, err := loadKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty": "", "no base64": "a+b", "short": token[:20], "longer": token + "AAAA", "endless": strings.Repeat("A", 1<<20),
		"foreign": stranger.sign(want), "other environment": keys.sign(claims{envID: "en", access: Control, expires: want.expires}),
		"no access": keys.sign(claims{envID: "env", access: 7, expires: want.expires}),
	} {
		if _, err := keys.verify(bad, "env", now); !errors.Is(err, errTokenRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw { // no byte may change: neither access nor expiry
		changed := append([]byte{}, raw...)
		changed[i] ^= 1
		if _, err := keys.verify(base64.RawURLEncoding.EncodeToString(changed), "env", now); !errors.Is(err, errTokenRefused) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
}

func TestKeysAreKeptAndRotated(t *testing.T) {
	dir := t.TempDir()
	first, err := loadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	now := time.Unix(1_800_000_000, 0)
	want := claims{envID: "env", access: Control, expires: now.Add(time.Minute)}
	token := first.sign(want)
	again, err := loadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.verify(token, "env", now); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	next := strings.Repeat("ab", keySize)
	if err := os.WriteFile(path, []byte(next+"\n"+hex.EncodeToString(first[0])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rotated, err := loadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rotated.verify(token, "env", now); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if _, err := first.verify(rotated.sign(want), "env", now); err == nil {
		t.Error("the old key still signs")
	}
	for _, bad := range []string{"", "zz", "abcd"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadKeys(dir); err == nil {
			t.Errorf("keys %q were taken", bad)
		}
	}
}

func FuzzVerify(f *testing.F) {
	key := keyring{make([]byte, keySize)}
	now := time.Unix(1_800_000_000, 0)
	want := claims{envID: "env", access: View, expires: now.Add(time.Hour)}
	good := key.sign(want)
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, token string) {
		if got, err := key.verify(token, "env", now); err == nil && got != want {
			t.Errorf("%q passes as %+v", token, got)
		}
	})
}
