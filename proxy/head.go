package proxy

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// headError is a head that is refused, with the status a client gets for it. A
// malformed response from a backend is a headError too; its status is 502.
type headError struct {
	status int
	reason string
}

func (e *headError) Error() string { return e.reason }

func malformed(format string, args ...any) error {
	return &headError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// field is one header line. All slices point into the connection's buffer and
// are valid until it is filled again.
type field struct {
	line  []byte // as received, without CRLF: what is relayed
	name  []byte
	value []byte // without surrounding blanks
}

// is compares the field's name without regard to letter case.
func (f *field) is(name string) bool { return equalFold(f.name, name) }

// equalFold compares without regard to ASCII letter case. Equal length keeps out
// what Unicode folds to ASCII: to strings.EqualFold the Kelvin sign is a k, and
// "chun\u212aed" would be chunked to us but to no backend.
func equalFold(b []byte, s string) bool {
	return len(b) == len(s) && strings.EqualFold(string(b), s)
}

// framing is what a head says of its body and of the connection.
type framing struct {
	minor         int   // HTTP/1.minor
	contentLength int64 // -1: none
	chunked       bool
	close         bool     // Connection: close
	keepAlive     bool     // Connection: keep-alive
	upgrade       bool     // Connection: upgrade
	nominated     []string // other Connection options, lower case
}

// persistent tells whether the sender keeps the connection after this message
// (RFC 9112 section 9.3).
func (f *framing) persistent() bool {
	return !f.close && (f.minor > 0 || f.keepAlive)
}

// requestHead is a parsed request head.
type requestHead struct {
	framing
	method    string
	target    string // origin form or "*", exactly as sent, but for an absolute form's authority
	authority string // Host, or the authority of an absolute form; "" if there was none
	hostName  string // canonical, without port
	absolute  bool   // the target was absolute: its authority replaces Host (RFC 9112 section 3.2.2)
	replaced  string // absolute: the name in the Host that is replaced; "" if there was none
	fields    []field
	expect100 bool
	upgradeTo string
	// identity is set by credentials that authenticate the connection (NTLM,
	// Negotiate, Nego2) rather than the request.
	identity      bool
	authorization bool // any credentials; never their value
}

// responseHead is a parsed response head.
type responseHead struct {
	framing
	status     int
	statusLine []byte // from the status code on: code, blank, reason, as sent
	fields     []field
}

// parseRequestHead parses a whole head (with its final empty line) strictly:
// RFC 9112 without the tolerances that let two parsers disagree (PROXYING.md
// section 11.1). It reuses h.
func parseRequestHead(data []byte, h *requestHead) error {
	*h = requestHead{fields: h.fields[:0], framing: framing{contentLength: -1}}
	line, rest := cutLine(data)
	sp1 := bytes.IndexByte(line, ' ')
	sp2 := bytes.LastIndexByte(line, ' ')
	if sp1 <= 0 || sp2 == sp1 {
		return malformed("request line is not: method, blank, target, blank, version")
	}
	if !isToken(line[:sp1]) {
		return malformed("method is not a token")
	}
	h.method = methodString(line[:sp1])
	if err := parseVersion(line[sp2+1:], &h.minor); err != nil {
		return err
	}
	target := line[sp1+1 : sp2]
	if err := h.parseTarget(target); err != nil {
		return err
	}
	var err error
	if h.fields, err = parseFields(rest, h.fields); err != nil {
		return err
	}
	if err := h.parseFraming(h.fields); err != nil {
		return err
	}
	hosts := 0
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case f.is("Host"):
			if hosts++; hosts > 1 {
				return malformed("more than one Host header")
			}
			if !h.absolute {
				h.authority = string(f.value)
			}
			if len(f.value) == 0 {
				return malformed("empty Host header")
			}
			name, err := authorityName(string(f.value))
			if err != nil {
				return err
			}
			if h.absolute {
				h.replaced = name
			}
		case f.is("Expect"):
			if h.minor == 0 {
				continue // RFC 9110 section 10.1.1: an HTTP/1.0 client cannot mean it
			}
			if !equalFold(f.value, "100-continue") || h.expect100 {
				return &headError{http.StatusExpectationFailed, "Expect other than 100-continue"}
			}
			h.expect100 = true
		case f.is("Upgrade"):
			if h.upgradeTo != "" {
				h.upgradeTo += ", "
			}
			h.upgradeTo += string(f.value)
		case f.is("Authorization"):
			h.authorization = true
			h.identity = h.identity || bindsConnection(f.value)
		case framesElsewhere(f.name):
			return malformed("header %s, which some servers read with a hyphen", f.name)
		}
	}
	if hosts == 0 && h.minor > 0 {
		return malformed("no Host header")
	}
	if h.authority != "" {
		if h.hostName, err = authorityName(h.authority); err != nil {
			return err
		}
	}
	switch {
	case h.chunked && h.minor == 0:
		return malformed("Transfer-Encoding in HTTP/1.0")
	case h.method == "CONNECT" && (h.chunked || h.contentLength >= 0):
		// RFC 9110 section 9.3.6: content of CONNECT has no meaning, and so two of them.
		return malformed("CONNECT with a body")
	}
	return nil
}

// parseTarget checks the request target's form (RFC 9112 section 3.2).
func (h *requestHead) parseTarget(target []byte) error {
	for _, c := range target {
		if c <= ' ' || c == 0x7f || c == '#' {
			return malformed("character %q in the request target", c)
		}
	}
	switch {
	case len(target) == 0:
		return malformed("empty request target")
	case target[0] == '/':
		h.target = string(target)
		return nil
	case h.method == "CONNECT":
		h.target = "/" // refused by routing; the authority form goes nowhere
		return nil
	case string(target) == "*":
		if h.method != "OPTIONS" {
			return malformed("target * with a method other than OPTIONS")
		}
		h.target = "*"
		return nil
	}
	scheme, after, ok := bytes.Cut(target, []byte("://"))
	if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") {
		return malformed("request target is neither a path nor an http(s) URL")
	}
	rest := string(after)
	authority, path := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, path = rest[:i], rest[i:]
		if path[0] == '?' {
			path = "/" + path
		}
	}
	if authority == "" {
		return malformed("absolute request target without a host")
	}
	h.absolute, h.authority, h.target = true, authority, path
	return nil
}

// authorityName returns the canonical name in a Host header or authority. A port
// is checked and ignored (DESIGN: rules); user information is refused.
func authorityName(authority string) (string, error) {
	host, port := authority, ""
	if strings.HasPrefix(authority, "[") {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", malformed("unclosed bracket in Host")
		}
		addr, err := netip.ParseAddr(authority[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", malformed("brackets in Host that hold no IPv6 address")
		}
		host, port = authority[:end+1], authority[end+1:]
	} else if i := strings.IndexByte(authority, ':'); i >= 0 {
		host, port = authority[:i], authority[i:]
	}
	if port != "" {
		if len(port) > 6 {
			return "", malformed("bad port in Host")
		}
		for _, c := range port[1:] {
			if c < '0' || c > '9' {
				return "", malformed("bad port in Host")
			}
		}
		if port[0] != ':' {
			return "", malformed("bad port in Host")
		}
	}
	if !strings.HasPrefix(host, "[") {
		for i := 0; i < len(host); i++ {
			c := host[i]
			if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
				return "", malformed("character %q in Host", c)
			}
		}
	}
	name := CanonicalName(host)
	if name == "" {
		return "", malformed("empty host name in Host")
	}
	return name, nil
}

// parseResponseHead parses a backend's response head with the same strictness.
func parseResponseHead(data []byte, h *responseHead) error {
	*h = responseHead{fields: h.fields[:0], framing: framing{contentLength: -1}}
	line, rest := cutLine(data)
	if len(line) < len("HTTP/1.1 200") || line[8] != ' ' {
		return malformed("status line is not: version, blank, three digits")
	}
	if err := parseVersion(line[:8], &h.minor); err != nil {
		return malformed("status line: %v", err)
	}
	h.statusLine = line[9:]
	for i := range 3 {
		c := h.statusLine[i]
		if c < '0' || c > '9' {
			return malformed("status code is not three digits")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 || len(h.statusLine) > 3 && h.statusLine[3] != ' ' {
		return malformed("bad status code")
	}
	if !isFieldValue(h.statusLine) {
		return malformed("control character in the reason phrase")
	}
	var err error
	if h.fields, err = parseFields(rest, h.fields); err != nil {
		return err
	}
	if err := h.parseFraming(h.fields); err != nil {
		return err
	}
	if h.chunked && h.minor == 0 {
		return malformed("Transfer-Encoding in HTTP/1.0")
	}
	return nil
}

// parseVersion reads HTTP/1.0 or HTTP/1.1.
func parseVersion(v []byte, minor *int) error {
	switch string(v) {
	case "HTTP/1.1":
		*minor = 1
	case "HTTP/1.0":
		*minor = 0
	default:
		if len(v) == 8 && string(v[:5]) == "HTTP/" && v[6] == '.' && isDigit(v[5]) && isDigit(v[7]) {
			return &headError{http.StatusHTTPVersionNotSupported, "HTTP version other than 1.0 and 1.1"}
		}
		return malformed("bad HTTP version")
	}
	return nil
}

// parseFields splits header lines. The scanner has made sure that every line
// ends in CRLF and that the last one is empty.
func parseFields(data []byte, fields []field) ([]field, error) {
	for len(data) > 2 {
		var line []byte
		line, data = cutLine(data)
		colon := bytes.IndexByte(line, ':')
		if line[0] == ' ' || line[0] == '\t' {
			return fields, malformed("folded header line")
		}
		if colon <= 0 || !isToken(line[:colon]) {
			return fields, malformed("header line without a proper name before its colon")
		}
		value := bytes.Trim(line[colon+1:], " \t")
		if !isFieldValue(value) {
			return fields, malformed("control character in header %s", line[:colon])
		}
		if len(fields) == maxFields {
			return fields, errHeadTooLarge
		}
		fields = append(fields, field{line: line, name: line[:colon], value: value})
	}
	return fields, nil
}

// parseFraming reads the fields that say where the body ends and whether the
// connection lives on. Every combination that two parsers could read differently
// is refused (RFC 9112 section 6.3, PROXYING.md section 11.1).
func (f *framing) parseFraming(fields []field) error {
	for i := range fields {
		fl := &fields[i]
		switch {
		case fl.is("Content-Length"):
			if f.contentLength >= 0 {
				return malformed("more than one Content-Length")
			}
			n, ok := parseDecimal(fl.value)
			if !ok {
				return malformed("Content-Length is not a number")
			}
			f.contentLength = n
		case fl.is("Transfer-Encoding"):
			if f.chunked || !equalFold(fl.value, "chunked") {
				return malformed("Transfer-Encoding other than chunked, once")
			}
			f.chunked = true
		case fl.is("Connection"):
			for opt := range strings.SplitSeq(string(fl.value), ",") {
				switch opt = strings.ToLower(strings.Trim(opt, " \t")); opt {
				case "":
				case "close":
					f.close = true
				case "keep-alive":
					f.keepAlive = true
				case "upgrade":
					f.upgrade = true
				default:
					if len(f.nominated) == maxNominated {
						return malformed("too many Connection options")
					}
					f.nominated = append(f.nominated, opt)
				}
			}
		}
	}
	if f.chunked && f.contentLength >= 0 {
		return malformed("both Content-Length and Transfer-Encoding")
	}
	return nil
}

// framesElsewhere tells whether a name is Content-Length or Transfer-Encoding to
// servers that do not tell "_" from "-", as everything does that hands headers on
// as CGI variables (RFC 3875 section 4.1.18). To us such a line frames nothing, so
// the two would find the end of the request in different places.
func framesElsewhere(name []byte) bool {
	switch len(name) {
	case len("Content_Length"):
		return name[7] == '_' && beginsAs(name, "content-length")
	case len("Transfer_Encoding"):
		return name[8] == '_' && beginsAs(name, "transfer-encoding")
	}
	return false
}

// parseDecimal reads digits alone, up to 18 of them.
func parseDecimal(v []byte) (int64, bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range v {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// bindsConnection tells whether an Authorization value is of a scheme that makes
// the connection, not the request, belong to a user.
func bindsConnection(value []byte) bool {
	n := 0
	for n < len(value) && tokenChars[value[n]] {
		n++
	}
	switch scheme := value[:n]; n {
	case 4:
		return equalFold(scheme, "NTLM")
	case 5:
		return equalFold(scheme, "Nego2")
	case 7:
		return equalFold(scheme, "CredSSP") // remote PowerShell has these two
	case 8:
		return equalFold(scheme, "Kerberos")
	case 9:
		return equalFold(scheme, "Negotiate")
	}
	return false
}

// challengesConnection tells whether a response asks for a login that is one of
// the connection.
func (h *responseHead) challengesConnection() bool {
	for i := range h.fields {
		if f := &h.fields[i]; f.is("WWW-Authenticate") {
			if _, binds := withoutLogins(string(f.value)); binds {
				return true
			}
		}
	}
	return false
}

// hasBody tells whether a request carries a body.
func (h *requestHead) hasBody() bool { return h.chunked || h.contentLength > 0 }

// cutLine splits off the first CRLF-terminated line.
func cutLine(data []byte) (line, rest []byte) {
	i := bytes.IndexByte(data, '\n')
	return data[:i-1], data[i+1:]
}

// methodString avoids an allocation for the methods that are seen all the time.
func methodString(m []byte) string {
	switch string(m) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "HEAD":
		return "HEAD"
	case "OPTIONS":
		return "OPTIONS"
	}
	return string(m)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// tokenChars are the characters of a token (RFC 9110 section 5.6.2).
var tokenChars = func() (t [256]bool) {
	for c := range t {
		t[c] = 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

func isToken(s []byte) bool {
	for _, c := range s {
		if !tokenChars[c] {
			return false
		}
	}
	return len(s) > 0
}

// isFieldValue admits visible characters, blanks, tabs and bytes over 0x7f.
func isFieldValue(s []byte) bool {
	for _, c := range s {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// values returns the values of the fields of a name.
func (h *requestHead) values(name string) (all []string) {
	for i := range h.fields {
		if f := &h.fields[i]; f.is(name) {
			all = append(all, string(f.value))
		}
	}
	return all
}
