//go:build linux || darwin || freebsd

package proxy

import (
	"net"
	"syscall"
)

// readable tells whether a read from the socket would return at once: with bytes,
// with the end of the stream, or with an error.
func readable(c net.Conn) (yes bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	// An error means that the socket is closed; the next write to it says so.
	_ = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		yes = err != syscall.EAGAIN && err != syscall.EINTR
	})
	return yes
}
