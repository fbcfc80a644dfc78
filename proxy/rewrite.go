package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// HostMap says by which public names clients know the names that servers use
// among themselves. It is exact: scheme, host and port. A nil map maps
// nothing.
type HostMap struct {
	urls  map[string]string // "https://cas01.contoso.local:443" → "mail.contoso.com"
	names map[string]string // "cas01.contoso.local" → "mail.contoso.com": cookies know no ports
}

// NewHostMap makes a map of entries name[:port] → public name[:port]. A name
// without a port stands for https on 443 and http on 80; with one, for both
// schemes on that port, and for one scheme alone where the port is its own.
// What is mapped becomes https, the only thing clients are served over.
func NewHostMap(entries map[string]string) (*HostMap, error) {
	m := &HostMap{urls: map[string]string{}, names: map[string]string{}}
	for _, internal := range slices.Sorted(maps.Keys(entries)) { // cas01 comes before cas01:444
		host, port, ok := splitAuthority(internal)
		external, externalPort, ok2 := splitAuthority(entries[internal])
		if !ok || !ok2 {
			return nil, fmt.Errorf("host map: %q to %q: not names with or without a port", internal, entries[internal])
		}
		if externalPort != "" && externalPort != "443" {
			external += ":" + externalPort
		}
		m.add(host, port, external)
		if unicode, err := idna.ToUnicode(host); err == nil && unicode != host {
			m.add(unicode, port, external) // IIS writes names of its own into headers as they are
		}
	}
	return m, nil
}

func (m *HostMap) add(host, port, external string) {
	for _, scheme := range []string{"http", "https"} {
		p := defaultPort(scheme)
		if port != "" && port != p {
			if port == defaultPort("http") || port == defaultPort("https") {
				continue
			}
			p = port
		}
		m.urls[scheme+"://"+host+":"+p] = external
	}
	if _, ok := m.names[host]; !ok {
		m.names[host] = external
	}
}

// External returns what the text, as a whole an absolute http(s) URL or a host
// name with or without a port, is to clients; false if the map has nothing to
// say about it.
func (m *HostMap) External(text string) (string, bool) {
	if m == nil {
		return "", false
	}
	if !strings.Contains(text, "//") {
		host, port, ok := splitAuthority(text)
		if !ok {
			return "", false
		}
		if port == "" {
			port = "443"
		}
		external, ok := m.urls["https://"+host+":"+port]
		return external, ok
	}
	u, ok := splitURL(text)
	if !ok {
		return "", false
	}
	external, ok := m.urls[u.origin()]
	return "https://" + external + u.rest, ok
}

func defaultPort(scheme string) string {
	if scheme == "http" {
		return "80"
	}
	return "443"
}

// parsedURL is an absolute URL cut in front of its path.
type parsedURL struct{ scheme, host, port, rest string }

func (u parsedURL) origin() string { return u.scheme + "://" + u.host + ":" + u.port }

// splitURL reads an absolute http(s) URL; one that begins with // is of the
// scheme of the page, which is https. What two readers could take for different
// hosts (user information, backslashes, percent signs) is not read at all: such
// a URL goes on as it came, and nothing is ever mapped because it begins alike.
func splitURL(s string) (u parsedURL, ok bool) {
	scheme, after, found := strings.Cut(s, "//")
	if !found {
		return u, false
	}
	switch u.scheme = strings.ToLower(strings.TrimSuffix(scheme, ":")); {
	case scheme == "":
		u.scheme = "https"
	case u.scheme+":" != strings.ToLower(scheme), u.scheme != "http" && u.scheme != "https":
		return u, false
	}
	authority := after
	if i := strings.IndexAny(after, "/?#"); i >= 0 {
		authority, u.rest = after[:i], after[i:]
	}
	u.host, u.port, ok = splitAuthority(authority)
	if u.port == "" {
		u.port = defaultPort(u.scheme)
	}
	return u, ok
}

// splitAuthority cuts name[:port]. The name comes back in the form in which names
// are compared, port without leading zeros, "" if there is none.
func splitAuthority(s string) (host, port string, ok bool) {
	if end := strings.IndexByte(s, ']'); strings.HasPrefix(s, "[") && end > 0 {
		addr, err := netip.ParseAddr(s[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", "", false
		}
		host, port = "["+addr.String()+"]", s[end+1:]
	} else {
		host = s
		if i := strings.LastIndexByte(s, ':'); i >= 0 {
			host, port = s[:i], s[i:]
		}
		for _, c := range host {
			if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c > 0x9f) {
				return "", "", false
			}
		}
	}
	if port != "" {
		if port[0] != ':' {
			return "", "", false
		}
		port = strings.TrimLeft(port[1:], "0")
		if n, number := parseDecimal([]byte(port)); port != "" && (!number || n > 65535) {
			return "", "", false
		}
	}
	host = CanonicalName(host)
	return host, port, host != ""
}

// nameChange is how names change on the way to one server and back.
type nameChange struct {
	hostMap *HostMap // nil: none
	// own and asked are the Host that the server got and the one that the client
	// sent. Where they differ the server calls itself by a name that may mean
	// nothing outside, and is mapped back to asked; nil and "" where they do not.
	own   *HostMap
	asked string
	// secure tells which names are served over TLS here, for servers that are spoken
	// to in clear and so believe that their clients are, too; nil for all others.
	secure func(name string) bool
}

// url returns what a URL from the server is to the client. A URL of a host that
// is nobody's here is left alone: it is where the server wants the client to go.
func (n *nameChange) url(s string) (string, bool) {
	if out, ok := n.own.External(s); ok {
		return out, true
	}
	if out, ok := n.hostMap.External(s); ok {
		return out, true
	}
	if n.secure == nil {
		return s, false
	}
	u, ok := splitURL(s)
	if !ok || u.scheme != "http" || u.port != "80" || !n.secure(u.host) {
		return s, false
	}
	if host, port, ok := splitAuthority(n.asked); ok && host == u.host && port != "" {
		u.host += ":" + port
	}
	return "https://" + u.host + u.rest, true
}

// cookieDomain returns the Domain of a cookie as the client is to have it.
func (n *nameChange) cookieDomain(s string) (string, bool) {
	name := CanonicalName(strings.TrimPrefix(s, "."))
	for _, m := range []*HostMap{n.own, n.hostMap} {
		if m == nil {
			continue
		}
		if external, ok := m.names[name]; ok {
			host, _, _ := splitAuthority(external)
			return host, true
		}
	}
	return s, false
}

// value returns the value of a response field as the client is to have it.
func (n *nameChange) value(f *field) (string, bool) {
	switch len(f.name) {
	case 7:
		if f.is("Refresh") {
			return n.refresh(string(f.value))
		}
	case 8:
		if f.is("Location") {
			return n.url(string(f.value))
		}
	case 10:
		if f.is("Set-Cookie") {
			return n.setCookie(string(f.value))
		}
	case 13:
		if f.is("X-MS-Location") {
			return n.url(string(f.value))
		}
	case 16:
		if f.is("Content-Location") {
			return n.url(string(f.value))
		}
	}
	return "", false
}

// refresh maps the URL in "5; url=https://…", a header that no standard defines
// and every browser reads: the URL may be quoted.
func (n *nameChange) refresh(v string) (string, bool) {
	i := strings.IndexAny(v, ";,")
	if i < 0 {
		return "", false
	}
	at := i + 1 + len(v[i+1:]) - len(strings.TrimLeft(v[i+1:], " \t"))
	if len(v) < at+4 || !strings.EqualFold(v[at:at+3], "url") {
		return "", false
	}
	eq := strings.IndexByte(v[at:], '=')
	if eq < 0 || strings.Trim(v[at+3:at+eq], " \t") != "" {
		return "", false
	}
	at += eq + 1
	at += len(v[at:]) - len(strings.TrimLeft(v[at:], " \t"))
	end := len(v)
	if at < len(v) && (v[at] == '"' || v[at] == '\'') {
		if j := strings.IndexByte(v[at+1:], v[at]); j >= 0 {
			end = at + 1 + j
		}
		at++
	}
	out, ok := n.url(v[at:end])
	return v[:at] + out + v[end:], ok
}

// setCookie maps the Domain attributes of a cookie (RFC 6265 section 5.2).
func (n *nameChange) setCookie(v string) (string, bool) {
	parts, changed := strings.Split(v, ";"), false
	for i, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		if !strings.EqualFold(strings.Trim(name, " \t"), "Domain") {
			continue
		}
		if domain, ok := n.cookieDomain(strings.Trim(value, " \t")); ok {
			parts[i+1], changed = name+"="+domain, true
		}
	}
	return strings.Join(parts, ";"), changed
}

// Values of Site.HostHeader that are not a name.
const (
	HostPreserve = "preserve" // the client's own
	HostBackend  = "backend"  // that of the server's address
)

// renames tells whether the servers of the site are sent another Host than the
// client's.
func (s *Site) renames() bool { return s.HostHeader != "" && s.HostHeader != HostPreserve }

// hostFor is the Host that a server gets, where it is not the client's.
func (s *Site) hostFor(b *Backend) string {
	if s.HostHeader != HostBackend {
		return s.HostHeader
	}
	port := ":443"
	if b.TLS == nil {
		port = ":80"
	}
	return strings.TrimSuffix(b.Address, port)
}

// insertNames puts the lines into a request head that name the server, which is
// known only once there is a connection to it: Host, and the Destination of a
// WebDAV COPY or MOVE, whose host a server compares with its own (RFC 4918
// section 10.3, R-5.7). https stays: Front-End-Https tells the server so.
func insertNames(head []byte, host string, destinations []string, served func(name string) bool) []byte {
	lines := []byte("Host: " + host + "\r\n")
	for _, d := range destinations {
		if u, ok := splitURL(d); ok && served(u.host) {
			d = "https://" + host + u.rest
		}
		lines = append(append(append(lines, "Destination: "...), d...), "\r\n"...)
	}
	at := bytes.IndexByte(head, '\n') + 1
	return slices.Insert(head, at, lines...)
}

// responseEdit is what changes in the heads of one exchange's responses. Most
// hosts change nothing; their exchanges have none.
type responseEdit struct {
	host  *Host
	names *nameChange // nil: names stay
	hide  []string    // fields that are left out
	// requestOnly: challenges of logins that belong to the connection are left out
	// unless decideLogins finds a reason against it.
	requestOnly, logins bool
	// whole: the body was read, and framing.contentLength is that of what is sent in
	// its place; changed: which is another.
	whole, changed bool
}

// responseEdit returns what changes in responses on the route, nil for nothing.
func (s *session) responseEdit(rt route, b *Backend) *responseEdit {
	site, offload := rt.host.Site, b.TLS == nil
	if site.HostMap == nil && rt.host.HideHeaders == nil && !rt.requestOnly && !offload && !site.renames() {
		return nil
	}
	e := &responseEdit{host: rt.host, hide: rt.host.HideHeaders, requestOnly: rt.requestOnly}
	if site.HostMap == nil && !offload && !site.renames() {
		return e
	}
	e.names = &nameChange{hostMap: site.HostMap, asked: s.head.authority}
	if e.names.asked == "" {
		e.names.asked = rt.host.Name
	}
	if site.renames() {
		e.names.own = s.ownNames(site.hostFor(b), e.names.asked)
	}
	if offload {
		hosts := s.origin.table.Hosts
		e.names.secure = func(name string) bool {
			h := hosts[name]
			return h != nil && h.Mode != Passthrough && h.certified()
		}
	}
	return e
}

// ownNames maps the Host that a server gets to the client's; on one connection they
// hardly ever change.
func (s *session) ownNames(sent, asked string) *HostMap {
	if o := &s.own; o.names == nil || o.sent != sent || o.asked != asked {
		m, err := NewHostMap(map[string]string{sent: asked})
		if err != nil {
			m = &HostMap{} // no name, and so not one that comes back
		}
		o.sent, o.asked, o.names = sent, asked, m
	}
	return s.own.names
}

// decideLogins looks at a final response's challenges before it is sent. Clients of
// some directories know none but Windows logins and Basic: they keep what there is
// if Basic is not, and an administrator is told once. Over a multiplexer
// there is no exception.
func (e *responseEdit) decideLogins(s *session, vdir *VirtualDirectory) {
	if !e.requestOnly {
		return
	}
	removed, left, basic := s.resp.challengesLeft()
	e.logins = removed
	asks := removed && s.resp.status == http.StatusUnauthorized
	switch {
	case !s.origin.multiplexed && vdir.windowsLogin() && !basic:
		e.logins = false
		if asks && e.host.Site.known().basicMissing.CompareAndSwap(false, true) {
			s.log.Warn().Str("host", e.host.Name).Str("site", e.host.Site.Name).Str("virtual_directory", vdir.Name).
				Msg("basic_only has no effect: the server offers no Basic login here, and clients would be left with none")
		}
	case !asks || left:
	case s.origin.multiplexed:
		s.ev.cause = "the server offers no login but NTLM or Negotiate, which a multiplexer would share among its users"
	default:
		s.ev.cause = "the server offers no login but NTLM or Negotiate, and " + vdir.Name + " is basic_only"
	}
}

// appendField appends a field of a response as the client gets it, if it does.
func (e *responseEdit) appendField(dst []byte, f *field, fr *framing) []byte {
	for _, name := range e.hide {
		if f.is(name) {
			return dst
		}
	}
	switch {
	case e.whole && (f.is("Content-Length") || f.is("Transfer-Encoding")):
		return dst // ours comes last
	case e.changed && (f.is("ETag") || f.is("Content-MD5")):
		return dst // they were those of the body before
	case e.logins && f.is("WWW-Authenticate"):
		left, removed := withoutLogins(string(f.value))
		switch {
		case !removed:
		case left == "":
			return dst
		default:
			return append(append(append(append(dst, f.name...), ": "...), left...), "\r\n"...)
		}
	case e.names != nil:
		if v, ok := e.names.value(f); ok {
			return append(append(append(append(dst, f.name...), ": "...), v...), "\r\n"...)
		}
	}
	return appendField(dst, f, fr)
}

// challengesLeft tells what becomes of a response's challenges without the logins of
// a connection: whether there are any to remove, whether others are left, and Basic
// among them.
func (h *responseHead) challengesLeft() (removed, left, basic bool) {
	for i := range h.fields {
		f := &h.fields[i]
		if !f.is("WWW-Authenticate") {
			continue
		}
		rest, some := withoutLogins(string(f.value))
		removed, left = removed || some, left || rest != ""
		challenges, _ := splitChallenges(rest) // none, where they cannot be told apart
		for _, c := range challenges {
			scheme, _ := cutScheme([]byte(c))
			basic = basic || equalFold(scheme, "Basic")
		}
	}
	return removed, left, basic
}

// withoutLogins removes the challenges of schemes that log in a connection from a
// WWW-Authenticate value. Exchange sends a line for each challenge; where several
// share one, the others keep their text and their order. A line that
// cannot be cut with certainty goes as a whole if such a scheme is in it.
func withoutLogins(value string) (left string, removed bool) {
	challenges, err := splitChallenges(value)
	if err != nil {
		for word := range strings.FieldsFuncSeq(value, func(r rune) bool { return r > 0x7f || !tokenChars[r] }) {
			if bindsConnection([]byte(word)) {
				return "", true
			}
		}
		return value, false
	}
	kept := slices.DeleteFunc(slices.Clone(challenges), func(c string) bool { return bindsConnection([]byte(c)) })
	if len(kept) == len(challenges) {
		return value, false
	}
	return strings.Join(kept, ", "), true
}

var errChallenges = errors.New("challenges that cannot be told apart")

// splitChallenges cuts a list of challenges (RFC 9110 section 11.6.1), in which
// commas separate both the challenges and the parameters of one: what is
// name=value belongs to the challenge before it.
func splitChallenges(value string) (challenges []string, err error) {
	rest := value
	for rest != "" {
		end, quoted := len(rest), false
		for i := 0; i < len(rest); i++ {
			switch c := rest[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == ',' && !quoted:
				end = i
			}
			if end == i {
				break
			}
		}
		if quoted {
			return nil, errChallenges
		}
		element := strings.Trim(rest[:end], " \t")
		if rest = rest[end:]; rest != "" {
			rest = rest[1:]
		}
		if element == "" {
			continue
		}
		n := 0
		for n < len(element) && tokenChars[element[n]] {
			n++
		}
		after := strings.TrimLeft(element[n:], " \t")
		switch parameter := strings.HasPrefix(after, "="); {
		case n == 0, parameter && challenges == nil:
			return nil, errChallenges
		case parameter:
			challenges[len(challenges)-1] += ", " + element
		case after != "" && after == element[n:]:
			return nil, errChallenges // neither a scheme nor a parameter
		default:
			challenges = append(challenges, element)
		}
	}
	return challenges, nil
}

// maxDocument bounds the Autodiscover answer that is read whole: SOAP answers for
// 90 users, the most that Exchange takes at once, stay below it.
const maxDocument = 2 << 20

// documentType returns the content type of an answer whose names change: POX, SOAP
// or JSON. Whatever else comes from there passes as it is, HTML too.
func (h *responseHead) documentType() (string, bool) {
	for i := range h.fields {
		f := &h.fields[i]
		if !f.is("Content-Type") {
			continue
		}
		media, _, _ := strings.Cut(string(f.value), ";")
		switch strings.ToLower(strings.Trim(media, " \t")) {
		case "text/xml", "application/xml", "application/soap+xml", "application/json", "text/json":
			return string(f.value), true
		}
	}
	return "", false
}

// readDocument reads an Autodiscover answer to its end and maps the names in it.
// A map says that the names mean nothing outside, so what cannot be mapped is of
// no use there, and would tell them: it is not sent.
func (x *exchange) readDocument(rb *body, contentType string) ([]byte, error) {
	h := &x.s.resp
	for i := range h.fields {
		if f := &h.fields[i]; f.is("Content-Encoding") && !equalFold(f.value, "identity") {
			return nil, malformed("Autodiscover answer with Content-Encoding %s, though it was to come without: its names cannot be mapped", clip(string(f.value)))
		}
	}
	if h.contentLength > maxDocument {
		return nil, errLargeDocument
	}
	h.detach()
	var document []byte
	for {
		piece, err := rb.next(bufferSize, x.fillUpstream)
		if err == io.EOF {
			break
		}
		if errors.Is(err, errBackendSilent) {
			return nil, err
		}
		if err != nil {
			return nil, malformed("Autodiscover answer: %v", err)
		}
		if len(document)+len(piece) > maxDocument {
			return nil, errLargeDocument
		}
		document = append(document, piece...)
	}
	rewritten, changed, err := x.s.origin.table.RewriteAnswer(contentType, document, x.edit.names.hostMap.External)
	if err != nil {
		return nil, malformed("names in the Autodiscover answer cannot be mapped: %v", err)
	}
	h.chunked, h.contentLength = false, int64(len(rewritten))
	x.edit.whole, x.edit.changed = true, changed
	return rewritten, nil
}

var errLargeDocument = malformed("Autodiscover answer over 2 MiB: its names cannot be mapped")

// detach copies the head out of the connection's buffer, which is read into again.
func (h *responseHead) detach() {
	h.statusLine = bytes.Clone(h.statusLine)
	for i := range h.fields {
		f := &h.fields[i]
		line := bytes.Clone(f.line)
		*f = field{line: line, name: line[:len(f.name)], value: bytes.Trim(line[len(f.name)+1:], " \t")}
	}
}
