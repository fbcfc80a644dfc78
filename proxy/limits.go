package proxy

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// errBodyTooLarge ends a request whose body is larger than its directory allows. An
// announced length is refused before a backend is troubled; a chunked body is cut
// where it passes the limit.
var errBodyTooLarge = &headError{http.StatusRequestEntityTooLarge, "request body larger than max_body of the virtual directory"}

// formTime gives the body of a login form as a whole the time that a request head
// has, so that a client that sends it byte by byte holds no backend connection,
// while the IN channel of Outlook Anywhere may be as slow as it likes.
func (s *session) formTime(rt *route) (by time.Time) {
	if rt.form(s.head.method) {
		by = s.ev.start.Add(s.srv.opts.RequestHeadTimeout)
	}
	return by
}

// form tells whether a request posts a login form.
func (rt *route) form(method string) bool {
	return method == "POST" && slices.Contains(rt.vdir.Forms, rt.path)
}

// neverInClear tells whether requests for a path may go to a backend over TLS
// alone: whole mailboxes are moved through mrsproxy.svc, which Exchange does not
// support offloaded.
func neverInClear(path string) bool {
	const mrsProxy = "/ews/mrsproxy.svc"
	return strings.HasPrefix(path, mrsProxy) && (len(path) == len(mrsProxy) || path[len(mrsProxy)] == '/')
}

// plain tells whether a backend of the site is spoken to in clear.
func (s *Site) plain() bool {
	return slices.ContainsFunc(s.Backends, func(b *Backend) bool { return b.TLS == nil })
}
