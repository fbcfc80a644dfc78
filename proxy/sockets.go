package proxy

import (
	"net"
	"time"
)

// Sockets are the settings of TCP connections, of clients and to backends. They end
// connections whose other end has vanished without a word, such as a phone that left
// its long poll behind.
type Sockets struct {
	// KeepAlive is for how long a connection is silent before it is asked for a sign of
	// life; four questions without an answer in as long again end it. 0: 1 min.
	KeepAlive time.Duration
	// UserTimeout is how long bytes sent, and questions, may go without acknowledgement
	// (RFC 5482); on Linux only. 0: 2 min.
	UserTimeout time.Duration
}

func (o Sockets) defaults() Sockets {
	if o.KeepAlive <= 0 {
		o.KeepAlive = time.Minute
	}
	if o.UserTimeout <= 0 {
		o.UserTimeout = 2 * time.Minute
	}
	return o
}

// ListenConfig returns how to listen. Accepted connections have the settings of the
// listener, where the system passes them on.
func (o Sockets) ListenConfig() *net.ListenConfig {
	o = o.defaults()
	return &net.ListenConfig{KeepAliveConfig: o.keepAlive(), Control: o.control}
}

// Dialer returns how to connect to backends.
func (o Sockets) Dialer() *net.Dialer {
	o = o.defaults()
	return &net.Dialer{KeepAliveConfig: o.keepAlive(), Control: o.control}
}

func (o Sockets) keepAlive() net.KeepAliveConfig {
	const count = 4
	return net.KeepAliveConfig{Enable: true, Idle: o.KeepAlive, Interval: max(o.KeepAlive/count, time.Second), Count: count}
}
