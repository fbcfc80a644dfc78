package proxy

import (
	"math"
	"syscall"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which package syscall lacks.
const tcpUserTimeout = 0x12

// control sets what package net has no word for. Connections that are accepted take
// it over from their listener.
func (o Sockets) control(_, _ string, c syscall.RawConn) error {
	ms := min(o.UserTimeout.Milliseconds(), math.MaxInt32)
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(ms))
	}); cerr != nil {
		return cerr
	}
	return err
}
