package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

// Ask connects from the client to a port of the host, reads the banner, sends
// a line and returns the line that is answered: "" when the connection ends
// instead.
func (h *Host) Ask(ctx context.Context, port int, banner, line string) (string, error) {
	conn, err := h.dial(ctx, port)
	if err != nil {
		return "", fmt.Errorf("ask port %d: %w", port, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	reader := bufio.NewReader(conn)
	got := make([]byte, len(banner))
	if _, err := io.ReadFull(reader, got); err != nil {
		return "", fmt.Errorf("ask port %d: read banner: %w", port, err)
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", fmt.Errorf("ask port %d: %w", port, err)
	}
	answer, err := reader.ReadString('\n')
	if ctx.Err() != nil {
		return "", fmt.Errorf("ask port %d: %w", port, context.Cause(ctx))
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return "", fmt.Errorf("ask port %d: read answer: %w", port, err)
	}
	return answer, nil
}

// dial connects from the client's namespace; a socket stays in the one it was
// made in.
func (h *Host) dial(ctx context.Context, port int) (conn net.Conn, err error) {
	err = h.client.Do(func() error {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		conn, err = dialer.DialContext(ctx, "tcp4", net.JoinHostPort(HostAddress, strconv.Itoa(port)))
		return err
	})
	return conn, err
}
