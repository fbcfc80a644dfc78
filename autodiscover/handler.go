package autodiscover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/internal/throttle"
	"github.com/rs/zerolog"
)

// The paths of the dialects, in any letter case. Below v2Path there is more.
const (
	poxPath = "/autodiscover/autodiscover.xml"
	svcPath = "/autodiscover/autodiscover.svc"
	v2Path  = "/autodiscover/autodiscover.json"
)

// DefaultRealm is the realm of the login where none is configured.
const DefaultRealm = "autodiscover"

// Options says what a [Handler] answers, and to whom.
type Options struct {
	// Domains are the mail domains answered for, by name in any letter case.
	Domains map[string]Domain

	// Directory knows the mailboxes and their passwords. Without one no login is
	// asked for, and every address of a domain gets the same answer.
	Directory directory.Directory

	// Hosts are the names under which this handler is reached, on port 443. A client
	// that asks where POX is answered is led to the one that it asked at; where that
	// is none of them, to the server of the domain.
	Hosts []string

	// InternalNetworks are where clients are told the internal URLs.
	InternalNetworks []netip.Prefix

	// Throttle bounds failed logins. Who makes a new handler for a new configuration
	// hands on the old one's, so that nobody is given new tries. Nil: one of its own,
	// with the default limits.
	Throttle *throttle.Throttle

	Logger zerolog.Logger
	Now    func() time.Time // for error documents and limits; nil is time.Now
	Realm  string           // shown in the login prompt; empty is DefaultRealm
}

// Handler answers Autodiscover requests. It expects a canonical path in URL.Path
// and the client as IP:port in RemoteAddr. It is safe for concurrent use and
// keeps no request.
type Handler struct {
	domains   map[string]*domain
	hosts     map[string]bool // in lower case
	directory directory.Directory
	internal  []netip.Prefix
	throttle  *throttle.Throttle
	log       zerolog.Logger
	now       func() time.Time
	challenge string
	serverID  uint32
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a handler. A domain that is configured in a way that cannot
// be answered gets a warning now and ErrorCode 602 later.
func NewHandler(o Options) *Handler {
	h := &Handler{
		domains:   make(map[string]*domain, len(o.Domains)),
		hosts:     make(map[string]bool, len(o.Hosts)),
		directory: o.Directory,
		internal:  o.InternalNetworks,
		log:       o.Logger,
		now:       o.Now,
		throttle:  o.Throttle,
	}
	if h.now == nil {
		h.now = time.Now
	}
	realm := o.Realm
	if realm == "" {
		realm = DefaultRealm
	}
	if h.throttle == nil {
		h.throttle = throttle.New(throttle.Limits{}, h.now)
	}
	for _, name := range o.Hosts {
		h.hosts[strings.ToLower(name)] = true
	}
	h.challenge = "Basic realm=" + quoted(realm)
	h.serverID = hashID(realm)
	for _, name := range slices.Sorted(maps.Keys(o.Domains)) {
		d := o.Domains[name]
		normal, err := directory.NormalizeDomain(name)
		if _, twice := h.domains[normal]; err != nil || twice {
			h.log.Warn().Str("domain", name).Msg("autodiscover: not a mail domain, or there twice; ignored")
			continue
		}
		h.domains[normal] = newDomain(normal, d)
		if err := h.domains[normal].unusable; err != nil && d.Action != ActionBridge {
			h.log.Warn().Str("domain", name).Err(err).Msg("autodiscover: the domain will be answered with error 602")
		}
	}
	return h
}

// quoted is s as a quoted-string (RFC 9110 section 5.6.4).
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		if c < 0x20 || c == 0x7f {
			continue
		}
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte('"')
	return b.String()
}

// reply is a finished HTTP answer. It is made as a whole before anything is
// sent, so that a failure half-way still gives a clean one.
type reply struct {
	status int
	header http.Header // keys as they go on the wire
	body   []byte
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := h.reply(r)
	for key, values := range a.header {
		w.Header()[key] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.body)
	}
}

func (h *Handler) reply(r *http.Request) (a reply) {
	defer func() {
		if p := recover(); p != nil {
			// The value itself may hold parts of the request; runtime errors do not.
			event := h.log.Error().Str("panic", fmt.Sprintf("%T", p)).Bytes("stack", debug.Stack())
			if err, ok := p.(interface {
				error
				RuntimeError()
			}); ok {
				event = event.AnErr("error", err)
			}
			event.Msg("autodiscover: panic")
			a = h.errorReply(codeServerError)
		}
	}()
	if strings.EqualFold(r.URL.Path, poxPath) {
		return h.pox(r)
	}
	if strings.EqualFold(r.URL.Path, svcPath) {
		return h.soap(r)
	}
	if rest, ok := cutPath(r.URL.Path, v2Path); ok {
		return h.v2(r, rest)
	}
	return plainReply(http.StatusNotFound, "not found")
}

// cutPath returns what follows a path of ours, in any letter case: nothing, or what
// begins with a slash.
func cutPath(path, prefix string) (rest string, ok bool) {
	if len(path) < len(prefix) || !strings.EqualFold(path[:len(prefix)], prefix) {
		return "", false
	}
	rest = path[len(prefix):]
	return rest, rest == "" || rest[0] == '/'
}

// admit lets in who has logged in, before anything of the body is read and for
// every method: clients probe with an anonymous GET and want the 401. One of its
// results is set; without a directory none is, and everybody is let in.
func (h *Handler) admit(r *http.Request, source netip.Addr) (login *directory.Mailbox, refusal *reply, err error) {
	if h.directory == nil {
		return nil, nil, nil
	}
	who := h.login(r, source)
	switch {
	case who.err != nil:
		return nil, nil, who.err
	case who.wait > 0:
		a := plainReply(http.StatusTooManyRequests, "too many failed logins")
		a.header.Set("Retry-After", strconv.Itoa(int((who.wait+time.Second-1)/time.Second)))
		return nil, &a, nil
	case who.mailbox == nil:
		a := h.loginReply()
		return nil, &a, nil
	}
	return who.mailbox, nil, nil
}

// pox answers a POX request.
func (h *Handler) pox(r *http.Request) reply {
	source := clientAddr(r)
	login, refusal, err := h.admit(r, source)
	if err != nil {
		h.logFailure(r.Context(), err)
		return h.errorReply(codeServerError)
	}
	if refusal != nil {
		return *refusal
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet, http.MethodHead:
		// Some clients look whether there is a server here; Exchange says the same.
		// Those of .NET look for the header, which elsewhere comes with the 401.
		a := h.errorReply(codeInvalidRequest)
		a.header["X-SOAP-Enabled"] = []string{"True"}
		return a
	default:
		return notAllowed("POST a request", "GET, HEAD, POST")
	}
	body, refusal := readBody(r, MaxRequestSize)
	if refusal != nil {
		return *refusal
	}

	request, err := ParseRequest(body)
	if err != nil {
		return h.refuse(source, "", failed(codeInvalidRequest, err.Error()))
	}
	// The schema decides, not the namespace of the root: ActiveSync clients send either.
	mobile := request.AcceptableResponseSchema == nsMobileSyncResponse
	switch {
	case mobile && (request.LegacyDN != "" || request.address == ""):
		// [MS-ASCMD] 2.2.3.53: the request has one EMailAddress and nothing else.
		return h.refuse(source, request.address, failed(codeInvalidRequest, "a MobileSync request without EMailAddress, or with LegacyDN"))
	case !mobile && !wantsOutlook(request.AcceptableResponseSchema):
		return h.refuse(source, request.address, failed(codeNoProvider, "unrecognised AcceptableResponseSchema"))
	}
	q := query{address: request.address, legacyDN: request.LegacyDN, login: login, host: r.Host}
	c := h.client(r, source)
	o, err := h.resolve(r.Context(), q, c)
	if err != nil {
		h.logFailure(r.Context(), err)
		o = failed(codeServerError, "the directory failed")
	}
	switch {
	case mobile && o.redirectURL != "":
		// The schema has no redirect to an URL.
		return found(o.redirectURL)
	case o.code != 0 && !mobile:
		return h.refuse(source, q.address, o)
	case o.code != 0:
		h.logRefusal(source, q.address, o)
	default:
		h.log.Debug().Stringer("source", source).Str("address", q.address).Msg("autodiscover: answered")
	}
	if mobile {
		return documentReply(renderMobileSync(o, q))
	}
	return documentReply(renderOutlook(o, c))
}

// client reads what a client says about itself. User-Agent is not asked: it would
// make the answer depend on something that proxies and updates change.
func (h *Handler) client(r *http.Request, source netip.Addr) client {
	var c client
	for _, p := range h.internal {
		c.inside = c.inside || p.Contains(source)
	}
	// An invalid value counts as none ([MS-OXDSCLI] 3.2.5.1).
	if v := r.Header.Values("X-MapiHttpCapability"); len(v) == 1 {
		n, err := strconv.ParseUint(strings.TrimSpace(v[0]), 10, 31)
		c.mapiHTTP = err == nil && n > 0
	}
	for _, v := range r.Header.Values("X-ClientCanHandle") {
		for _, word := range strings.Split(v, ",") {
			word = strings.TrimSpace(word)
			c.exHTTPInfo = c.exHTTPInfo || strings.EqualFold(word, "ExHttpInfo")
			c.negotiate = c.negotiate || strings.EqualFold(word, "Negotiate")
		}
	}
	return c
}

// readBody reads a request body of at most limit bytes, in whole KiB, and nothing
// beyond.
func readBody(r *http.Request, limit int64) ([]byte, *reply) {
	for _, coding := range r.Header.Values("Content-Encoding") {
		// A small body could hold a large one.
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			a := plainReply(http.StatusUnsupportedMediaType, "send the request uncompressed")
			a.header.Set("Accept-Encoding", "identity")
			return nil, &a
		}
	}
	tooLarge := plainReply(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d KiB", limit>>10))
	if r.ContentLength > limit {
		return nil, &tooLarge
	}
	if r.Body == nil {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	var tooMuch *http.MaxBytesError
	if int64(len(body)) > limit || errors.As(err, &tooMuch) {
		return nil, &tooLarge
	}
	if err != nil {
		broken := plainReply(http.StatusBadRequest, "the request ended too early")
		return nil, &broken
	}
	return body, nil
}

// refuse answers with an error document and says why in the log.
func (h *Handler) refuse(source netip.Addr, address string, o outcome) reply {
	h.logRefusal(source, address, o)
	return h.errorReply(o.code)
}

func (h *Handler) logRefusal(source netip.Addr, address string, o outcome) {
	h.log.Debug().Stringer("source", source).Str("address", address).Int("error_code", int(o.code)).
		Str("reason", o.why).Msg("autodiscover: refused")
}

// logFailure says that the directory failed, unless it was the client that left.
func (h *Handler) logFailure(ctx context.Context, err error) {
	if ctx.Err() != nil {
		// The client has gone; nobody reads this.
		h.log.Debug().Msg("autodiscover: the client left")
	} else {
		h.log.Error().Err(err).Msg("autodiscover: the directory failed")
	}
}

func (h *Handler) errorReply(code errorCode) reply {
	return documentReply(renderError(code, h.now(), h.serverID))
}

// documentReply has the Content-Type in the one spelling that all clients take,
// DavMail to the letter.
func documentReply(body []byte) reply {
	return reply{http.StatusOK, http.Header{
		"Content-Type":  {"text/xml; charset=utf-8"},
		"Cache-Control": {"private"},
	}, body}
}

// loginReply asks for a login. The keys bypass canonicalisation to keep their
// letter case: some clients look for it. X-SOAP-Enabled leads .NET clients to
// autodiscover.svc on the same host. Its value means nothing to them, only that it is
// there; so the headers of what is not answered here, such as WS-Security, are left out.
func (h *Handler) loginReply() reply {
	return reply{http.StatusUnauthorized, http.Header{
		"WWW-Authenticate": {h.challenge},
		"X-SOAP-Enabled":   {"True"},
	}, nil}
}

// found sends the client to an URL. It is not to be remembered: what a cache knows
// outlives the move back.
func found(location string) reply {
	return reply{http.StatusFound, http.Header{"Location": {location}, "Cache-Control": {"no-store"}}, nil}
}

func notAllowed(text, allow string) reply {
	a := plainReply(http.StatusMethodNotAllowed, text)
	a.header.Set("Allow", allow)
	return a
}

func plainReply(status int, text string) reply {
	return reply{status, http.Header{
		"Content-Type": {"text/plain; charset=utf-8"},
	}, []byte(text + "\n")}
}
