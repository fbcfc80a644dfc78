package proxy

import (
	"io"
	"time"
)

// tunnel carries the connection after 101 Switching Protocols until either side
// has closed, with half-close both ways.
func (x *exchange) tunnel() error {
	s := x.s
	s.out = appendResponseHead(s.out[:0], &s.resp, "Upgrade", true, x.edit)
	x.stopUplink()
	if err := s.write(s.out, x.vdir.ResponseIdle); err != nil {
		x.up.close()
		return err
	}
	s.conn.SetDeadline(time.Time{})
	x.up.conn.SetDeadline(time.Time{})
	done := make(chan int64)
	go func() {
		var in int64
		defer func() { done <- in }()
		defer recovered(s.log, s.abort)
		in = x.pump(x.up.conn, &s.in)
	}()
	out := x.pump(s.conn, &x.up.in)
	s.ev.in += <-done
	s.ev.out += out
	x.up.close()
	return nil
}

// pump copies what is buffered and what follows until src ends, then closes the
// sending side of dst. If dst takes no more, both connections end.
func (x *exchange) pump(dst io.Writer, src *reader) (n int64) {
	for {
		if p := src.take(src.buffered()); len(p) > 0 {
			m, err := dst.Write(p)
			n += int64(m)
			if err != nil {
				x.s.abort()
				return n
			}
		}
		if err := src.fill(); err == io.EOF {
			break
		} else if err != nil {
			x.s.abort()
			return n
		}
	}
	if cw, ok := dst.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
	}
	return n
}
