package rfb

import (
	"crypto/des" //nolint:gosec // the protocol's only cipher (RFC 6143, 7.2.2); the socket is private
	"fmt"
	"math/bits"
	"strings"
)

// PasswordSize is how much of a password VNC authentication uses, in bytes.
const PasswordSize = 8

// fileKey is the fixed key of VNC password files, as every VNC server has it.
func fileKey() [8]byte { return [8]byte{23, 82, 107, 6, 35, 78, 88, 7} }

// Passwords are the two passwords of a VNC server, of at most PasswordSize
// bytes each.
type Passwords struct {
	Full     string
	ViewOnly string
}

// Encode returns the 16 bytes of a VNC password file: both passwords,
// obfuscated with a key that everybody knows. Its mode is what protects it.
func (p Passwords) Encode() ([]byte, error) {
	file := make([]byte, 0, 2*PasswordSize)
	for _, password := range []string{p.Full, p.ViewOnly} {
		if password == "" || len(password) > PasswordSize || strings.ContainsRune(password, 0) {
			return nil, fmt.Errorf("encode VNC password: it has %d bytes or a NUL, 1 to %d are possible", len(password), PasswordSize)
		}
		var plain [8]byte
		copy(plain[:], password)
		block := encrypt(fileKey(), plain)
		file = append(file, block[:]...)
	}
	return file, nil
}

// DecodePasswords reads a VNC password file of two passwords.
func DecodePasswords(file []byte) (Passwords, error) {
	if len(file) != 2*PasswordSize {
		return Passwords{}, fmt.Errorf("decode VNC password file: %d bytes, not %d", len(file), 2*PasswordSize)
	}
	full := decrypt(fileKey(), [8]byte(file[:8]))
	viewOnly := decrypt(fileKey(), [8]byte(file[8:]))
	return Passwords{
		Full:     strings.TrimRight(string(full[:]), "\x00"),
		ViewOnly: strings.TrimRight(string(viewOnly[:]), "\x00"),
	}, nil
}

// respond answers a challenge: each half encrypted with the password.
func respond(challenge [16]byte, password string) [16]byte {
	var key [8]byte
	copy(key[:], password)
	first := encrypt(key, [8]byte(challenge[:8]))
	second := encrypt(key, [8]byte(challenge[8:]))
	var answer [16]byte
	copy(answer[:8], first[:])
	copy(answer[8:], second[:])
	return answer
}

// vncKey reverses the bits of each byte, as VNC's DES takes its keys.
func vncKey(key [8]byte) []byte {
	reversed := make([]byte, len(key))
	for i, b := range key {
		reversed[i] = bits.Reverse8(b)
	}
	return reversed
}

func encrypt(key, block [8]byte) (out [8]byte) {
	cipher, err := des.NewCipher(vncKey(key)) //nolint:gosec // see the import
	if err != nil {
		panic(err) // a key of 8 bytes is never refused
	}
	cipher.Encrypt(out[:], block[:])
	return out
}

func decrypt(key, block [8]byte) (out [8]byte) {
	cipher, err := des.NewCipher(vncKey(key)) //nolint:gosec // see the import
	if err != nil {
		panic(err) // a key of 8 bytes is never refused
	}
	cipher.Decrypt(out[:], block[:])
	return out
}
