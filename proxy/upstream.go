package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// upstream is the one connection of a client connection to a site. It belongs to
// that client until either end closes; there is no pool.
type upstream struct {
	backend *Backend
	conn    net.Conn
	raw     net.Conn // the socket below TLS
	in      reader
	id      uint64
	used    bool // a response has come over it
	closed  atomic.Bool

	watchDone chan struct{} // while idle: closed when the watcher is through
	watchErr  error         // how the connection ended; valid after watchDone
}

// dialFunc is net.Dialer.DialContext's shape.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// upstreamIDs number backend connections for the log, over the whole process.
var upstreamIDs atomic.Uint64

const defaultConnectTimeout = 5 * time.Second

// firstBackend tries the site's backends in their order until one connects.
// Nothing has been sent to any of them yet, so trying the next one repeats no
// request. The error names every backend tried and why it failed.
func firstBackend[T any](ctx context.Context, site *Site, connect func(context.Context, *Backend, time.Duration) (T, error)) (T, error) {
	var none T
	if len(site.Backends) == 0 {
		return none, fmt.Errorf("site %s has no servers", site.Name)
	}
	timeout := site.ConnectTimeout
	if timeout <= 0 {
		timeout = defaultConnectTimeout
	}
	var errs []error
	for _, b := range site.order() {
		c, err := connect(ctx, b, timeout)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return none, errors.Join(errs...)
}

// connect makes a connection to a backend that requests can be sent over.
func (dial dialFunc) connect(ctx context.Context, b *Backend, timeout time.Duration) (*upstream, error) {
	raw, err := dial.tcp(ctx, b, timeout)
	if err != nil {
		return nil, err
	}
	u := &upstream{backend: b, conn: raw, raw: raw, id: upstreamIDs.Add(1)}
	if b.TLS != nil {
		tc := tls.Client(raw, b.TLS)
		// Handshakes get the same time again: a server that accepts and then says
		// nothing must not hold the client longer than one that is down.
		hctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := tc.HandshakeContext(hctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS with backend %s (%s): %w%s", b.Name, b.Address, err, certificateHint(err))
		}
		u.conn = tc
	}
	u.in.conn = u.conn
	return u, nil
}

// tcp makes the connection below.
func (dial dialFunc) tcp(ctx context.Context, b *Backend, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := dial(ctx, "tcp", b.Address)
	if err != nil {
		return nil, fmt.Errorf("dial backend %s (%s): %w", b.Name, b.Address, err)
	}
	return c, nil
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
	case strings.Contains(text, "protocol version"): // the server's alert, or crypto/tls about its hello
		return " (an old server? Set the site's tls: {min_version: \"1.0\"})"
	case strings.Contains(text, "remote error: tls: handshake failure"):
		return " (no cipher suite in common? Set the site's tls: {min_version: …} or {ciphers: […]})"
	}
	return ""
}

// close ends the connection at once; also from another goroutine.
func (u *upstream) close() {
	if u.closed.CompareAndSwap(false, true) {
		// Not tls.Conn.Close: it waits for a writer that may be stuck.
		u.raw.Close()
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

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// upstreams are a client connection's backend connections, one per site.
type upstreams struct {
	mu   sync.Mutex // close comes from Shutdown too
	list []siteUpstream
	shut bool
}

type siteUpstream struct {
	site *Site
	up   *upstream
}

func (us *upstreams) get(site *Site) *upstream {
	us.mu.Lock()
	defer us.mu.Unlock()
	for _, su := range us.list {
		if su.site == site {
			return su.up
		}
	}
	return nil
}

// put records a new connection; false if the client's has been closed meanwhile.
func (us *upstreams) put(site *Site, u *upstream) bool {
	us.mu.Lock()
	defer us.mu.Unlock()
	if us.shut {
		return false
	}
	us.list = append(us.list, siteUpstream{site, u})
	return true
}

func (us *upstreams) closeAll() {
	us.mu.Lock()
	defer us.mu.Unlock()
	us.shut = true
	for _, su := range us.list {
		su.up.close()
	}
}
