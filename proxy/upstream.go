package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// upstream is the one connection of a client connection to a backend. It belongs to
// that client until either end closes; there is no pool.
type upstream struct {
	site    *Site
	backend *Backend
	state   *backendState
	conn    net.Conn
	raw     net.Conn // the socket below TLS
	in      reader
	id      uint64
	used    bool // a response has come over it
	// identity: a login that is one of the connection (NTLM, Negotiate) has gone over
	// it. From then on the client's requests to the site take it and no other.
	identity bool
	busy     atomic.Bool                      // in the middle of an exchange
	serves   atomic.Pointer[VirtualDirectory] // what it was last used for
	closed   atomic.Bool
	lost     atomic.Bool // closed since the server is down and another takes over

	watchDone chan struct{} // while idle: closed when the watcher is through
	watchErr  error         // how the connection ended; valid after watchDone
}

// dialFunc is net.Dialer.DialContext's shape.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// upstreamIDs number backend connections for the log, over the whole process.
var upstreamIDs atomic.Uint64

const defaultConnectTimeout = 5 * time.Second

// hedgeAfter is how long a backend may take to be connected to before another one
// is tried beside it. One that drops packets would cost every client the whole time
// limit; on the way to a server next door a connection takes milliseconds. A TLS
// handshake, which waits for processors on both sides, is given some times more.
//
// A client that belongs to a backend loses what it has there when another one wins, so
// that one gets the time in which TCP repeats a lost SYN (RFC 6298: after 1 s).
const (
	hedgeAfter          = 300 * time.Millisecond
	hedgeHandshakeAfter = 900 * time.Millisecond
	hedgeLedAfter       = 2500 * time.Millisecond
)

// attempt is one try to connect to a backend.
type attempt struct {
	backend *Backend
	begun   time.Time
	tcp     atomic.Bool // there is a TCP connection
	apart   atomic.Bool // its outcome says nothing of what the site's servers are checked for
	led     bool        // the client belongs there
	over    bool
}

// slow tells whether another backend is worth a try meanwhile.
func (a *attempt) slow() bool {
	d := time.Since(a.begun)
	if a.led {
		return d >= hedgeLedAfter
	}
	return d >= hedgeHandshakeAfter || d >= hedgeAfter && !a.tcp.Load()
}

// connectFunc makes a connection to the attempt's backend.
type connectFunc func(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error)

// connect makes a connection to the first of the site's backends, in the given
// order, that takes it. Nothing has been sent to any of them yet, so trying the next
// one repeats no request. One that is slow gets company, and who is first
// wins. led says that the client belongs to the first. The error names every backend
// tried and why it failed.
func (s *Server) connect(ctx context.Context, site *Site, order []*Backend, led bool, connect connectFunc) (*upstream, error) {
	timeout := site.ConnectTimeout
	if timeout <= 0 {
		timeout = defaultConnectTimeout
	}
	switch len(order) {
	case 0:
		return nil, fmt.Errorf("site %s has no servers", site.Name)
	case 1:
		u, err := connect(ctx, &attempt{backend: order[0]}, timeout)
		if err != nil {
			return nil, err
		}
		u.hold(site)
		return u, nil
	}
	type outcome struct {
		*attempt
		up  *upstream
		err error
	}
	trying, cancel := context.WithCancel(ctx)
	outcomes := make(chan outcome, len(order))
	var attempts []*attempt
	running := 0
	try := func() error {
		b := order[len(attempts)]
		if err := site.await(ctx, b); err != nil {
			return err
		}
		a := &attempt{backend: b, begun: time.Now(), led: led && len(attempts) == 0}
		attempts = append(attempts, a)
		running++
		go func() {
			u, err := connect(trying, a, timeout)
			outcomes <- outcome{a, u, err}
		}()
		return nil
	}
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if o := <-outcomes; o.up != nil {
				o.up.close()
			}
		}
	}()
	if err := try(); err != nil {
		return nil, err
	}
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	var errs []error
	for running > 0 {
		select {
		case o := <-outcomes:
			running--
			o.over = true
			if o.err == nil {
				o.up.hold(site)
				for _, a := range attempts {
					if !a.over && a.slow() && !a.apart.Load() {
						a.backend.known(site).unreachable(errNoAnswer)
					}
				}
				return o.up, nil
			}
			errs = append(errs, o.err)
			if ctx.Err() != nil {
				return nil, errors.Join(errs...)
			}
			if !errors.Is(o.err, errUnbound) && !o.apart.Load() {
				o.backend.known(site).unreachable(o.err)
			}
			hedge.Reset(hedgeAfter)
		case <-hedge.C:
			if !attempts[len(attempts)-1].slow() {
				continue
			}
		}
		if len(attempts) < len(order) {
			if err := try(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return nil, errors.Join(errs...)
}

var errNoAnswer = errors.New("slow to connect to, while another server answered")

// hold makes the backend count the connection as one of its own.
func (u *upstream) hold(site *Site) {
	u.site, u.state = site, u.backend.known(site)
	u.state.add(u)
}

// connect makes a connection to a backend that requests to a host can be sent over.
// The host is nil where the connection is for nobody, but to see whether it can be
// made.
func (dial dialFunc) connect(ctx context.Context, host *Host, a *attempt, timeout time.Duration) (*upstream, error) {
	b := a.backend
	u, err := dial.tcp(ctx, a, timeout)
	if err != nil {
		return nil, err
	}
	a.tcp.Store(true)
	if b.TLS != nil && !b.StartTLS { // where TLS does not come first, being there is enough
		tc := tls.Client(u.raw, b.TLS)
		// Handshakes get the same time again: a server that accepts and then says
		// nothing must not hold the client longer than one that is down.
		hctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := tc.HandshakeContext(hctx); err != nil {
			u.close()
			return nil, fmt.Errorf("TLS with backend %s (%s): %w%s", b.Name, b.Address, err, certificateHint(err))
		}
		u.conn, u.in.conn = tc, tc
	}
	return u, nil
}

// tcp makes a connection to a backend without a layer above TCP.
func (dial dialFunc) tcp(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error) {
	b := a.backend
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := dial(ctx, "tcp", b.Address)
	if err == nil && b.SendProxy != 0 {
		if err = sendProxyHeader(ctx, c, b.SendProxy); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("dial backend %s (%s): %w", b.Name, b.Address, err)
	}
	u := &upstream{backend: b, conn: c, raw: c, id: upstreamIDs.Add(1)}
	u.in.conn = c
	return u, nil
}

// certificateHint adds what an administrator can do about a backend whose
// certificate is not accepted, the most common first-day fault, or whose TLS is
// older than ours.
func certificateHint(err error) string {
	var verify *tls.CertificateVerificationError
	switch text := err.Error(); {
	case errors.As(err, &verify):
		pin := "…"
		if len(verify.UnverifiedCertificates) > 0 {
			sum := sha256.Sum256(verify.UnverifiedCertificates[0].RawSubjectPublicKeyInfo)
			pin = "sha256/" + base64.StdEncoding.EncodeToString(sum[:])
		}
		return " (set the site's trust: {ca: …} or server_name, or trust: {pin: [" + pin + "]} if that is the server's key; " +
			"allow_internal_untrusted_certs: true gives up authentication)"
	case errors.Is(err, context.DeadlineExceeded):
		return " (the port is open, and nothing answers in TLS: a server that hangs, or another port?)"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return " (something else than TLS answers: another port, or a server in clear?)"
	case strings.Contains(text, "protocol version"): // the server's alert, or crypto/tls about its hello
		return " (an old server? Set the site's tls: {min_version: \"1.0\"})"
	case strings.Contains(text, "remote error: tls: handshake failure"):
		return " (no cipher suite in common? Set the site's tls: {min_version: …} or {ciphers: […]})"
	}
	return ""
}

// cause is why an exchange on the connection failed: what reading met, unless it met
// only that the connection was closed here.
func (u *upstream) cause(err error) error {
	if u.lost.Load() && !errors.Is(err, errBackendSilent) {
		return errServerLost
	}
	return err
}

// close ends the connection at once; also from another goroutine.
func (u *upstream) close() {
	if u.closed.CompareAndSwap(false, true) {
		// Not tls.Conn.Close: it waits for a writer that may be stuck.
		u.raw.Close()
		if u.state != nil {
			u.state.remove(u)
		}
	}
}

// watch reads from an idle backend connection, on which nothing is due. Whatever
// arrives, its end or bytes nobody asked for, ends the pair: onEnd is
// called unless unwatch came first.
func (u *upstream) watch(onEnd func()) {
	u.watchDone, u.watchErr = make(chan struct{}), nil
	u.conn.SetDeadline(time.Time{}) // the last exchange left them
	go func() {
		defer close(u.watchDone)
		if u.watchErr = idleRead(u.in.fill()); u.watchErr != nil {
			onEnd()
		}
	}()
}

// idleRead is what the outcome of a read on an idle connection says: nil, if
// nothing came in time, is the only good one.
func idleRead(err error) error {
	switch {
	case isTimeout(err):
		return nil
	case err == nil:
		return errUnasked
	}
	return errUpstreamGone
}

// quiet returns nil if the connection may carry a further request: it is open, and
// nothing has come behind the last response. What has would be taken for the
// answer to the next request, and every answer after it for another's.
func (u *upstream) quiet() error {
	if u.in.buffered() > 0 {
		return errUnasked
	}
	// If there is something in the socket it is read: it may be only a session
	// ticket, which is no answer to anything. A machine that is slow to come to it is
	// given more time; what cannot be read is not taken for nothing.
	for wait := ticketWait; readable(u.raw); wait *= 4 {
		if wait > time.Minute {
			return errUnasked
		}
		u.conn.SetReadDeadline(time.Now().Add(wait))
		if err := u.in.fill(); !isTimeout(err) {
			return idleRead(err)
		}
	}
	// A deadline in the past leaves the socket alone and shows what the TLS layer
	// holds.
	u.conn.SetReadDeadline(past)
	return idleRead(u.in.fill())
}

// ticketWait is how long the rest of a TLS record whose beginning is here may take.
const ticketWait = 20 * time.Millisecond

// unwatch ends watch and returns how the connection ended, nil if it lives.
func (u *upstream) unwatch() error {
	u.conn.SetReadDeadline(past)
	<-u.watchDone
	u.conn.SetReadDeadline(time.Time{})
	return u.watchErr
}

// past is a deadline that makes a blocked read or write return.
var past = time.Unix(1, 0)

// isTimeout tells whether a deadline of ours has passed. ETIMEDOUT, which says that
// the peer has vanished, calls itself a timeout as well.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// upstreams are a client connection's backend connections, one per backend. Only
// the session's goroutine changes the list.
type upstreams struct {
	mu   sync.Mutex // closeAll comes from Shutdown too
	list []*upstream
	shut bool
}

// identified returns the connection to the site that carries the client's identity,
// nil if there is none.
func (us *upstreams) identified(site *Site) *upstream {
	for _, u := range us.list {
		if u.identity && u.site == site {
			return u
		}
	}
	return nil
}

// fit returns a connection to a backend of the site that may be asked for the
// directory, one that does not drain if there is a choice. Where no backend is fit,
// any connection is as good as a new one. If the client belongs to a server, only
// that will do.
func (us *upstreams) fit(site *Site, dir string, l *leading) *upstream {
	if l != nil && l.wanted != nil {
		for _, u := range us.list {
			if u.state == l.wanted {
				return u
			}
		}
		return nil
	}
	var best, any *upstream
	for _, u := range us.list {
		switch {
		case u.site != site:
		case len(site.Backends) < 2:
			return u
		case !u.state.fit(dir):
			any = u
		case !u.state.drain.Load():
			return u
		default:
			best = u
		}
	}
	if best == nil && any != nil && !site.known().someFit(dir) {
		return any
	}
	return best
}

// put records a new connection; false if the client's has been closed meanwhile.
func (us *upstreams) put(u *upstream) bool {
	for _, other := range us.list {
		if other.state == u.state {
			us.drop(other) // it was not fit when a server was chosen
			break
		}
	}
	us.mu.Lock()
	defer us.mu.Unlock()
	if us.shut {
		return false
	}
	us.list = append(us.list, u)
	return true
}

// drop closes a connection that the client needs no longer.
func (us *upstreams) drop(u *upstream) {
	u.close()
	us.mu.Lock()
	defer us.mu.Unlock()
	us.list = slices.DeleteFunc(us.list, func(other *upstream) bool { return other == u })
}

// belongs makes u the one connection to its site: the client logs in on it. Others,
// of a time without identity, are of no more use.
func (us *upstreams) belongs(u *upstream) {
	u.identity = true
	for _, other := range slices.Clone(us.list) {
		if other != u && other.site == u.site {
			us.drop(other)
		}
	}
}

func (us *upstreams) closeAll() {
	us.mu.Lock()
	defer us.mu.Unlock()
	us.shut = true
	for _, u := range us.list {
		u.close()
	}
}
