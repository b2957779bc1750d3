package gateway

import (
	"net"
	"sync"
	"sync/atomic"
)

// limitedListener accepts at most limit connections at a time and closes those
// beyond at once. Who only opens connections costs a descriptor and some memory
// each until a timeout: he may keep others from their desktops, not the daemon
// from its work.
type limitedListener struct {
	net.Listener
	limit  int64
	open   atomic.Int64
	beyond func(net.Addr) // told about each connection that is closed
}

// Accept returns the next connection within the limit.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &limitedConn{Conn: conn, listener: l}, nil
		}
		l.open.Add(-1)
		l.beyond(conn.RemoteAddr())
		_ = conn.Close() // nothing was sent on it
	}
}

type limitedConn struct {
	net.Conn
	listener *limitedListener
	once     sync.Once
}

// Close closes the connection and gives its place back.
func (c *limitedConn) Close() error {
	c.once.Do(func() { c.listener.open.Add(-1) })
	return c.Conn.Close()
}
