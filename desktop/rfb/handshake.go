package rfb

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	version38   = "RFB 003.008\n"
	version33   = "RFB 003.003\n"
	versionSize = len(version38)

	securityNone    = 1
	securityVNCAuth = 2
)

// Login does a client's part of the handshake up to and including ServerInit:
// version 3.8, VNC authentication with password, a shared session. The caller
// bounds it in time. A refused password is ErrAuthentication.
//
// A server that offers no VNC authentication is refused: ours always does, and
// without it a view-only session would not be one.
func Login(rw io.ReadWriter, password string) (ServerInit, error) {
	if err := clientVersion(rw); err != nil {
		return ServerInit{}, err
	}
	if err := chooseVNCAuth(rw); err != nil {
		return ServerInit{}, err
	}
	var challenge [16]byte
	if _, err := io.ReadFull(rw, challenge[:]); err != nil {
		return ServerInit{}, fmt.Errorf("read challenge: %w", err)
	}
	answer := respond(challenge, password)
	if _, err := rw.Write(answer[:]); err != nil {
		return ServerInit{}, fmt.Errorf("answer challenge: %w", err)
	}
	var result [4]byte
	if _, err := io.ReadFull(rw, result[:]); err != nil {
		return ServerInit{}, fmt.Errorf("read security result: %w", err)
	}
	if binary.BigEndian.Uint32(result[:]) != 0 {
		reason, err := readReason(rw)
		if err != nil {
			reason = "no reason given"
		}
		return ServerInit{}, fmt.Errorf("%w: %s", ErrAuthentication, reason)
	}
	if _, err := rw.Write([]byte{1}); err != nil { // ClientInit: shared
		return ServerInit{}, fmt.Errorf("write ClientInit: %w", err)
	}
	return ReadServerInit(rw)
}

// clientVersion reads the server's version and answers with ours. TigerVNC
// says 3.3 to a client that it has locked out, so that is not spoken at all.
func clientVersion(rw io.ReadWriter) error {
	version := make([]byte, versionSize)
	if _, err := io.ReadFull(rw, version); err != nil {
		return fmt.Errorf("read version: %w", err)
	}
	switch string(version) {
	case version38:
	case version33:
		var kind [4]byte
		if _, err := io.ReadFull(rw, kind[:]); err == nil && binary.BigEndian.Uint32(kind[:]) == 0 {
			if reason, err := readReason(rw); err == nil {
				return violation("the server refuses connections: %s", reason)
			}
		}
		return violation("the server speaks version 3.3, 3.8 is needed")
	default:
		return violation("the server begins with %q, not with %q", version, version38)
	}
	if _, err := io.WriteString(rw, version38); err != nil {
		return fmt.Errorf("write version: %w", err)
	}
	return nil
}

func chooseVNCAuth(rw io.ReadWriter) error {
	var count [1]byte
	if _, err := io.ReadFull(rw, count[:]); err != nil {
		return fmt.Errorf("read security types: %w", err)
	}
	if count[0] == 0 {
		reason, err := readReason(rw)
		if err != nil {
			return err
		}
		return violation("the server refuses connections: %s", reason)
	}
	kinds := make([]byte, count[0])
	if _, err := io.ReadFull(rw, kinds); err != nil {
		return fmt.Errorf("read security types: %w", err)
	}
	if !slices.Contains(kinds, securityVNCAuth) {
		return violation("the server offers security types %v, not VNC authentication (2)", kinds)
	}
	if _, err := rw.Write([]byte{securityVNCAuth}); err != nil {
		return fmt.Errorf("choose security type: %w", err)
	}
	return nil
}

func readReason(r io.Reader) (string, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return "", fmt.Errorf("read reason: %w", err)
	}
	length := binary.BigEndian.Uint32(size[:])
	if length > maxReason {
		return "", violation("reason of %d bytes, the limit is %d", length, maxReason)
	}
	reason := make([]byte, length)
	if _, err := io.ReadFull(r, reason); err != nil {
		return "", fmt.Errorf("read reason: %w", err)
	}
	return strings.ToValidUTF8(string(reason), "?"), nil
}

// Welcome does a server's part of the handshake toward a client that was let
// in by other means: version 3.8, no authentication, then init.
func Welcome(rw io.ReadWriter, init ServerInit) error {
	if _, err := io.WriteString(rw, version38); err != nil {
		return fmt.Errorf("write version: %w", err)
	}
	version := make([]byte, versionSize)
	if _, err := io.ReadFull(rw, version); err != nil {
		return fmt.Errorf("read version: %w", err)
	}
	if string(version) != version38 {
		return violation("the client answers with version %q, not %q", version, version38)
	}
	if _, err := rw.Write([]byte{1, securityNone}); err != nil {
		return fmt.Errorf("write security types: %w", err)
	}
	var choice [1]byte
	if _, err := io.ReadFull(rw, choice[:]); err != nil {
		return fmt.Errorf("read security type: %w", err)
	}
	if choice[0] != securityNone {
		return violation("the client chose security type %d, offered was 1", choice[0])
	}
	if _, err := rw.Write(make([]byte, 4)); err != nil { // SecurityResult: OK
		return fmt.Errorf("write security result: %w", err)
	}
	var shared [1]byte // whatever it asks for: sessions are shared
	if _, err := io.ReadFull(rw, shared[:]); err != nil {
		return fmt.Errorf("read ClientInit: %w", err)
	}
	if _, err := rw.Write(init.Append(nil)); err != nil {
		return fmt.Errorf("write ServerInit: %w", err)
	}
	return nil
}
