//go:build !linux

package proxy

import "syscall"

// control has nothing to set where TCP_USER_TIMEOUT is not known.
func (o Sockets) control(_, _ string, _ syscall.RawConn) error { return nil }
