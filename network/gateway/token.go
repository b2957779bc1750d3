package gateway

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Access is what a session may do.
type Access byte

// The accesses.
const (
	Control Access = 1 // see and act
	View    Access = 2 // see only
)

const (
	keyFile      = "gateway-token.keys"
	keySize      = 32
	tokenVersion = 1
	nonceSize    = 12
	tokenHead    = 1 + 1 + 8 + nonceSize // version, access, expiry, nonce
	tokenMAC     = sha256.Size
	maxToken     = 512
)

var (
	errTokenExpired = errors.New("the link has expired")
	errTokenRefused = errors.New("the link is not valid for this desktop")
)

// claims are what a token says.
type claims struct {
	envID   string
	access  Access
	expires time.Time
}

// keyring holds the keys of tokens: the first signs, each verifies. A new key
// goes in front of the others, and an old one out when the longest token that
// it signed has expired.
type keyring [][]byte

// loadKeys reads the keys, one in hexadecimal per line, or makes the first.
func loadKeys(dir string) (keyring, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, keySize)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make gateway token key: %w", err)
		}
		if err := atomicfile.Write(path, []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("keep gateway token key: %w", err)
		}
		return keyring{key}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read gateway token keys: %w", err)
	}
	var keys keyring
	for line := range strings.FieldsSeq(string(text)) {
		key, err := hex.DecodeString(line)
		if err != nil || len(key) < keySize {
			return nil, problem.New(problem.ConfigInvalid, "gateway token keys %s: a line is no hexadecimal key of %d bytes", path, keySize).
				WithHint("delete the file: a new key is made, and links given out before stop working")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, problem.New(problem.ConfigInvalid, "gateway token keys %s: there is none", path).
			WithHint("delete the file: a new key is made, and links given out before stop working")
	}
	return keys, nil
}

// sign makes a token: base64url of version, access, expiry (Unix seconds), a
// nonce, the environment's id and an HMAC-SHA256 of all that. Its characters
// are those that Sec-WebSocket-Protocol allows.
func (k keyring) sign(c claims) string {
	b := []byte{tokenVersion, byte(c.access)}
	b = binary.BigEndian.AppendUint64(b, uint64(c.expires.Unix()))
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // never fails: it ends the program instead
	b = append(append(b, nonce...), c.envID...)
	return base64.RawURLEncoding.EncodeToString(append(b, mac(k[0], b)...))
}

// mac has a context of its own, so that a key used elsewhere signs nothing
// that passes here.
func mac(key, payload []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("remotegpu desktop session\x00"))
	h.Write(payload)
	return h.Sum(nil)
}

// verify checks a token for an environment.
func (k keyring) verify(token, envID string, now time.Time) (claims, error) {
	if len(token) > maxToken {
		return claims{}, errTokenRefused
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= tokenHead+tokenMAC || b[0] != tokenVersion {
		return claims{}, errTokenRefused
	}
	payload, sum := b[:len(b)-tokenMAC], b[len(b)-tokenMAC:]
	known := false
	for _, key := range k {
		known = hmac.Equal(sum, mac(key, payload)) || known
	}
	if !known || !bytes.Equal(payload[tokenHead:], []byte(envID)) {
		return claims{}, errTokenRefused
	}
	c := claims{
		envID: envID, access: Access(payload[1]),
		expires: time.Unix(int64(binary.BigEndian.Uint64(payload[2:])), 0),
	}
	if c.access != Control && c.access != View {
		return claims{}, errTokenRefused
	}
	if !now.Before(c.expires) {
		return claims{}, errTokenExpired
	}
	return c, nil
}
