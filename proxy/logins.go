package proxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/autodgate/autodgate/internal/throttle"
)

// login is what a request says of who logs in with it. Only credentials
// that decide count: the first legs of NTLM are answered with 401 in the ordinary
// course of things.
type login struct {
	basic    bool     // Basic credentials
	bound    bool     // the last leg of NTLM or Negotiate, which log the connection in
	form     bool     // a login form
	proven   bool     // Basic credentials that were right a moment ago on this connection
	typed    []string // the names as they came
	hash     uint64   // of Basic credentials
	guesses  bool     // a password is being tried: not so with Kerberos, whose tickets come from a domain controller
	readable bool     // of a form: its fields can be read
	proves   bool     // 2xx says that it is right
	failures int      // with this one, of the user or the source
	several  bool     // Authorization lines: nobody knows which of them a backend takes
}

const (
	// maxForm is up to which size a login form is looked at. Exchange's own have less
	// than 1 KiB, but for the URL in the field destination.
	maxForm = 8 << 10
	// maxNames is how many names one request is counted under. No client sends two.
	maxNames = 4
	// loginWait is for how long a login waits for others of the same user to end.
	loginWait = 10 * time.Second
	// unreadable stands for all the names that cannot be read where one has to be.
	unreadable = "\x00"
)

// admit looks at the credentials of a request and tells whether a backend may see
// them. After too many failures they are answered here, with 429: a 401 would make
// clients ask their users for passwords that are right. If it returns false, the
// request has been answered. The head's fields are gone afterwards.
func (s *session) admit(ctx context.Context, rt *route) (ok, keep bool, err error) {
	form := rt.form(s.head.method)
	if !s.head.authorization && !form {
		return true, true, nil
	}
	l := s.credentials()
	l.proves = rt.proves(s.head.method)
	if form {
		l.form, l.guesses = true, true
		l.readable = l.readable && s.head.contentLength > 0 && s.head.contentLength <= maxForm
		if l.readable {
			if err := s.awaitForm(s.formTime(rt)); err != nil {
				if errors.Is(err, errClientStalled) {
					keep, err = s.fail(http.StatusRequestTimeout, err)
				}
				return false, keep, err
			}
			names, err := formNames(s.in.buf[s.in.r : s.in.r+int(s.head.contentLength)])
			l.readable = err == nil
			l.typed = append(l.typed, names...)
		}
		if !l.readable || len(l.typed) == 0 {
			l.typed = append(l.typed, unreadable)
		}
	}
	s.login = l
	if l.proven || !l.guesses {
		return true, true, nil
	}
	patient, cancel := context.WithTimeout(ctx, loginWait)
	defer cancel()
	source, wait := s.ev.from().Addr(), time.Duration(0)
	names := make([]string, len(l.typed))
	for i, typed := range l.typed {
		if names[i] = typed; typed != unreadable {
			names[i] = throttle.Name(typed)
		}
	}
	if s.attempt, wait, err = s.srv.opts.Logins.Begin(patient, source, strings.ToLower(strings.Join(l.typed, "\n")), names...); err == nil && wait == 0 {
		return true, true, nil
	}
	if ctx.Err() != nil {
		return false, false, errShutdown
	}
	if err != nil {
		wait = loginWait // others of this user are being checked, and take their time
	}
	s.log.Info().Stringer("source", source).Dur("wait_ms", wait).Msg("login refused after too many failures")
	s.log.Debug().Stringer("source", source).Strs("user", clipAll(l.typed)).Msg("login refused after too many failures")
	refused := refuse(http.StatusTooManyRequests, "too many failed logins")
	refused.retryAfter = wait
	keep, err = s.answer(ctx, refused)
	return false, keep, err
}

// awaitForm waits until the whole of a small form is buffered, so that no backend
// sees a name before it is known whether it may.
func (s *session) awaitForm(by time.Time) error {
	if s.head.expect100 && s.in.buffered() == 0 {
		s.continued = true
		if err := s.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), s.srv.opts.RequestHeadTimeout); err != nil {
			return err
		}
	}
	s.conn.SetReadDeadline(by)
	defer s.conn.SetReadDeadline(time.Time{})
	for int64(s.in.buffered()) < s.head.contentLength {
		if err := s.in.fill(); isTimeout(err) {
			return errClientStalled
		} else if err != nil {
			return errClientGone
		}
	}
	return nil
}

// answered looks at what a backend says to a login.
func (s *session) answered(vdir *VirtualDirectory) {
	l := &s.login
	if !l.basic && !l.bound && !l.form {
		return
	}
	v := l.verdict(&s.resp)
	if l.basic && !l.form {
		switch {
		case v == throttle.Accepted:
			s.proven = l.hash
		case s.resp.status == http.StatusUnauthorized:
			s.proven = 0
		}
	}
	source := s.ev.from().Addr()
	var f throttle.Failures
	switch {
	case s.attempt != nil:
		f = s.attempt.End(v)
	case v == throttle.Rejected && !l.proven:
		f = s.srv.opts.Logins.Reject(source)
	default:
		return
	}
	if v != throttle.Rejected {
		return
	}
	l.failures = max(f.User, f.Source)
	msg := "login failed"
	if f.Full {
		msg = "login failed, and was the last one for now: further ones are refused"
	}
	s.log.Warn().Stringer("source", source).Int("user_failures", f.User).Int("source_failures", f.Source).Str("virtual_directory", vdir.Name).Msg(msg)
	s.log.Debug().Stringer("source", source).Strs("user", clipAll(l.typed)).Msg("login failed")
}

// verdict reads a response to a login.
func (l *login) verdict(r *responseHead) throttle.Verdict {
	switch {
	case r.status == http.StatusUnauthorized:
		offered := r.challenges()
		switch {
		case l.bound && offered.leg:
			return throttle.Undecided // one more
		case !offered.any, l.form, l.basic && offered.basic, l.bound && offered.bound:
			return throttle.Rejected
		}
		return throttle.Undecided // a way of logging in that the server does not have: nothing was checked
	case l.form:
		return formVerdict(r, len(l.typed) == 1 && !l.several)
	case r.status/100 == 2 && l.proves && len(l.typed) == 1 && !l.several:
		return throttle.Accepted
	}
	return throttle.Undecided
}

// offer is what the challenges of a response ask for.
type offer struct {
	any, basic, bound bool
	leg               bool // the handshake of a bound login goes on
}

// challenges reads the WWW-Authenticate lines. What cannot be told apart asks for
// everything.
func (h *responseHead) challenges() (o offer) {
	for i := range h.fields {
		f := &h.fields[i]
		if !f.is("WWW-Authenticate") {
			continue
		}
		o.any = true
		list, err := splitChallenges(string(f.value))
		if err != nil {
			o.basic, o.bound = true, true
		}
		for _, c := range list {
			scheme, rest := cutScheme([]byte(c))
			switch {
			case equalFold(scheme, "Basic"):
				o.basic = true
			case bindsConnection(scheme):
				o.bound = true
				o.leg = o.leg || len(rest) > 0
			}
		}
	}
	return o
}

// cutScheme splits credentials or a challenge behind its scheme.
func cutScheme(value []byte) (scheme, rest []byte) {
	n := 0
	for n < len(value) && tokenChars[value[n]] {
		n++
	}
	return value[:n], bytes.TrimLeft(value[n:], " \t")
}

// proves tells whether 2xx to a request of the route proves that its credentials
// are right.
func (rt *route) proves(method string) bool {
	return (method == "POST" || strings.HasPrefix(method, "RPC_")) && slices.Contains(rt.vdir.Logins, strings.TrimSuffix(rt.path, "/"))
}

// formVerdict reads the response to a login form: Exchange answers a wrong password
// with a redirect to the form, with reason=2, and a right one with its cookies.
// certain tells whether it is known whose name was in the form.
func formVerdict(r *responseHead, certain bool) throttle.Verdict {
	if r.status/100 != 3 {
		return throttle.Undecided
	}
	cookie := false
	for i := range r.fields {
		switch f := &r.fields[i]; {
		case f.is("Location"):
			_, query, _ := strings.Cut(strings.ToLower(string(f.value)), "?")
			for param := range strings.SplitSeq(query, "&") {
				if param == "reason=2" {
					return throttle.Rejected
				}
			}
		case f.is("Set-Cookie"):
			name, value, _ := bytes.Cut(f.value, []byte("="))
			value, _, _ = bytes.Cut(value, []byte(";"))
			cookie = cookie || bytes.EqualFold(name, []byte("cadata")) && len(value) > 2
		}
	}
	if cookie && certain {
		return throttle.Accepted
	}
	return throttle.Undecided
}

// endLogin ends what bridge began.
func (s *session) endLogin() {
	if s.attempt != nil {
		s.attempt.End(throttle.Undecided)
		s.attempt = nil
	}
	s.login, s.continued = login{}, false
}

// credentials reads the Authorization lines of the head at hand, and whether its
// body is a form whose fields can be read.
func (s *session) credentials() (l login) {
	lines := 0
	for i := range s.head.fields {
		f := &s.head.fields[i]
		switch {
		case f.is("Authorization"):
			if lines++; lines > 1 {
				l.several, s.proven = true, 0
			}
			switch scheme, token := cutScheme(f.value); {
			case equalFold(scheme, "Basic"):
				l.hash = maphash.Bytes(loginSeed, f.value)
				l.basic, l.guesses = true, true
				if l.proven = l.hash == s.proven && s.proven != 0; !l.proven {
					l.typed = append(l.typed, basicName(token))
				}
			case bindsConnection(scheme):
				l.readBound(decodeToken(token))
			}
		case f.is("Content-Type"):
			l.readable = plainForm(f.value)
		}
	}
	if l.typed = slices.Compact(l.typed); len(l.typed) > maxNames {
		l.typed = []string{unreadable}
	}
	if l.several {
		l.proven = false
		if len(l.typed) == 0 && l.guesses {
			l.typed = []string{unreadable}
		}
	}
	return l
}

// loginSeed is for the credentials that a session remembers to have been right.
var loginSeed = maphash.MakeSeed()

// plainForm tells whether a Content-Type is of a form in an encoding that everybody
// reads alike: ASP.NET decodes fields by the charset that a client names.
func plainForm(value []byte) bool {
	kind, params, _ := strings.Cut(strings.ToLower(string(value)), ";")
	params = strings.Trim(params, " \t")
	return strings.Trim(kind, " \t") == "application/x-www-form-urlencoded" && (params == "" || params == "charset=utf-8" || params == `charset="utf-8"`)
}

// basicName returns the user name of Basic credentials (RFC 7617).
func basicName(token []byte) string {
	name, _, ok := bytes.Cut(decodeToken(token), []byte(":"))
	if !ok || len(name) == 0 {
		return unreadable
	}
	if utf8.Valid(name) {
		return string(name)
	}
	latin1 := make([]rune, len(name))
	for i, c := range name {
		latin1[i] = rune(c)
	}
	return string(latin1)
}

// decodeToken decodes base64 as leniently as any server may: a name that is hidden
// from us but not from a backend would not be counted.
func decodeToken(token []byte) []byte {
	clean := make([]byte, 0, len(token))
	for _, c := range token {
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '+' || c == '/' {
			clean = append(clean, c)
		}
	}
	if len(clean)%4 == 1 {
		clean = clean[:len(clean)-1]
	}
	n, err := base64.RawStdEncoding.Decode(clean, clean)
	if err != nil {
		return nil
	}
	return clean[:n]
}

// readBound reads a token of NTLM or Negotiate: NTLM stands in it in clear, also
// inside SPNEGO (RFC 4178); without it, it is Kerberos, which is done in one leg.
func (l *login) readBound(token []byte) {
	signature := []byte("NTLMSSP\x00")
	i := bytes.Index(token, signature)
	if i < 0 {
		l.bound = l.bound || len(token) > 0
		return
	}
	for ; i >= 0; i = bytes.Index(token, signature) {
		token = token[i:]
		// [MS-NLMP] section 2.2.1.3: type 3 is the one with the answer to the challenge.
		if len(token) >= 12 && binary.LittleEndian.Uint32(token[8:]) == 3 {
			if name := ntlmName(token); name != "" { // without a name it is nobody's password
				l.bound, l.guesses = true, true
				l.typed = append(l.typed, name)
			}
		}
		token = token[len(signature):]
	}
}

// ntlmName returns DOMAIN\user of an AUTHENTICATE_MESSAGE ([MS-NLMP] section
// 2.2.1.3), "" if it names nobody.
func ntlmName(m []byte) string {
	text := func(at int) (string, bool) {
		if len(m) < at+8 {
			return "", false
		}
		n, start := int(binary.LittleEndian.Uint16(m[at:])), uint64(binary.LittleEndian.Uint32(m[at+4:]))
		if start+uint64(n) > uint64(len(m)) {
			return "", false
		}
		b := m[start : int(start)+n]
		unicode := len(m) < 64 || m[60]&1 != 0 // NTLMSSP_NEGOTIATE_UNICODE
		if !unicode {
			return string(b), true
		}
		units := make([]uint16, len(b)/2)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(b[2*i:])
		}
		return string(utf16.Decode(units)), true
	}
	domain, _ := text(28)
	user, ok := text(36)
	switch {
	case !ok:
		return unreadable
	case user == "":
		return ""
	case domain == "":
		return user
	}
	return domain + `\` + user
}

// formNames returns the values of the field username, decoded as ASP.NET does.
func formNames(form []byte) (names []string, err error) {
	for pair := range bytes.SplitSeq(form, []byte("&")) {
		key, value, _ := bytes.Cut(pair, []byte("="))
		name, err := formText(key)
		if err != nil {
			return nil, err
		}
		if !strings.EqualFold(strings.TrimSpace(name), "username") {
			continue // not even decoded: the password is among them
		}
		if name, err = formText(value); err != nil {
			return nil, err
		}
		if len(names) == maxNames {
			return nil, errFormEscape
		}
		names = append(names, name)
	}
	return names, nil
}

var errFormEscape = errors.New("malformed escape in a form")

// formText decodes a key or value of a form, with the %uXXXX that only ASP.NET knows.
func formText(b []byte) (string, error) {
	var out []byte
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '+':
			out = append(out, ' ')
		case c == '%' && i+5 < len(b) && b[i+1]|0x20 == 'u':
			n, err := strconv.ParseUint(string(b[i+2:i+6]), 16, 16)
			if err != nil {
				return "", errFormEscape
			}
			out = utf8.AppendRune(out, rune(n))
			i += 5
		case c == '%':
			if i+2 >= len(b) || !isHex(b[i+1]) || !isHex(b[i+2]) {
				return "", errFormEscape
			}
			out = append(out, unhex(b[i+1])<<4|unhex(b[i+2]))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return string(out), nil
}

// clipAll shortens names for the log.
func clipAll(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = clip(n)
	}
	return out
}
