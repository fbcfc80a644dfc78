package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// clientConn is one accepted connection.
type clientConn struct {
	conn     *peekedConn
	remote   netip.AddrPort // the client, as the PROXY header tells it if there was one
	local    netip.AddrPort // where it connected to, likewise
	listener string
	greets   bool // we speak first
	table    *Table
	log      zerolog.Logger
	hello    hello
	shown    *presented // where Extended Protection matters
	event    connEvent
	session  atomic.Pointer[session]
}

// abort ends the connection from outside.
func (c *clientConn) abort() {
	if se := c.session.Load(); se != nil {
		se.abort()
		return
	}
	c.conn.Close()
}

// abortIdle ends the connection if it is between requests.
func (c *clientConn) abortIdle() {
	if se := c.session.Load(); se != nil && se.idle.Load() {
		se.abort()
	}
}

// acceptLoop accepts until the listener is closed. Running out of descriptors is
// waited out, not fatal.
func (s *Server) acceptLoop(ln net.Listener, name string, greets bool, handle func(context.Context, *clientConn) error) error {
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		if err != nil {
			if s.closing.Load() || errors.Is(err, net.ErrClosed) {
				return nil
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Error().Err(err).Str("listener", name).Dur("retry_ms", pause).Msg("accept failed")
			select {
			case <-time.After(pause):
				continue
			case <-s.ctx.Done():
				return nil
			}
		}
		pause = 0
		c := &clientConn{
			conn: newPeekedConn(conn), listener: name, greets: greets, table: s.table.Load(), remote: addrOf(conn.RemoteAddr()), local: addrOf(conn.LocalAddr()),
		}
		if !s.track(c) {
			conn.Close()
			continue
		}
		go func() {
			defer s.untrack(c)
			s.serveConn(c, handle)
		}()
	}
}

// serveConn leads one connection from accept to its end and logs it.
func (s *Server) serveConn(c *clientConn, handle func(context.Context, *clientConn) error) {
	c.event.start = time.Now()
	id := s.connIDs.Add(1)
	c.log = s.log.With().Uint64("conn", id).Logger()
	defer c.conn.Close()
	c.conn.SetDeadline(c.event.start.Add(s.opts.HelloTimeout))
	err := func() (err error) {
		defer recovered(c.log, func() {
			c.abort()
			err = errFault
		})
		if err := s.takeProxyHeader(c); err != nil {
			return err
		}
		return handle(s.ctx, c)
	}()
	c.event.write(c, err)
}

var errFault = errors.New("a fault in the program")

// recovered is deferred where a fault of ours must end the connection it shows on,
// and not the others.
func recovered(log zerolog.Logger, abort func()) {
	if p := recover(); p != nil {
		log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("connection ended by a fault in the program")
		abort()
	}
}

// takeProxyHeader takes the PROXY header that a trusted peer may have put in
// front. From anybody else it is not looked for, and so refused as what
// it then is: neither TLS nor HTTP.
func (s *Server) takeProxyHeader(c *clientConn) error {
	if !contains(s.opts.ProxyProtocolFrom, c.remote.Addr()) {
		return nil
	}
	if c.greets {
		// A client without a header waits for our greeting. A proxy sends its header
		// with its first packet.
		c.conn.SetReadDeadline(c.event.start.Add(s.opts.HelloTimeout / 10))
		_, err := c.conn.peek(1)
		c.conn.SetReadDeadline(c.event.start.Add(s.opts.HelloTimeout))
		if isTimeout(err) {
			return nil
		}
	}
	src, dst, err := readProxyHeader(c.conn)
	if err == io.EOF {
		return nil // a port check; the hello says the same
	}
	if err != nil {
		return fmt.Errorf("from trusted peer %s: %w", c.remote.Addr(), err)
	}
	if src.IsValid() {
		c.event.peer = c.remote.Addr()
		c.remote, c.local = src, dst
	}
	return nil
}

// serveTLS peeks at the hello and does what decide says.
func (s *Server) serveTLS(ctx context.Context, c *clientConn) error {
	h, err := readHello(c.conn)
	if err != nil {
		return s.helloFailed(c, err)
	}
	c.hello = h
	c.event.sni = h.ServerName
	d := decide(c.table, c.listener, h)
	if d.host != nil {
		c.event.mode = d.host.Mode.String()
	}
	switch d.verdict {
	case passOn:
		var led *leading
		defer func() { led.done() }()
		backend, in, out, err := passthrough(c.asClient(ctx), c.conn, func(ctx context.Context) (u *upstream, err error) {
			u, led, err = s.dialFor(ctx, d.host.Site, d.host.passes(), d.host.Name, c.remote.Addr(), s.dial.tcp)
			return u, err
		}, 0, c.log)
		c.event.backend, c.event.in, c.event.out = backend, in, out
		return err
	case terminate:
		return s.terminateTLS(ctx, c, d.host)
	case validate:
		return s.validateTLS(ctx, c, d.host)
	}
	return c.refuse(d)
}

// refuse turns a connection away as decided.
func (c *clientConn) refuse(d decision) error {
	c.event.refused = true
	switch d.refusal {
	case RefuseAlert:
		refuseTLS(c.conn, alertUnrecognizedName)
	case RefuseReset:
		reset(c.conn)
	}
	return errors.New(d.why)
}

// servePlain serves plain HTTP: the redirect site.
func (s *Server) servePlain(ctx context.Context, c *clientConn) error {
	c.event.mode = modeHTTP
	return s.relay(ctx, c, c.conn, nil)
}

// helloFailed ends a connection that did not begin with a good ClientHello.
func (s *Server) helloFailed(c *clientConn, err error) error {
	var he *helloError
	switch {
	case err == io.EOF:
		return nil // a port check
	case errors.As(err, &he):
		refuseTLS(c.conn, he.alert)
	case errors.Is(err, errPlainHTTP):
		c.conn.SetWriteDeadline(time.Now().Add(lingerTime))
		c.conn.Write(appendLocal(nil, http.StatusBadRequest, s.date(), nil,
			[]byte("This port speaks HTTPS. Ask again with https://\n"), "close", false))
		if c.conn.CloseWrite() == nil {
			discard(c.conn)
		}
	}
	return err
}

// reset closes with RST instead of FIN.
func reset(c *peekedConn) {
	if l, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}
