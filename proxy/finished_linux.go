package proxy

import (
	"encoding/binary"
	"net"
	"syscall"
)

// finished tells whether the peer has closed or reset the connection, or its sending
// side, also if bytes are still to be read before that.
func finished(c net.Conn) (yes bool) {
	if p, ok := c.(*peekedConn); ok {
		c = p.Conn
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	const closed, closeWait = 7, 8 // TCP_CLOSE and TCP_CLOSE_WAIT of Linux
	_ = raw.Control(func(fd uintptr) {
		// The state is the first byte of struct tcp_info.
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
		var state [4]byte
		binary.NativeEndian.PutUint32(state[:], uint32(info))
		yes = err == nil && (state[0] == closed || state[0] == closeWait)
	})
	return yes
}
