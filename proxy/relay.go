package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/throttle"
)

// session is the HTTP life of one client connection: one goroutine reads a head,
// routes it, has it answered and comes back for the next. It owns the client
// connection and the backend connections made for it.
type session struct {
	srv    *Server
	conn   net.Conn // *tls.Conn, or the socket on plain HTTP
	raw    net.Conn // the socket below TLS
	in     reader
	out    []byte // the head (and small body) being put together for one write
	origin origin
	fwd    forwarding
	log    zerolog.Logger
	shown  *presented // the certificate that the client saw, where Extended Protection matters
	ups    upstreams
	head   requestHead
	resp   responseHead

	own struct { // see ownNames
		sent, asked string
		names       *HostMap
	}

	requests int
	identity bool // the connection belongs to a user (NTLM, Negotiate)
	idle     atomic.Bool
	writeBy  time.Time // the write deadline in force
	// What the request at hand logs in with, and whether it may (logins.go).
	login     login
	attempt   *throttle.Attempt // nil: nothing is counted
	proven    uint64            // hash of the Basic credentials that were right last; 0: none
	continued bool              // 100 Continue was sent before a backend could say so
	// lingerDue: the client may still be sending when the connection closes.
	lingerDue bool

	ev requestEvent // of the request at hand
}

// Errors that end a session. Which of them is worth more than a debug line is
// decided by accesslog.go.
var (
	errClientGone   = errors.New("client closed the connection")
	errClientSilent = errors.New("client sent nothing in time")
	errUpstreamGone = errors.New("backend closed the idle connection")
	errUnasked      = errors.New("backend sent bytes that no request asked for")
	errServerDown   = errors.New("the backend that the client is logged in at is down")
	errServerLost   = errors.New("it was found down in the middle of the request, and another server takes over")
	errShutdown     = errors.New("shutting down")
)

// quickWait is how long an exchange or an idle period goes on before a second
// goroutine is spent on watching the other side. Most are over sooner.
const quickWait = 50 * time.Millisecond

// serve runs the relay loop until the connection is to be closed, and returns
// why, nil for an orderly end.
func (s *session) serve(ctx context.Context) error {
	defer s.ups.closeAll()
	for {
		data, err := s.readHead()
		if err != nil {
			s.head = requestHead{fields: s.head.fields[:0]}
			return s.headFailed(err)
		}
		if err := parseRequestHead(data, &s.head); err != nil {
			return s.headFailed(err)
		}
		s.requests++
		s.ev.begin(&s.head)
		s.identity = s.identity || s.head.identity
		rt := routeRequest(s.originOf(&s.head), &s.head)
		s.ev.route(rt)
		if rt.rule != noRule {
			s.srv.ruleHits[rt.rule].Add(1)
		}
		var keep bool
		switch rt.action {
		case actBridge:
			keep, err = s.bridge(ctx, rt)
			s.endLogin()
		default:
			keep, err = s.answer(ctx, rt)
		}
		if err != nil && ctx.Err() != nil {
			err = errShutdown // what was cut looks like a peer that left
		}
		s.ev.end(s, err)
		if !keep || err != nil {
			if s.lingerDue && err == nil {
				s.ups.closeAll()
				s.linger()
			}
			return err
		}
		s.in.release()
		if cap(s.out) > 2*coalesce {
			s.out = nil // a head full of Kerberos tickets came by
		}
	}
}

// readHead waits for the next request and returns its head.
func (s *session) readHead() ([]byte, error) {
	var scan headScanner
	inTime := false // the head's deadline is set
	for empties := 0; ; {
		switch data := s.in.buf[s.in.r:s.in.w]; {
		case len(data) == 0:
			if err := s.awaitRequest(); err != nil {
				return nil, err
			}
			continue
		case empties < 2 && bytes.HasPrefix(data, crlf):
			// RFC 9112 section 2.2: old clients send an extra CRLF behind a body. It
			// begins no request yet.
			s.in.r += len(crlf)
			empties++
			inTime = false
			continue
		case len(data) == 1 && data[0] == '\r':
		case !tokenChars[data[0]]: // refused at once; a TLS hello in clear, say
			return nil, malformed("no HTTP request: it begins with %q", data[0])
		default:
			if head, err := scan.next(&s.in); head != nil || err != nil {
				return head, err
			}
		}
		if !inTime {
			// The head as a whole has its time, so that bytes sent one by one do
			// not hold a connection for ever.
			s.conn.SetReadDeadline(time.Now().Add(s.srv.opts.RequestHeadTimeout))
			inTime = true
		}
		if err := s.in.fill(); isTimeout(err) {
			return nil, &headError{http.StatusRequestTimeout, "request head not complete in time"}
		} else if err != nil {
			return nil, errClientGone
		}
	}
}

var crlf = []byte("\r\n")

// awaitRequest waits for the first byte of a request on an idle connection, and
// meanwhile for the end of the backend connections: if one goes, so does the
// client's, because the identity that the client counts on went with it.
func (s *session) awaitRequest() error {
	s.idle.Store(true)
	defer s.idle.Store(false)
	if s.srv.closing.Load() {
		return errShutdown
	}
	limit := s.srv.opts.ClientIdleTimeout
	switch {
	case s.requests == 0:
		limit = s.srv.opts.RequestHeadTimeout
	case s.identity:
		// A new handshake costs three round trips and a look at the directory.
		limit = max(limit, authenticatedIdle)
	}
	if len(s.ups.list) > 0 {
		s.conn.SetReadDeadline(time.Now().Add(quickWait))
		if err := s.in.fill(); !isTimeout(err) {
			return err
		}
	}
	// Long idle periods hold no buffers.
	s.in.release()
	s.out, s.head.fields, s.resp.fields = nil, nil, nil
	s.clearWriteDeadline()
	for end := time.Now().Add(limit); ; {
		lost, err := s.await(end)
		switch {
		case lost && isTimeout(err) && time.Now().Before(end) && !s.srv.closing.Load():
		case isTimeout(err):
			return errClientSilent
		default:
			return err
		}
	}
}

// await waits for the client until end, and for the end of a backend connection. If
// that carried the client's identity, the client's has to end with it; if not, the
// next request may begin on a new one, and nothing is lost but a handshake.
func (s *session) await(end time.Time) (lost bool, err error) {
	watched := slices.Clone(s.ups.list)
	s.conn.SetReadDeadline(end)
	for _, u := range watched {
		u.in.release()
		u.watch(func() { s.conn.SetReadDeadline(past) })
	}
	err = s.in.fill()
	for _, u := range watched {
		switch ended := u.unwatch(); {
		case ended == nil:
		case errors.Is(ended, errUpstreamGone) && !u.identity:
			s.ups.drop(u)
			lost = true
		default:
			err = ended
		}
	}
	return lost, err
}

const authenticatedIdle = 20 * time.Minute

// headFailed ends a session whose next head could not be read: a malformed head
// is answered, silence and closed connections are not.
func (s *session) headFailed(err error) error {
	var he *headError
	switch {
	case errors.As(err, &he):
	case err == io.EOF, errors.Is(err, errClientSilent), errors.Is(err, errShutdown):
		return nil
	case errors.Is(err, errUpstreamGone), errors.Is(err, errUnasked):
		return err
	default:
		return errClientGone
	}
	s.requests++
	s.ev.begin(&s.head)
	s.ev.status, s.ev.cause = he.status, he.reason
	s.out = appendLocal(s.out[:0], he.status, s.srv.date(), nil, []byte(he.reason+"\n"), "close", s.head.method == "HEAD")
	werr := s.write(s.out, s.srv.opts.RequestHeadTimeout)
	s.ev.end(s, nil)
	if werr == nil {
		s.ups.closeAll()
		s.linger()
	}
	return nil
}

// write sends to the client, with a deadline that is renewed only when it has
// come near: setting one costs more than the check.
func (s *session) write(p []byte, limit time.Duration) error {
	if now := time.Now(); s.writeBy.Sub(now) < limit/2 || s.writeBy.Sub(now) > limit {
		s.writeBy = now.Add(limit)
		s.conn.SetWriteDeadline(s.writeBy)
	}
	n, err := s.conn.Write(p)
	s.ev.out += int64(n)
	if err != nil {
		if isTimeout(err) {
			return errors.New("client does not take the response")
		}
		return errClientGone
	}
	return nil
}

// clearWriteDeadline is for long waits, in which the TLS layer may write by itself,
// to answer a key update (RFC 8446 section 4.6.3): the deadline of the last
// response, long past by then, would break the connection.
func (s *session) clearWriteDeadline() {
	s.conn.SetWriteDeadline(time.Time{})
	s.writeBy = time.Time{}
}

// linger closes the sending side and takes what the client is still sending:
// closing with unread bytes makes TCP reset the connection, which can destroy the
// answer on its way (RFC 9112 section 9.6). A client that sends on while it reads
// a long answer is borne with for longer than one that sends nothing.
func (s *session) linger() {
	s.conn.SetWriteDeadline(time.Now().Add(lingerTime))
	s.writeBy = time.Time{}
	if tc, ok := s.conn.(*tls.Conn); ok {
		if tc.CloseWrite() != nil {
			return
		}
	}
	if cw, ok := s.raw.(interface{ CloseWrite() error }); ok && cw.CloseWrite() != nil {
		return
	}
	s.idle.Store(true) // Shutdown need not wait for this
	discard(s.raw)
}

// discard reads what still comes until the peer closes, falls silent or does not
// stop.
func discard(c net.Conn) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for end := time.Now().Add(lingerLimit); time.Now().Before(end); {
		c.SetReadDeadline(time.Now().Add(lingerTime))
		if _, err := c.Read(buf[:]); err != nil {
			return
		}
	}
}

const (
	lingerTime  = 2 * time.Second  // for a client that sends nothing
	lingerLimit = 30 * time.Second // for one that does not stop
)

// abort closes everything the session holds, from any goroutine.
func (s *session) abort() {
	s.raw.Close()
	s.ups.closeAll()
}

// originOf returns where a request comes from. Behind a trusted proxy that is the
// client it names, and nobody in particular if it names none: the proxy's own
// address must not make everybody behind it internal.
func (s *session) originOf(h *requestHead) origin {
	o := s.origin
	if s.fwd.trusted {
		s.ev.client = forwardedClient(h.fields, o.table.TrustedProxies)
		o.internal = contains(o.table.InternalNetworks, s.ev.client)
	}
	return o
}

// upstream returns the session's connection to a server of the route's site, making
// it if there is none yet: the one that carries the client's identity, or one that
// is fit for the directory and led to by affinity. With an error, it is the one that is lost.
func (s *session) upstream(ctx context.Context, rt route, l *leading) (*upstream, error) {
	site, dir := rt.host.Site, rt.vdir.health()
	u := s.ups.identified(site)
	if u != nil && len(site.Backends) > 1 && u.state.isDown(dir) && site.known().someFit(dir) {
		return u, errServerDown // to log in elsewhere, the client needs another connection
	}
	var order []*Backend // a turn is taken only for a new connection
	if u == nil && l != nil && l.wanted == nil {
		if other := s.ups.fit(site, dir, nil); other != nil {
			l.claim(other.state, dir)
		} else {
			order = site.order(dir)
			l.claim(order[0].known(site), dir)
		}
	}
	for {
		if u == nil {
			u = s.ups.fit(site, dir, l)
		}
		if u == nil {
			break
		}
		if !u.used {
			return u, nil
		}
		switch err := u.quiet(); {
		case err == nil:
			return u, nil
		case u.identity || !errors.Is(err, errUpstreamGone):
			return u, err // unanswered, as the client has to expect on an idle connection
		}
		s.ups.drop(u) // the server has closed it; the request begins on another one
		u = nil
	}
	if order == nil {
		order = site.order(dir)
	}
	u, err := s.dial(ctx, rt.host, l.first(order), l.belongs())
	if err != nil {
		return nil, err
	}
	if !s.ups.put(u) {
		u.close()
		return nil, errShutdown
	}
	return u, nil
}

// dial connects to a server of the host's site. If that takes its time, it is a wait on the client
// too, and ends when the client leaves.
func (s *session) dial(ctx context.Context, host *Host, order []*Backend, led bool) (*upstream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.conn.SetReadDeadline(time.Time{})
	begin, stop, ended := time.Now(), make(chan struct{}), make(chan struct{})
	watch := time.AfterFunc(quickWait, func() {
		defer close(ended)
		defer recovered(s.log, s.abort)
		if s.clientLeaves(stop, func() time.Duration { return time.Since(begin) }) {
			cancel(errClientGone)
		}
	})
	connect := func(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error) {
		return s.srv.dial.connect(ctx, host, a, timeout)
	}
	u, err := s.srv.connect(ctx, host.Site, s.agreeing(host.Site, order), led, s.bound(host.Site, connect))
	if !watch.Stop() {
		close(stop)
		s.conn.SetReadDeadline(past)
		<-ended
		s.conn.SetReadDeadline(time.Time{})
	}
	if errors.Is(context.Cause(ctx), errClientGone) {
		if err == nil {
			u.close()
		}
		return nil, errClientGone
	}
	return u, err
}

// addrOf returns the IP address and port of a TCP address.
func addrOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
