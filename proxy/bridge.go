package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// exchange is one bridged request and its response. The session's goroutine
// sends the head and reads the response; a second one, the uplink, is started
// only when there is a body to copy at the same time or the backend takes its
// time, and then watches the client as well.
type exchange struct {
	s         *session
	up        *upstream
	vdir      *VirtualDirectory
	body      body // of the request; the uplink's once it runs
	headBytes int  // of the request, as sent
	// bodyBy is when the whole body has to be here; zero: whenever it comes.
	bodyBy time.Time

	begin time.Time
	last  atomic.Int64 // when bytes last moved in either direction, ns after begin
	moved atomic.Int64 // payload bytes of the request taken from the client
	gone  atomic.Bool  // the client has left; the backend connection is closed

	mu       sync.Mutex // stopping against the uplink's deadlines
	started  bool
	stopping bool
	stop     chan struct{}
	bodyDone chan struct{} // closed when the whole body is with the backend
	ended    chan struct{} // closed when the uplink has returned
	bodyErr  error         // why the body did not get through; valid after ended
	writeErr error         // why the head did not get through

	edit          *responseEdit // what changes in response heads; nil: nothing
	rewrite       bool          // the answer is an Autodiscover document whose names change
	led           *leading      // where the client belongs; nil: nowhere in particular
	unsent        bool          // nothing of the request has gone out
	drain         int64         // how much of the body is carried behind an early response
	hasBody       bool          // the request has a body
	wroteContinue bool          // 100 Continue was sent to the client
}

// Times and sizes of an exchange.
const (
	// expectWait is how long a client that asked for 100 Continue waits for the
	// backend's word before it gets ours.
	expectWait = 3 * time.Second
	// drainLimit is how much of a request body is still carried after an early
	// response so that both connections can live on. A 401 in the middle of
	// a login of the connection must not end it, or the login never gets through:
	// loginDrainLimit is what Exchange takes over EWS. drainTime is for how long the
	// client may be silent meanwhile.
	drainLimit      = 256 << 10
	loginDrainLimit = 64 << 20
	drainTime       = 10 * time.Second
	// maxInterim is how many responses 1xx a backend may send before the final one:
	// each is a sign of life, so that a stream of them would never be given up.
	maxInterim = 64
	// coalesce is up to how many bytes of payload are gathered for one write.
	coalesce = 16 << 10
)

var (
	errBackendSilent = errors.New("backend silent for too long")
	errClientStalled = errors.New("client stopped sending the body")
	errBackendWrite  = errors.New("backend does not take the request")
	// Outlook Anywhere announces 1 GiB and renews its channels long before
	// ([MS-RPCH], channel recycling), so this is no fault of anybody.
	errChannelEnded  = fmt.Errorf("backend ended the channel before its announced length: %w", io.EOF)
	errRenegotiation = errors.New("TLS renegotiation not complete in time")
)

// bridge sends the request to the site of the route's host and its response
// back. It returns whether the client connection lives on.
func (s *session) bridge(ctx context.Context, rt route) (keep bool, err error) {
	if s.outdated(rt.host.Site) {
		return false, errOutdated // unanswered: what the client says on it is bound to what is gone
	}
	fw := s.fwd
	fw.host = rt.host.Name
	// h2c would let a client speak past our routing, also as one of several.
	fw.upgrade = rt.vdir.Upgrade && s.head.upgrade && s.head.minor > 0 && s.head.upgradeTo != "" && !s.head.hasBody() &&
		!strings.Contains(strings.ToLower(s.head.upgradeTo), "h2c")
	if rt.host.Site.HostMap != nil && s.origin.table.RewriteAnswer != nil {
		_, fw.whole = autodiscoverFile(rt.path)
	}
	var destinations []string
	if rt.host.Site.renames() {
		fw.rename = true
		destinations = s.head.values("Destination")
	}
	// Put together before anything else is read: the head's fields are in the buffer.
	s.out = appendRequestHead(s.out[:0], &s.head, rt.target, fw)
	led := s.lead(rt.host.Site, rt.vdir)
	defer led.done()
	if ok, keep, err := s.admit(ctx, &rt); !ok {
		return keep, err
	}
	up, err := s.upstream(ctx, rt, led)
	if up != nil {
		s.ev.upstream(up)
	}
	if err != nil {
		return s.noUpstream(ctx, err)
	}
	if up.serves.Load() != rt.vdir {
		up.serves.Store(rt.vdir)
	}
	led.settle(up.state, rt.vdir.health())
	up.busy.Store(true)
	defer func() { up.busy.Store(false) }()
	if s.head.identity && !up.identity {
		s.ups.belongs(up)
	}
	if fw.rename {
		s.out = insertNames(s.out, rt.host.Site.hostFor(up.backend), destinations, func(name string) bool { return s.origin.table.Hosts[name] == rt.host })
	}
	x := &exchange{
		begin: time.Now(), s: s, up: up, vdir: rt.vdir, led: led, edit: s.responseEdit(rt, up.backend), rewrite: fw.whole,
		body: requestBody(&s.head, &s.in), hasBody: s.head.hasBody(), bodyBy: s.formTime(&rt), wroteContinue: s.continued, headBytes: len(s.out),
	}
	wholeBody, err := x.sendHead()
	if x.unsent && !up.identity && rt.host.Site.HostHeader != HostBackend {
		// The server went away in the moment since the connection was looked at, with
		// nothing of the request: it is as new to another one.
		var other *upstream
		if other, err = s.replace(ctx, rt, led, up); err != nil {
			return s.noUpstream(ctx, err)
		}
		up, x.up, x.unsent, x.writeErr = other, other, false, nil
		wholeBody, err = x.send()
	}
	if err != nil {
		return s.failed(ctx, x, err)
	}
	if !wholeBody {
		x.startUplink()
	}
	return x.respond(ctx, fw.upgrade)
}

// replace takes another connection for one that turned out to be dead.
func (s *session) replace(ctx context.Context, rt route, led *leading, dead *upstream) (*upstream, error) {
	s.ups.drop(dead)
	up, err := s.upstream(ctx, rt, led)
	if err != nil {
		return nil, err
	}
	s.ev.upstream(up)
	up.serves.Store(rt.vdir)
	up.busy.Store(true)
	return up, nil
}

// noUpstream ends a request for which there is no connection to a server.
func (s *session) noUpstream(ctx context.Context, err error) (bool, error) {
	switch {
	case errors.Is(err, errClientGone), errors.Is(err, errUpstreamGone), errors.Is(err, errUnasked), errors.Is(err, errServerDown):
		return false, err
	case errors.Is(err, errShutdown), ctx.Err() != nil:
		return false, errShutdown
	}
	return s.fail(http.StatusBadGateway, err)
}

// sendHead writes the request head, in one write with as much of the body as is
// here already, and tells whether that was all of it.
func (x *exchange) sendHead() (whole bool, err error) {
	s := x.s
	for len(s.out) < coalesce && !x.body.done {
		piece, err := x.body.buffered(coalesce)
		if err != nil {
			x.bodyErr = err
			return false, err
		}
		if piece == nil {
			break
		}
		if err := x.took(piece); err != nil {
			x.bodyErr = err
			return false, err
		}
		s.out = appendPiece(s.out, piece, x.body.kind == chunkedBody)
	}
	if x.body.done && x.body.kind == chunkedBody {
		s.out = append(s.out, lastChunk...)
	}
	return x.send()
}

// send writes what sendHead has put together.
func (x *exchange) send() (whole bool, err error) {
	x.up.conn.SetWriteDeadline(time.Now().Add(x.vdir.RequestIdle))
	if n, err := x.up.conn.Write(x.s.out); err != nil {
		x.unsent = n == 0 && !isTimeout(err)
		x.writeErr = fmt.Errorf("%w: %w", errBackendWrite, err)
		if isTimeout(err) {
			return false, x.writeErr
		}
		// A backend that refuses a request before it has read it all answers and
		// closes: http.sys does with a head over its limit.
		return true, nil
	}
	return x.body.done, nil
}

// took counts a piece of the request body against the directory's limit.
func (x *exchange) took(piece []byte) error {
	if moved := x.moved.Add(int64(len(piece))); x.vdir.MaxBody > 0 && moved > x.vdir.MaxBody {
		return errBodyTooLarge
	}
	return nil
}

// respond reads the response and passes it on as it comes.
func (x *exchange) respond(ctx context.Context, upgrade bool) (keep bool, err error) {
	s, up := x.s, x.up
	for interim := 0; ; interim++ {
		data, err := x.readResponseHead()
		if err == nil {
			err = parseResponseHead(data, &s.resp)
		}
		if err == nil && interim > maxInterim {
			err = malformed("more than %d interim responses", maxInterim)
		}
		if err != nil {
			return s.failed(ctx, x, errors.Join(x.writeErr, err))
		}
		if s.resp.status >= 200 || s.resp.status == http.StatusSwitchingProtocols {
			break
		}
		if s.head.minor == 0 {
			continue // HTTP/1.0 knows no interim responses
		}
		if s.resp.status == http.StatusContinue {
			if !s.head.expect100 || x.wroteContinue {
				continue // nobody asked, or ours was sooner
			}
			x.wroteContinue = true
		}
		s.out = appendResponseHead(s.out[:0], &s.resp, "", true, x.edit)
		if err := s.write(s.out, x.vdir.RequestIdle); err != nil {
			return x.abandon(err)
		}
	}
	up.used = true
	s.ev.status = s.resp.status
	s.answered(x.vdir)
	if s.resp.status >= 400 {
		s.ev.hint = x.hint()
	}
	if s.resp.status == http.StatusSwitchingProtocols {
		if !upgrade {
			return s.failed(ctx, x, malformed("101 Switching Protocols that was not asked for"))
		}
		return false, x.tunnel()
	}
	return x.sendResponse(ctx)
}

// sendResponse passes a final response on. The head goes out with the first
// piece of body that is there, or alone at once if none is.
func (x *exchange) sendResponse(ctx context.Context) (keep bool, err error) {
	s := x.s
	rb := responseBody(&s.resp, s.head.method, &x.up.in)
	x.drain = x.drainLimit()
	lasts := rb.kind != untilClose
	var document []byte
	if x.rewrite && s.resp.status == http.StatusOK && !rb.done {
		if contentType, ok := s.resp.documentType(); ok {
			if document, err = x.readDocument(&rb, contentType); err != nil {
				return s.failed(ctx, x, err)
			}
			rb = body{done: true}
		}
	}
	chunked := rb.kind == chunkedBody
	deframe := chunked && s.head.minor == 0 // HTTP/1.0 knows no chunks: end by closing
	keep = x.writeErr == nil && s.head.persistent() && s.resp.persistent() && lasts && !deframe && !s.srv.closing.Load()
	if keep && x.tooMuchLeft() {
		keep = false // announced, so that the client need not guess
	}
	connection := ""
	switch {
	case !keep:
		connection = "close"
	case s.head.minor == 0:
		connection = "keep-alive"
	}
	if x.edit != nil {
		x.edit.decideLogins(s, x.vdir)
	}
	// RFC 9110 section 8.6 and RFC 9112 section 6.1 have no length in a 204: a client
	// that heeds one takes the next response for a body.
	deframeHead := deframe || s.resp.status == http.StatusNoContent
	s.out = appendResponseHead(s.out[:0], &s.resp, connection, deframeHead, x.edit)
	s.out = x.led.learned(s.out, s.resp.fields, x.up.backend)
	s.out = append(s.out, document...)
	headSent := false
	for {
		for len(s.out) < coalesce && !rb.done {
			piece, err := rb.buffered(coalesce)
			if err != nil && !headSent {
				return s.failed(ctx, x, err)
			}
			if err != nil {
				return x.cut(err)
			}
			if piece == nil {
				break
			}
			s.out = appendPiece(s.out, piece, chunked && !deframe)
		}
		if rb.done && chunked && !deframe {
			s.out = append(s.out, lastChunk...)
		}
		more := len(s.out) >= coalesce // there may be more in the buffer
		if len(s.out) > 0 {
			if err := s.write(s.out, x.vdir.ResponseIdle); err != nil {
				return x.abandon(err)
			}
			x.touch()
			s.out, headSent = s.out[:0], true
		}
		if rb.done {
			break
		}
		if more {
			continue
		}
		if err := x.fillUpstream(); err == io.EOF && rb.kind == untilClose {
			break
		} else if err == io.EOF {
			return x.cut(io.ErrUnexpectedEOF)
		} else if err != nil {
			return x.cut(err)
		}
	}
	return x.finish(keep)
}

// tooMuchLeft tells, when the response's head goes out, that the client has more
// of its body to send than will be carried behind an early response. A body that
// was announced with Expect and never begun costs nothing to wait for.
func (x *exchange) tooMuchLeft() bool {
	s := x.s
	if !x.started || s.head.contentLength < 0 {
		return false
	}
	if x.bodyHeldBack() {
		return false
	}
	return s.head.contentLength-x.moved.Load() > x.drain
}

// drainLimit is how much of the body is carried behind this early response. It looks
// into the response's head, which is there only until the response's body is read.
func (x *exchange) drainLimit() int64 {
	if s := x.s; s.resp.status == http.StatusUnauthorized && (s.head.identity || s.resp.challengesConnection()) {
		return loginDrainLimit
	}
	return drainLimit
}

// finish ends an exchange whose response is complete. If the request is not, its
// rest is carried to the backend within limits, so that the next request starts
// where both sides expect it; otherwise both connections close.
func (x *exchange) finish(keep bool) (bool, error) {
	s := x.s
	if x.started {
		if keep && !x.bodySent() {
			x.awaitBody()
		}
		if !x.bodySent() {
			keep = false
			if !x.gone.Load() {
				s.ev.cause = "response before the request was complete; its rest was not waited for"
			}
			x.up.close() // also frees an uplink that is stuck in a write
		}
		x.stopUplink()
	}
	s.ev.in = x.moved.Load()
	if keep && x.up.in.buffered() > 0 {
		s.ev.fail(errUnasked)
		keep = false
	}
	keep = keep && !x.gone.Load()
	s.lingerDue = !keep && !x.gone.Load()
	return keep, nil
}

// awaitBody gives the client the time to send the rest of its body.
func (x *exchange) awaitBody() {
	silence := drainTime
	if x.bodyHeldBack() {
		silence = x.vdir.RequestIdle // the client may take its time to send it after all
	}
	limit := x.moved.Load() + x.drain
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for x.idleFor() < silence && x.moved.Load() <= limit {
		select {
		case <-x.bodyDone:
			return
		case <-x.ended:
			return
		case <-tick.C:
		}
	}
}

// bodyHeldBack tells whether the client announced its body with Expect and was
// not told to send it.
func (x *exchange) bodyHeldBack() bool {
	return x.s.head.expect100 && x.moved.Load() == 0 && !x.wroteContinue
}

func (x *exchange) bodySent() bool {
	select {
	case <-x.bodyDone:
		return true
	default:
		return false
	}
}

// cut ends an exchange whose response broke off after its head was sent. The
// client is left without the end it was promised, so that it sees the
// truncation: nothing is padded, no error is injected.
func (x *exchange) cut(err error) (bool, error) {
	x.up.close()
	x.stopUplink()
	x.s.ev.in = x.moved.Load()
	if x.gone.Load() {
		return false, errClientGone
	}
	x.s.raw.Close() // without close_notify: the stream did not end, it broke
	if m := x.s.head.method; errors.Is(err, io.ErrUnexpectedEOF) && (m == "RPC_OUT_DATA" || m == "RPC_IN_DATA") {
		return false, errChannelEnded
	}
	return false, fmt.Errorf("response from backend %s: %w", x.up.backend.Name, x.up.cause(err))
}

// abandon ends an exchange because the client does not take the response.
func (x *exchange) abandon(err error) (bool, error) {
	x.up.close()
	x.stopUplink()
	x.s.ev.in = x.moved.Load()
	return false, err
}

// failed ends an exchange before any byte of a final response was sent.
func (s *session) failed(ctx context.Context, x *exchange, err error) (bool, error) {
	err = x.up.cause(err)
	x.up.close()
	x.stopUplink()
	s.ev.in = x.moved.Load()
	var he *headError
	switch {
	case x.gone.Load():
		return false, errClientGone
	case ctx.Err() != nil:
		return false, errShutdown
	case errors.Is(x.bodyErr, errClientStalled):
		return s.fail(http.StatusRequestTimeout, x.bodyErr)
	case errors.As(x.bodyErr, &he): // a malformed body: the client's fault
		return s.fail(he.status, x.bodyErr)
	case errors.Is(err, errBackendSilent):
		return s.fail(http.StatusGatewayTimeout, fmt.Errorf("backend %s: %w", x.up.backend.Name, err))
	case x.up.used && errors.Is(err, errServerLost):
		return false, fmt.Errorf("backend %s: %w", x.up.backend.Name, err)
	case x.up.used && !errors.As(err, &he):
		// An idle backend connection may close just when a request is on its way.
		// Repeating the request on a new connection could repeat its effect and
		// would lose the identity bound to the old one; closing tells the
		// client what happened, and it knows whether to repeat.
		return false, fmt.Errorf("backend %s closed the connection before answering: %w", x.up.backend.Name, err)
	}
	return s.fail(http.StatusBadGateway, fmt.Errorf("response from backend %s: %w", x.up.backend.Name, err))
}

// readResponseHead returns the next response head.
func (x *exchange) readResponseHead() ([]byte, error) {
	var scan headScanner
	for {
		if x.up.in.buffered() > 0 {
			data, err := scan.next(&x.up.in)
			if err != nil {
				return nil, malformed("response head: %v", err)
			}
			if data != nil {
				return data, nil
			}
		}
		if err := x.fillUpstream(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// touch and idleFor count on the monotonic clock: a step of the wall clock must not
// end every long poll at once.
func (x *exchange) touch() { x.last.Store(int64(time.Since(x.begin))) }

func (x *exchange) idleFor() time.Duration { return time.Since(x.begin) - time.Duration(x.last.Load()) }

// fillUpstream reads once from the backend. A wait of any length is a wait on the
// client too: from then on the uplink notices if it leaves.
func (x *exchange) fillUpstream() error {
	s, up := x.s, x.up
	for {
		wait := x.vdir.ResponseIdle - x.idleFor()
		if wait <= 0 {
			return errBackendSilent
		}
		owed := x.continueOwed()
		if owed {
			wait = min(wait, max(expectWait-x.idleFor(), time.Millisecond))
		}
		deadline := time.Now().Add(wait)
		up.conn.SetReadDeadline(deadline)
		err := x.fillWatched()
		if !isTimeout(err) {
			if err == nil {
				x.touch()
			}
			return err
		}
		if time.Now().Before(deadline) {
			// crypto/tls repeats for ever the error that a renegotiation ended with.
			return errRenegotiation
		}
		if owed && x.continueOwed() && x.idleFor() >= expectWait {
			x.wroteContinue = true
			if err := s.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), x.vdir.RequestIdle); err != nil {
				x.clientLeft()
				return err
			}
		}
	}
}

// fillWatched reads from the backend, and has the client watched if that takes more
// than a moment. The moment is a timer's, not a read deadline's: a deadline that
// falls into a renegotiation breaks the connection.
func (x *exchange) fillWatched() error {
	if x.started {
		return x.up.in.fill()
	}
	watched := make(chan struct{})
	timer := time.AfterFunc(quickWait, func() {
		x.startUplink()
		close(watched)
	})
	err := x.up.in.fill()
	if !timer.Stop() {
		<-watched
	}
	return err
}

// continueOwed tells whether the client still waits for 100 Continue before it
// sends its body.
func (x *exchange) continueOwed() bool {
	return x.hasBody && x.bodyHeldBack() && x.s.ev.status == 0 // no response has begun
}
