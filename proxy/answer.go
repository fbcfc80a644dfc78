package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLocalBody bounds the request body that a local handler may read. Real
// Autodiscover requests have less than 1 KiB, SOAP ones get 64 (AUTODISCOVER.md
// section 9).
const maxLocalBody = 64 << 10

// answer answers a request here: a status, a redirect, or a handler's response.
// It returns whether the client connection lives on.
func (s *session) answer(ctx context.Context, rt route) (keep bool, err error) {
	h := &s.head
	rb := &localBody{s: s, body: requestBody(h, &s.in), limit: maxLocalBody}
	var status int
	var header http.Header
	var body []byte
	switch rt.action {
	case actStatus:
		status, header = rt.status, http.Header{"Cache-Control": {"no-store"}}
		if status == http.StatusRequestEntityTooLarge {
			body = []byte(http.StatusText(status) + "\n") // some clients show it
		}
		if rt.why != "" {
			s.ev.cause = rt.why
		}
		if rt.allow != nil {
			header["Allow"] = []string{strings.Join(rt.allow, ", ")}
		}
		if rt.retryAfter > 0 {
			header["Retry-After"] = []string{strconv.Itoa(int((rt.retryAfter + time.Second - 1) / time.Second))}
		}
	case actRedirect:
		// 302, and not to be kept: a 301 outlives the day the target moves
		// (AUTODISCOVER.md section 1.3).
		status, header = http.StatusFound, http.Header{"Location": {rt.location}, "Cache-Control": {"no-cache, no-store"}}
	case actHandler:
		status, header, body = s.callHandler(ctx, rt.handler, rb)
	}
	if rb.broken != nil {
		var he *headError
		if !errors.As(rb.broken, &he) {
			s.ev.in = rb.taken
			return false, errClientGone
		}
		s.ev.cause = he.reason
		status, header, body = he.status, nil, []byte(he.reason+"\n")
	}
	// What could not be read for certain is not followed by anything.
	doubt := rt.action == actStatus && (rt.status == http.StatusBadRequest || rt.status == http.StatusTooManyRequests)
	keep = h.persistent() && !doubt && status != http.StatusRequestEntityTooLarge && !s.srv.closing.Load() && rb.broken == nil
	switch {
	case rb.body.done, rb.body.kind == lengthBody && rb.body.left <= drainLimit, rb.body.kind == chunkedBody:
	default:
		keep = false // more is coming than is worth reading
	}
	s.ev.status = status
	connection := ""
	if !keep {
		connection = "close"
	} else if h.minor == 0 {
		connection = "keep-alive"
	}
	s.ev.in = rb.taken
	s.out = appendLocal(s.out[:0], status, s.srv.date(), header, body, connection, h.method == "HEAD")
	if err := s.write(s.out, s.srv.opts.RequestHeadTimeout); err != nil {
		return false, err
	}
	if keep {
		keep = rb.drain()
		s.ev.in = rb.taken
	}
	if !keep {
		s.lingerDue = true
	}
	return keep, nil
}

// fail answers a request that could not be bridged. The client learns the status
// alone, the log the cause; the connection closes, because what either side has
// sent is no longer known.
func (s *session) fail(status int, cause error) (bool, error) {
	s.ev.fail(cause)
	s.ev.status = status
	s.out = appendLocal(s.out[:0], status, s.srv.date(), http.Header{"Cache-Control": {"no-store"}},
		[]byte(http.StatusText(status)+"\n"), "close", s.head.method == "HEAD")
	if err := s.write(s.out, s.srv.opts.RequestHeadTimeout); err != nil {
		return false, err
	}
	s.lingerDue = true
	return false, nil
}

// callHandler runs an http.Handler for the request at hand and returns what it
// answered. The answer is collected whole: local answers are small.
func (s *session) callHandler(ctx context.Context, handler http.Handler, rb *localBody) (int, http.Header, []byte) {
	h := &s.head
	if h.contentLength > maxLocalBody {
		return http.StatusRequestEntityTooLarge, nil, []byte("request body too large\n")
	}
	r, err := s.localRequest(ctx, rb)
	if err != nil {
		return http.StatusBadRequest, nil, []byte("malformed request target\n")
	}
	w := &localResponse{header: http.Header{}}
	if err := w.run(handler, r); err != nil {
		s.ev.fail(err)
		return http.StatusInternalServerError, nil, nil
	}
	if rb.tooLarge && w.status < 400 {
		return http.StatusRequestEntityTooLarge, nil, []byte("request body too large\n")
	}
	return w.status, w.header, w.body.Bytes()
}

// localRequest makes an *http.Request of the head at hand. URL.Path is the
// canonical path on which the request was routed; RequestURI is as sent.
func (s *session) localRequest(ctx context.Context, rb *localBody) (*http.Request, error) {
	h := &s.head
	rawPath, rawQuery, _ := strings.Cut(h.target, "?")
	path, err := canonicalPath(rawPath)
	if err != nil {
		return nil, err
	}
	r := &http.Request{
		Method: h.method, RequestURI: h.target,
		URL:   &url.URL{Path: path, RawQuery: rawQuery},
		Proto: "HTTP/1." + strconv.Itoa(h.minor), ProtoMajor: 1, ProtoMinor: h.minor,
		Header: make(http.Header, len(h.fields)), Host: h.authority,
		ContentLength: max(h.contentLength, 0), Body: io.NopCloser(rb),
		RemoteAddr: s.ev.from().String(),
	}
	if h.chunked {
		r.ContentLength = -1
	}
	for i := range h.fields {
		f := &h.fields[i]
		if f.is("Host") || dropped(f, h.nominated) || f.is("Transfer-Encoding") || claimed(f.name) {
			continue
		}
		r.Header.Add(string(f.name), string(f.value))
	}
	return r.WithContext(ctx), nil
}

// localBody is the request body as a local handler reads it: bounded, with 100
// Continue sent when it is first read and was asked for.
type localBody struct {
	s        *session
	body     body
	limit    int64
	taken    int64
	asked    bool
	tooLarge bool
	rest     []byte
	broken   error // a malformed body, or a client that is gone
	deadline time.Time
}

// Read implements io.Reader.
func (b *localBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		if b.body.done {
			return 0, io.EOF
		}
		if b.broken != nil {
			return 0, b.broken
		}
		if b.s.head.expect100 && !b.asked && b.taken == 0 && b.s.in.buffered() == 0 {
			b.asked = true
			if err := b.s.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), b.s.srv.opts.RequestHeadTimeout); err != nil {
				b.broken = err
				return 0, err
			}
		}
		piece, err := b.body.next(bufferSize, b.fill)
		if err == io.EOF {
			return 0, io.EOF
		}
		if err != nil {
			if isTimeout(err) {
				err = &headError{http.StatusRequestTimeout, "request body not complete in time"}
			}
			b.broken = err
			return 0, err
		}
		b.taken += int64(len(piece))
		if b.taken > b.limit || b.tooLarge {
			b.tooLarge = true
			return 0, &http.MaxBytesError{Limit: b.limit}
		}
		b.rest = piece
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// fill gives a local body as a whole the time a head has.
func (b *localBody) fill() error {
	if b.deadline.IsZero() {
		b.deadline = time.Now().Add(b.s.srv.opts.RequestHeadTimeout)
		b.s.conn.SetReadDeadline(b.deadline)
	}
	return b.s.in.fill()
}

// drain reads what a handler left of the body, so that the next request is found
// behind it; false if that is more than is worth it.
func (b *localBody) drain() bool {
	for total := 0; !b.body.done; {
		piece, err := b.body.next(bufferSize, b.fill)
		if err == io.EOF {
			break
		}
		if total += len(piece); err != nil || total > drainLimit {
			return false
		}
		b.taken += int64(len(piece))
	}
	return true
}

// localResponse is the http.ResponseWriter of local handlers.
type localResponse struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *localResponse) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. Interim responses are not passed on.
func (w *localResponse) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("status %d", status)) // as net/http does
	}
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *localResponse) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// run calls the handler; a panic is its failure, not ours.
func (w *localResponse) run(handler http.Handler, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in the answer to %s: %v", r.Method, p)
		}
	}()
	handler.ServeHTTP(w, r)
	w.WriteHeader(http.StatusOK)
	return nil
}

// appendLocal appends a response of our own with its framing. Fields are sorted,
// so that equal answers are equal bytes.
func appendLocal(dst []byte, status int, date []byte, header http.Header, body []byte, connection string, head bool) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(status)...)
	dst = append(dst, "\r\nDate: "...)
	dst = append(dst, date...)
	dst = append(dst, "\r\n"...)
	names := make([]string, 0, len(header))
	for name := range header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		switch http.CanonicalHeaderKey(name) {
		case "Content-Length", "Connection", "Transfer-Encoding", "Date", "Trailer":
			continue // ours
		}
		if !isToken([]byte(name)) {
			continue
		}
		for _, v := range header[name] {
			dst = append(dst, conventionalName(name)...)
			dst = append(dst, ": "...)
			for _, c := range []byte(v) {
				if c < ' ' && c != '\t' || c == 0x7f {
					c = ' ' // a value that a handler took from a request adds no line
				}
				dst = append(dst, c)
			}
			dst = append(dst, "\r\n"...)
		}
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		body = nil // no length would tell where it ends
	} else {
		if len(body) > 0 && header["Content-Type"] == nil {
			dst = append(dst, "Content-Type: text/plain; charset=utf-8\r\n"...)
		}
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, int64(len(body)), 10)
		dst = append(dst, "\r\n"...)
	}
	if connection != "" {
		dst = append(dst, "Connection: "...)
		dst = append(dst, connection...)
		dst = append(dst, "\r\n"...)
	}
	dst = append(dst, "\r\n"...)
	if head {
		return dst
	}
	return append(dst, body...)
}

// conventionalName undoes net/http's spelling of the names whose conventional
// letter case Exchange's clients were seen to depend on.
func conventionalName(name string) string {
	if name == strings.ToLower(name) {
		name = http.CanonicalHeaderKey(name)
	}
	switch name {
	case "Www-Authenticate":
		return "WWW-Authenticate"
	case "X-Soap-Enabled":
		return "X-SOAP-Enabled"
	}
	return name
}
