package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// modeHTTP is the mode of connections in clear.
const modeHTTP = "http"

// connEvent is what is logged of a connection: one line, at its end.
type connEvent struct {
	start    time.Time
	peer     netip.Addr // the proxy in front, if a PROXY header named another client
	sni      string
	mode     string
	protocol string // a mail protocol
	host     string // a mail protocol: whose
	backend  string // passthrough and mail
	inClear  bool   // a login was tried in clear
	tls      uint16
	resumed  bool
	// clientCertificate is the SHA-256 of what the client showed; "" without.
	clientCertificate string
	refused           bool
	requests          int
	in, out           int64 // passthrough and mail: bytes to the backend and from it
}

// write logs the connection. A backend that cannot be reached is an error; that a
// peer went away is worth a word at the debug level only, and so is a connection
// on which nothing was said, as port checks make them.
func (ev *connEvent) write(c *clientConn, err error) {
	var e *zerolog.Event
	switch {
	case errors.Is(err, errNoBackend):
		e = c.log.Error()
	case (err == nil || isPeerEnd(err)) && ev.requests == 0 && !ev.inClear && (ev.mode == "" || ev.mode == modeHTTP):
		e = c.log.Debug()
	default:
		e = c.log.Info()
	}
	e = e.Str("remote", c.remote.String()).Str("listener", c.listener)
	if ev.peer.IsValid() {
		e = e.Str("proxy", ev.peer.String())
	}
	if ev.sni != "" {
		e = e.Str("sni", ev.sni)
	}
	if ev.protocol != "" {
		e = e.Str("protocol", ev.protocol)
	}
	if ev.host != "" {
		e = e.Str("host", ev.host)
	}
	if ev.mode != "" {
		e = e.Str("mode", ev.mode)
	}
	if ev.inClear {
		e = e.Bool("authorization", true).Bool("in_clear", true)
	}
	if ev.tls != 0 {
		e = e.Str("tls", tls.VersionName(ev.tls)).Bool("resumed", ev.resumed)
	}
	if ev.clientCertificate != "" {
		e = e.Str("client_certificate", ev.clientCertificate)
	}
	if ev.mode == Passthrough.String() || ev.backend != "" {
		e = e.Str("backend", ev.backend).Int64("in", ev.in).Int64("out", ev.out)
	}
	if ev.requests > 0 {
		e = e.Int("requests", ev.requests)
	}
	e = e.Dur("duration_ms", time.Since(ev.start))
	msg := "connection"
	if ev.refused {
		msg = "connection refused"
	}
	if err != nil && (!isPeerEnd(err) || c.log.GetLevel() <= zerolog.DebugLevel) {
		e = e.Err(err)
	}
	e.Msg(msg)
}

// isPeerEnd tells whether err is just a peer that went away.
func isPeerEnd(err error) bool {
	return errors.Is(err, errClientGone) || errors.Is(err, errShutdown) || errors.Is(err, errUpstreamGone) ||
		errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// requestEvent is what is logged of a request: one line, when it is answered.
// Never credentials, cookies or bodies, and no query: it may hold user names.
type requestEvent struct {
	log    zerolog.Logger
	remote netip.AddrPort
	client netip.Addr // whom a trusted proxy names; not valid without one
	debug  bool

	start         time.Time
	method        string
	host          string
	target        string
	authorization bool
	mode          string
	vdir          string
	rule          string // the attack rule that matched
	backend       string
	upstreamID    uint64
	reused        bool
	status        int
	in, out       int64 // body bytes from the client; bytes to the client
	cause         string
	hint          string // what may stand behind a backend's error
	failed        bool   // the cause is ours or the backend's, not the client's
}

// begin starts the record of a request.
func (ev *requestEvent) begin(h *requestHead) {
	*ev = requestEvent{
		log: ev.log, remote: ev.remote, debug: ev.debug, start: time.Now(),
		method: h.method, host: h.hostName, target: h.target, authorization: h.authorization,
	}
}

func (ev *requestEvent) route(rt route) {
	if rt.host != nil {
		ev.mode = rt.host.Mode.String()
	}
	if rt.vdir != nil {
		ev.vdir = rt.vdir.Name
	}
	ev.rule = attackRules[rt.rule].ID
	if rt.action == actRedirect {
		ev.mode = Redirect.String()
	}
}

func (ev *requestEvent) upstream(u *upstream) {
	ev.backend, ev.upstreamID, ev.reused = u.backend.Name, u.id, u.used
}

// from is the client's address as handlers are told it.
func (ev *requestEvent) from() netip.AddrPort {
	if ev.client.IsValid() {
		return netip.AddrPortFrom(ev.client, 0)
	}
	return ev.remote
}

// fail records why a request could not be served.
func (ev *requestEvent) fail(err error) { ev.cause, ev.failed = err.Error(), true }

// end writes the record.
func (ev *requestEvent) end(s *session, err error) {
	if err != nil && ev.cause == "" {
		ev.cause = err.Error()
		ev.failed = !isPeerEnd(err) && !errors.Is(err, errOutdated)
	}
	e := ev.log.Info()
	if ev.failed {
		e = ev.log.Warn()
	}
	e = e.Str("remote", ev.remote.String()).Str("method", clip(ev.method)).Str("host", clip(ev.host)).Int("status", ev.status)
	if ev.client.IsValid() && !ev.client.IsUnspecified() { // unspecified: nobody in particular
		e = e.Str("client", ev.client.String())
	}
	if ev.debug {
		e = e.Str("target", clip(ev.target))
	} else {
		e = e.Str("path", clip(maskPath(ev.target)))
	}
	if ev.mode != "" {
		e = e.Str("mode", ev.mode)
	}
	if ev.vdir != "" {
		e = e.Str("virtual_directory", ev.vdir)
	}
	if ev.rule != "" {
		e = e.Str("rule", ev.rule)
	}
	if ev.backend != "" {
		e = e.Str("backend", ev.backend).Uint64("upstream", ev.upstreamID).Bool("reused", ev.reused)
	}
	if ev.authorization {
		// That credentials came is worth knowing, above all in clear; never what
		// they were.
		e = e.Bool("authorization", true)
		if !s.origin.secure {
			e = e.Bool("in_clear", true)
		}
	}
	e = e.Int64("in", ev.in).Int64("out", ev.out).Dur("duration_ms", time.Since(ev.start))
	if ev.cause != "" {
		e = e.Str("error", clip(ev.cause))
	}
	if ev.hint != "" {
		e = e.Str("hint", ev.hint)
	}
	e.Msg("request")
}

// clip shortens what a client may have made long: a log line is not to cost more
// than the request.
func clip(s string) string {
	const limit = 1024
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}

// maskPath is the path of a target without query and without the segments that
// hold a mailbox address, which only the debug level shows.
func maskPath(target string) string {
	path, _, _ := strings.Cut(target, "?")
	if !strings.Contains(path, "@") && !strings.Contains(path, "%40") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, seg := range segments {
		if strings.Contains(seg, "@") || strings.Contains(seg, "%40") {
			segments[i] = "<address>"
		}
	}
	return strings.Join(segments, "/")
}
