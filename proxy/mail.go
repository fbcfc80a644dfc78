package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// MailProtocol is what a mail listener speaks.
type MailProtocol int

// The mail protocols: with TLS from the first byte (RFC 8314 section 3), and with
// a beginning in clear that leads to TLS by a command.
const (
	IMAPS MailProtocol = iota
	POP3S
	Submissions
	IMAP       // STARTTLS, RFC 9051 section 6.2.1
	POP3       // STLS, RFC 2595 section 4
	Submission // STARTTLS, RFC 3207
)

// mailProtocols is indexed by MailProtocol.
var mailProtocols = [...]struct {
	name     string
	startTLS bool
	dialect  *mailDialect
}{
	IMAPS:       {"imaps", false, &imapDialect},
	POP3S:       {"pop3s", false, &pop3Dialect},
	Submissions: {"submissions", false, &smtpDialect},
	IMAP:        {"imap", true, &imapDialect},
	POP3:        {"pop3", true, &pop3Dialect},
	Submission:  {"submission", true, &smtpDialect},
}

// String returns the word used for the protocol in the config and in logs.
func (p MailProtocol) String() string { return mailProtocols[p].name }

// StartTLS tells whether the protocol begins in clear.
func (p MailProtocol) StartTLS() bool { return mailProtocols[p].startTLS }

// ALPN returns what the protocol is called in ALPN. A client that offers names and
// none of these is refused: what it sends was not meant for a mail server
// (RFC 9325 section 3.7). For submission no name is registered; these two are in use.
func (p MailProtocol) ALPN() []string { return mailProtocols[p].dialect.alpn }

// Mail is what a host does with one mail protocol.
type Mail struct {
	Mode Mode // Bridge or Passthrough
	// TLS terminates connections, with the protocol's ALPN; only for Bridge.
	TLS *tls.Config
	// Site has the mail servers. Backend.TLS nil means clear text there, for Bridge;
	// Passthrough does not look at it.
	Site *Site
	// Idle is how long nothing may move in either direction; 0: what the protocol
	// asks for.
	Idle time.Duration
	// GreetingTimeout is how long a server may take for each part of what comes before
	// the client's turn; 0: 30 s. Mail servers look clients up before they greet.
	GreetingTimeout time.Duration
}

const (
	defaultGreetingTimeout = 30 * time.Second
	// serverGone is how long a client keeps its connection after the server has ended
	// its own: nothing it sends will be answered.
	serverGone = 5 * time.Second
)

var errIdle = errors.New("nothing moved in either direction")

// ServeMail serves connections of ln that speak p until Shutdown or an error. name
// is the listener's name in Table.Defaults and in logs.
func (s *Server) ServeMail(ln net.Listener, name string, p MailProtocol) error {
	return s.serve(ln, name, p.StartTLS(), func(ctx context.Context, c *clientConn) error {
		c.event.protocol = p.String()
		return s.serveMail(ctx, c, p)
	})
}

// serveMail leads a connection to its hello, and does what decideMail says.
func (s *Server) serveMail(ctx context.Context, c *clientConn, p MailProtocol) error {
	if p.StartTLS() {
		c.conn.SetDeadline(c.event.start.Add(s.opts.RequestHeadTimeout))
		if upgrade, err := clearText(c, p); !upgrade {
			return err
		}
		c.conn.SetDeadline(time.Now().Add(s.opts.HelloTimeout))
	}
	h, err := readHello(c.conn)
	if errors.Is(err, errPlainHTTP) { // which is no more to a mail port than anything else
		return err
	}
	if err != nil {
		return s.helloFailed(c, err)
	}
	c.hello = h
	c.event.sni = h.ServerName
	d := decideMail(c.table, c.listener, p, h)
	if d.host != nil {
		c.event.host = d.host.Name
	}
	if d.mail != nil {
		c.event.mode = d.mail.Mode.String()
	}
	m := &mailConn{srv: s, client: c, host: d.host, mail: d.mail, protocol: p, dialect: mailProtocols[p].dialect}
	switch d.verdict {
	case passOn:
		return m.passOn(ctx)
	case terminate:
		return m.bridge(ctx)
	}
	return c.refuse(d)
}

// mailConn is a client connection whose host is known.
type mailConn struct {
	srv      *Server
	client   *clientConn
	host     *Host
	mail     *Mail
	protocol MailProtocol
	dialect  *mailDialect
}

func (m *mailConn) idle() time.Duration {
	if m.mail.Idle > 0 {
		return m.mail.Idle
	}
	return m.dialect.idle
}

// passOn hands the connection to a server undecrypted, from the hello on.
func (m *mailConn) passOn(ctx context.Context) error {
	ev := &m.client.event
	dial := func(ctx context.Context) (*upstream, error) { return m.dial(ctx, m.toTLS) }
	backend, in, out, err := passthrough(m.client.asClient(ctx), m.client.conn, dial, m.idle(), m.client.log)
	ev.backend, ev.in, ev.out = backend, in, out
	return err
}

// bridge ends the client's TLS and goes on over the server's.
func (m *mailConn) bridge(ctx context.Context) error {
	c := m.client
	tc, err := m.srv.handshake(ctx, c, m.host, m.mail.TLS)
	if err != nil {
		return fmt.Errorf("TLS handshake: %w%s", err, m.handshakeHint(err))
	}
	up, err := m.dial(c.asClient(ctx), m.toClient)
	if err != nil {
		// A word of the protocol, so that the client tries again later instead of
		// doubting the certificate or the password.
		_ = tc.SetDeadline(time.Now().Add(lingerTime))
		_, _ = tc.Write([]byte(m.dialect.unavailable(m.host.Name)))
		_ = tc.Close()
		return fmt.Errorf("%w: %w", errNoBackend, err)
	}
	defer up.close()
	up.busy.Store(true) // for as long as it lives
	c.event.backend = up.backend.Name
	p := &passthroughPair{client: tlsEnd{tc}, backend: up.conn}
	defer p.close()
	defer p.limitIdle(m.idle())()
	stop := context.AfterFunc(ctx, p.close)
	defer stop()
	if up.backend.StartTLS && !m.protocol.StartTLS() {
		// The server's greeting came before its TLS. The client waits for one behind its own.
		tc.SetWriteDeadline(time.Now().Add(m.srv.opts.HelloTimeout))
		if _, err := tc.Write([]byte(m.dialect.greeting(m.host.Name))); err != nil {
			return fmt.Errorf("greeting to the client: %w", err)
		}
		tc.SetWriteDeadline(time.Time{})
	}
	c.event.in, c.event.out, err = p.join(ctx, c.log)
	return err
}

// handshakeHint is handshakeHint for the protocol at hand.
func (m *mailConn) handshakeHint(err error) string {
	if strings.Contains(err.Error(), "unsupported application protocols") {
		return " (the client did not mean to speak " + m.protocol.String() + ")"
	}
	return handshakeHint(err, m.client.hello)
}

// dial makes a connection to the first server that can be brought to where the
// client is. Nothing of the client's has been sent by then. What comes before its
// turn is no part of the race between servers that s.connect makes of a slow one:
// mail servers may take their time to greet.
func (m *mailConn) dial(ctx context.Context, ready func(context.Context, *upstream) error) (*upstream, error) {
	site := m.mail.Site
	var errs []error
	for order := slices.Clone(site.order("")); ; {
		u, err := m.srv.connect(ctx, site, order, false, m.srv.dial.tcp)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		stop := context.AfterFunc(ctx, u.close)
		err = ready(ctx, u)
		if stop(); err == nil {
			u.conn.SetDeadline(time.Time{})
			return u, nil
		}
		u.close()
		errs = append(errs, err)
		if order = slices.DeleteFunc(order, func(b *Backend) bool { return b == u.backend }); len(order) == 0 || ctx.Err() != nil {
			return nil, errors.Join(errs...)
		}
		u.state.unreachable(err)
	}
}

// toTLS brings a new connection to the point where TLS begins.
func (m *mailConn) toTLS(_ context.Context, u *upstream) error {
	b := u.backend
	if !b.StartTLS {
		return nil
	}
	u.conn.SetDeadline(m.greetingDeadline())
	c := newPeekedConn(u.conn)
	err := m.dialect.toTLS(c, m.host.Name)
	if err == nil && len(c.ahead) > 0 {
		// They would be taken for what the server says under TLS, and anybody on the
		// way could have put them there.
		err = errors.New("the server sent more behind its consent to TLS")
	}
	if err != nil {
		return fmt.Errorf("STARTTLS with backend %s (%s): %w", b.Name, b.Address, err)
	}
	return nil
}

// toClient brings a new connection to the point where the client's words go to it:
// under TLS, and past the greeting if the client has had one.
func (m *mailConn) toClient(ctx context.Context, u *upstream) error {
	if err := m.toTLS(ctx, u); err != nil {
		return err
	}
	b := u.backend
	if b.TLS != nil {
		tc := tls.Client(u.conn, b.TLS)
		timeout := m.mail.Site.ConnectTimeout
		if timeout <= 0 {
			timeout = defaultConnectTimeout
		}
		u.conn.SetDeadline(time.Now().Add(timeout))
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS with backend %s (%s): %w%s", b.Name, b.Address, err, certificateHint(err))
		}
		u.conn = tlsEnd{tc}
	}
	if b.StartTLS || !m.protocol.StartTLS() {
		return nil
	}
	// After STARTTLS no server greets again (RFC 9051 section 6.2.1, RFC 2595
	// section 4, RFC 3207 section 4.2), so this one's greeting ends here.
	u.conn.SetDeadline(m.greetingDeadline())
	c := newPeekedConn(u.conn)
	if err := m.dialect.greeted(c); err != nil {
		return fmt.Errorf("greeting of backend %s (%s): %w", b.Name, b.Address, err)
	}
	u.conn = c
	return nil
}

func (m *mailConn) greetingDeadline() time.Time {
	wait := m.mail.GreetingTimeout
	if wait <= 0 {
		wait = defaultGreetingTimeout
	}
	return time.Now().Add(wait)
}

// tlsEnd is a TLS connection that ends its sending side with close_notify and FIN,
// for peers that look at one of them only.
type tlsEnd struct{ *tls.Conn }

func (c tlsEnd) CloseWrite() error {
	return errors.Join(c.Conn.CloseWrite(), closeWrite(c.NetConn()))
}

// limitIdle ends the pair when nothing has moved for the given time. A server that
// has closed leaves the client a moment. What it returns ends the watch. It comes
// before anything that may close the pair from another goroutine.
func (p *passthroughPair) limitIdle(limit time.Duration) (stop func()) {
	start := time.Now()
	last := new(atomic.Int64) // since start
	moved := func() { last.Store(int64(time.Since(start))) }
	p.client = movingConn{p.client, moved, nil}
	p.backend = movingConn{p.backend, moved, func() { p.drain.start(serverGone, p.close) }}
	var timer *time.Timer
	armed := make(chan struct{})
	timer = time.AfterFunc(limit, func() {
		<-armed
		if left := limit - (time.Since(start) - time.Duration(last.Load())); left > 0 {
			timer.Reset(left)
			return
		}
		p.fail(fmt.Errorf("%w for %v", errIdle, limit))
		p.close()
	})
	close(armed)
	return func() { timer.Stop() }
}

// movingConn tells when bytes move, and when the peer has ended its side.
type movingConn struct {
	net.Conn
	moved func()
	ended func()
}

func (c movingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.moved()
	}
	if err != nil && c.ended != nil {
		c.ended()
	}
	return n, err
}

func (c movingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if n > 0 {
		c.moved()
	}
	return n, err
}

func (c movingConn) CloseWrite() error { return closeWrite(c.Conn) }
