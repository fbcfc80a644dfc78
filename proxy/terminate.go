package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// terminateTLS finishes the handshake that the peeked hello began, with the
// host's certificate, and runs the relay loop over it.
func (s *Server) terminateTLS(ctx context.Context, c *clientConn, host *Host) error {
	conf := host.TLS
	if c.table.protects {
		conf, c.shown = present(host)
	}
	tc, err := s.handshake(ctx, c, host, conf)
	if err != nil {
		return fmt.Errorf("TLS handshake: %w%s", err, handshakeHint(err, c.hello))
	}
	err = s.relay(ctx, c, tc, host)
	// An orderly end says so (close_notify); a broken one has closed the socket already.
	tc.SetWriteDeadline(time.Now().Add(lingerTime))
	tc.Close()
	return err
}

// validateTLS finishes the handshake of a validation. What was to be seen is in the
// certificate; the connection carries nothing (RFC 8737 section 3).
func (s *Server) validateTLS(ctx context.Context, c *clientConn, host *Host) error {
	// The issuer is no client of the host, and is not asked for a certificate of its own.
	tc, err := s.handshake(ctx, c, &Host{}, host.Validation)
	if err != nil {
		return fmt.Errorf("ACME validation: %w", err)
	}
	tc.SetWriteDeadline(time.Now().Add(lingerTime))
	tc.Close()
	return nil
}

// handshake finishes the handshake that the peeked hello began.
func (s *Server) handshake(ctx context.Context, c *clientConn, host *Host, conf *tls.Config) (*tls.Conn, error) {
	if host.ClientCAs != nil {
		conf = asking(conf, host.ClientCAs)
	}
	tc := tls.Server(c.conn, conf)
	c.conn.SetDeadline(time.Now().Add(s.opts.HelloTimeout))
	if err := tc.HandshakeContext(ctx); err != nil {
		if clientCertificateHint(err) != "" && c.conn.CloseWrite() == nil {
			// Behind its certificate a client of TLS 1.3 has sent its first request: left
			// unread, that would turn the close into a reset, which takes the alert with it.
			discard(c.conn)
		}
		c.conn.Close()
		return nil, err
	}
	c.conn.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	c.event.tls, c.event.resumed = state.Version, state.DidResume
	if len(state.PeerCertificates) > 0 {
		c.event.clientCertificate = fingerprint(state.PeerCertificates[0])
	}
	return tc, nil
}

// handshakeHint names what stands behind the handshake failures that puzzle
// administrators.
func handshakeHint(err error, h hello) string {
	var ne net.Error
	if hint := clientCertificateHint(err); hint != "" {
		return hint
	}
	switch {
	case strings.HasSuffix(h.RawServerName, "."):
		return " (the client sent the name with a trailing dot, which TLS does not allow: RFC 6066 section 3)"
	case h.validates():
		return " (an ACME TLS-ALPN-01 validation for a name without such a certificate)"
	case strings.Contains(err.Error(), "unsupported application protocols") && slices.Contains(h.ALPN, "h2"):
		return " (only HTTP/1.1 is spoken here: NTLM and Negotiate do not work over HTTP/2)"
	case strings.Contains(err.Error(), "client offered only unsupported versions"):
		return " (the client has only versions older than the host's TLS profile takes: see hosts.HOST.tls.profile)"
	case strings.Contains(err.Error(), "no cipher suite supported by both"):
		return " (the client has only suites that the host's TLS profile does not take, or that do not go with the key of the certificate: " +
			"Windows 7 to 8.1 needs the profile old or an ECDSA key, Windows XP the profile old and an RSA key)"
	case strings.Contains(err.Error(), "unknown certificate"), strings.Contains(err.Error(), "bad certificate"):
		return " (the client does not trust the certificate)"
	case strings.Contains(err.Error(), "expired certificate"):
		return " (the client says that the certificate has expired)"
	case strings.Contains(err.Error(), "bad record MAC"):
		// OpenSSL sends the alert of TLS 1.3 in clear when it gives up on a certificate.
		return " (a client with OpenSSL that does not trust the certificate ends like this)"
	case errors.As(err, &ne) && ne.Timeout():
		return " (the client did not go on)"
	}
	return ""
}

// multiplexed tells whether the connection is declared as one of several users:
// that of a multiplexer, or of one that a PROXY header names as the client of a
// load balancer in front of us.
func multiplexed(c *clientConn) bool {
	m := c.table.Multiplexers
	return len(m) > 0 && (contains(m, c.remote.Addr()) || c.event.peer.IsValid() && contains(m, c.event.peer))
}

// relay runs the relay loop on a terminated or a plain connection.
func (s *Server) relay(ctx context.Context, c *clientConn, conn net.Conn, host *Host) error {
	client := c.remote.Addr()
	se := &session{
		srv: s, conn: conn, raw: c.conn, log: c.log, shown: c.shown,
		origin: origin{
			table: c.table, secure: host != nil, host: host, listener: c.listener,
			internal:    contains(c.table.InternalNetworks, client),
			nameless:    host != nil && c.hello.nameless(),
			multiplexed: multiplexed(c),
		},
		fwd: forwarding{client: client, trusted: contains(c.table.TrustedProxies, client)},
	}
	if tc, ok := conn.(*tls.Conn); ok && host.ClientCertificateHeaders {
		se.fwd.certificate = clientCertificateFields(tc.ConnectionState())
	}
	se.in.conn = conn
	se.ev.log, se.ev.remote, se.ev.debug = c.log, c.remote, s.debug
	c.session.Store(se)
	err := se.serve(ctx)
	c.event.requests = se.requests
	return err
}
