package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// serveTCP accepts connections, of each client and of all together up to a
// bound: one more is closed at once, and so are those of who may not ask.
func (l *Listener) serveTCP(ctx context.Context, work *sync.WaitGroup) error {
	for {
		conn, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return nil //nolint:nilerr // it is closed when ctx ends
		}
		if err != nil {
			// Such as no descriptor left: wait for one.
			l.server.cfg.Log.DebugContext(ctx, "a DNS connection was not accepted", "error", err)
			tick.Pause(ctx, 10*time.Millisecond)
			continue
		}
		from := asker{addressOf(conn.RemoteAddr()).Addr(), l.ours}
		// Who would be answered nothing takes no place.
		welcome := l.server.snapshot.Load().client(from) != nil || l.server.allowed(from)
		if !welcome || !l.connections.enter(network(from.address)) {
			_ = conn.Close() // it is told by that
			continue
		}
		work.Go(func() {
			defer l.connections.leave(network(from.address))
			c := &connection{server: l.server, from: from, conn: conn, writer: bufio.NewWriterSize(conn, connectionBufferSize)}
			c.serve(ctx)
		})
	}
}

// connection is one client's. Questions may come without waiting for answers
// (RFC 7766 section 6.2.1.1), any number of them.
type connection struct {
	server  *Server
	from    asker
	conn    *net.TCPConn
	pending sync.WaitGroup

	mu     sync.Mutex
	writer *bufio.Writer
	broken bool
}

func (c *connection) serve(ctx context.Context) {
	defer func() { _ = c.conn.Close() }() // all that could be sent was
	defer context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })()
	reader := bufio.NewReaderSize(c.conn, connectionBufferSize)
	message, out := make([]byte, maxQuestion), make([]byte, 0, 2*maxUDP)
	room := make(chan struct{}, maxPendingOfOneConn)
	var q query
	for ctx.Err() == nil {
		read, ok := c.read(ctx, reader, message)
		if !ok {
			break
		}
		answer, later := c.server.handle(&q, read, out[:0], c.from, true)
		if later != nil {
			c.flush()
			room <- struct{}{} // the sender waits, as on any full connection
			c.pending.Add(1)
			c.server.forward(ctx, later, func() { <-room; c.pending.Done() }, func(answer []byte) {
				c.write(answer)
				c.flush()
			})
			continue
		}
		if len(answer) == 0 || !c.write(answer) {
			break // who sends what has no answer is no client
		}
		out = answer
	}
	c.pending.Wait()
	c.flush()
}

// read reads one message. Before it waits for more, the answers go out.
func (c *connection) read(ctx context.Context, reader *bufio.Reader, message []byte) ([]byte, bool) {
	var prefix [2]byte
	if !c.await(ctx, reader, len(prefix)) {
		return nil, false
	}
	if _, err := io.ReadFull(reader, prefix[:]); err != nil {
		return nil, false
	}
	size := int(binary.BigEndian.Uint16(prefix[:]))
	if size < headerSize || size > len(message) || !c.await(ctx, reader, size) {
		return nil, false
	}
	_, err := io.ReadFull(reader, message[:size])
	return message[:size], err == nil
}

// await prepares for a read that may have to wait.
func (c *connection) await(ctx context.Context, reader *bufio.Reader, size int) bool {
	if reader.Buffered() >= size {
		return true
	}
	return c.flush() && c.conn.SetReadDeadline(time.Now().Add(idleTimeout)) == nil && ctx.Err() == nil
}

// write puts an answer into the buffer. A client that takes nothing is given
// up.
func (c *connection) write(answer []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return false
	}
	var prefix [2]byte
	binary.BigEndian.PutUint16(prefix[:], uint16(len(answer)))
	if c.writer.Available() < len(prefix)+len(answer) {
		c.broken = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil
	}
	if !c.broken {
		_, first := c.writer.Write(prefix[:])
		_, second := c.writer.Write(answer)
		c.broken = errors.Join(first, second) != nil
	}
	return !c.broken
}

// flush sends what is in the buffer.
func (c *connection) flush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken || c.writer.Buffered() == 0 {
		return !c.broken
	}
	if c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil || c.writer.Flush() != nil {
		c.broken = true
	}
	return !c.broken
}
