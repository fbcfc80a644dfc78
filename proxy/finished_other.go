//go:build !linux

package proxy

import "net"

// finished is not told here: that a client left which had sent much ahead of its turn
// is noticed when it is answered.
func finished(net.Conn) bool { return false }
