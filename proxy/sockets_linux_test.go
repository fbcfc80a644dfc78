package proxy

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// option reads a socket option of TCP.
func option(t *testing.T, c net.Conn, level, name int) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if cerr := raw.Control(func(fd uintptr) { v, err = syscall.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return v
}

// connections of clients and to servers are asked for signs of life, and
// bytes that nobody acknowledges end them.
func TestSocketsHaveTheirOptions(t *testing.T) {
	for _, tc := range []struct {
		o              Sockets
		idle, interval int
		timeout        int
	}{
		{Sockets{}, 60, 15, 120_000},
		{Sockets{KeepAlive: 8 * time.Second, UserTimeout: 9 * time.Second}, 8, 2, 9000},
	} {
		ln, err := tc.o.ListenConfig().Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		dialled, err := tc.o.Dialer().DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer dialled.Close()
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		for name, c := range map[string]net.Conn{"accepted": accepted, "dialled": dialled} {
			if option(t, c, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) == 0 {
				t.Errorf("%s: no keep-alive", name)
			}
			if v := option(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE); v != tc.idle {
				t.Errorf("%s: idle %d s, want %d", name, v, tc.idle)
			}
			if v := option(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL); v != tc.interval {
				t.Errorf("%s: interval %d s, want %d", name, v, tc.interval)
			}
			if v := option(t, c, syscall.IPPROTO_TCP, tcpUserTimeout); v != tc.timeout {
				t.Errorf("%s: user timeout %d ms, want %d", name, v, tc.timeout)
			}
		}
	}
}
