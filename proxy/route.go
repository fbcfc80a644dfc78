package proxy

import (
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// action is what is done with one request.
type action int

const (
	actStatus   action = iota // answer with route.status and nothing else
	actRedirect               // 302 to route.location
	actHandler                // call route.handler
	actBridge                 // send to route.host's site under route.vdir
)

// route is the outcome of routing one request.
type route struct {
	action action
	status int
	why    string // for the log, with actStatus
	allow  []string
	// retryAfter is when the client may ask again, with actStatus.
	retryAfter time.Duration
	location   string
	handler    http.Handler
	host       *Host
	vdir       *VirtualDirectory
	path       string     // canonical, with actBridge
	rule       ruleNumber // of attacks.go, if one matched
	// target is what the backend is asked for: the raw request target, except for
	// autodiscover.json, which is rebuilt (see v2Target).
	target string
	// requestOnly: only logins of single requests get through.
	requestOnly bool
}

func refuse(status int, why string) route {
	return route{action: actStatus, status: status, why: why}
}

// origin is what routing needs to know of the connection a request came on.
type origin struct {
	table    *Table
	secure   bool   // TLS was terminated
	host     *Host  // secure: the host of the SNI, or the listener's default
	listener string // for the default host
	internal bool   // the client is in an internal network
	nameless bool   // secure: the hello named no host, and so host is the default
	// multiplexed: the peer sends requests of several users over the connection
	//
	multiplexed bool
}

// routeRequest decides what to do with a request. It is pure: the same head on
// the same connection always goes the same way.
func routeRequest(o origin, h *requestHead) route {
	host, refused := findHost(o, h)
	if refused != nil {
		return *refused
	}
	if h.method == "CONNECT" || h.method == "TRACE" {
		r := refuse(http.StatusMethodNotAllowed, "method "+h.method+" is never served")
		r.allow, r.host = []string{"GET", "HEAD", "POST", "OPTIONS"}, host
		return r
	}
	rawPath, rawQuery, _ := strings.Cut(h.target, "?")
	path, err := canonicalPath(rawPath)
	if err != nil {
		r := refuse(http.StatusBadRequest, err.Error())
		r.host = host
		return r
	}
	var r route
	if o.secure {
		r = routeSecure(o, host, h, path, rawQuery)
	} else {
		r = routePlain(o, host, h, path, rawQuery)
	}
	r.host = host
	return r
}

// findHost finds the host a request is for, or the refusal.
func findHost(o origin, h *requestHead) (*Host, *route) {
	no := func(status int, why string) (*Host, *route) {
		r := refuse(status, why)
		return nil, &r
	}
	if h.authority == "" { // HTTP/1.0 without Host
		def := o.table.Defaults[o.listener]
		if def == nil {
			def = o.table.Defaults[""]
		}
		if def == nil || o.secure && def != o.host {
			return no(http.StatusBadRequest, "no Host header, and no default host here")
		}
		return def, nil
	}
	host := o.table.Hosts[h.hostName]
	if host == nil && !o.secure && o.table.PlainHost != nil {
		host = o.table.PlainHost(h.hostName)
	}
	if host == nil && o.nameless && isAddress(strings.Trim(h.hostName, "[]")) {
		host = o.host // who goes by address has no name for SNI, and means whatever is there
	}
	if o.secure && h.replaced != "" {
		// The target's authority counts, and Host does not go further; but who sends two
		// names means one of them for somebody else to read.
		if other := o.table.Hosts[h.replaced]; other == nil || !other.sharesConnection(o.host) {
			return no(http.StatusMisdirectedRequest, "Host is not a name of this connection, unlike the request target")
		}
	}
	switch {
	case !o.secure && host == nil:
		return no(http.StatusNotFound, "unknown host")
	case !o.secure || host == o.host:
		return host, nil
	case host == nil:
		return no(http.StatusMisdirectedRequest, "unknown host")
	case !host.sharesConnection(o.host):
		return no(http.StatusMisdirectedRequest, "host has another certificate or policy than the connection's name")
	}
	return host, nil
}

// sharesConnection tells whether the host may be asked for over a connection that
// was made for the other.
func (h *Host) sharesConnection(other *Host) bool {
	return h == other || h.certified() && h.Policy != "" && h.Policy == other.Policy
}

// routeSecure routes a request that came over TLS we terminated.
func routeSecure(o origin, host *Host, h *requestHead, path, query string) route {
	switch host.Mode {
	case Redirect:
		return redirectAutodiscover(host.RedirectTo, h.method, path, query)
	case Answer:
		return route{action: actHandler, handler: host.Handler}
	case Bridge:
		return routeBridge(o, host, h, path, query)
	default:
		return refuse(http.StatusMisdirectedRequest, "a passthrough host on a terminated connection")
	}
}

func routeBridge(o origin, host *Host, h *requestHead, path, query string) route {
	if path == "*" {
		return refuse(http.StatusNotFound, "OPTIONS * is not published")
	}
	if path == "/" && host.RootRedirect != "" {
		if r, ok := redirectRoot(o, host, h); ok {
			return r
		}
	}
	vdir := findDirectory(host.VirtualDirectories, path)
	if vdir == nil || !vdir.open(o.internal, path) {
		return refuse(http.StatusNotFound, "not published")
	}
	rule := findAttack(h, vdir, path, query)
	if rule != noRule && !attackRules[rule].Removes {
		return blocked(rule, vdir)
	}
	if !vdir.allows(h.method) {
		r := refuse(http.StatusMethodNotAllowed, "method not allowed in "+vdir.Name)
		r.allow, r.vdir = vdir.Methods, vdir
		if r.allow == nil {
			r.allow = []string{"GET", "HEAD", "POST", "OPTIONS"}
		}
		return r
	}
	if strings.HasPrefix(path, "/autodiscover/") && strings.Contains(path, ";") {
		// To IIS it is a character like others; some parsers end the path there. No
		// Autodiscover client sends one (AUTODISCOVER.md section 9).
		r := refuse(http.StatusBadRequest, "semicolon in an Autodiscover path")
		r.vdir = vdir
		return r
	}
	if neverInClear(path) && host.Site.plain() {
		r := refuse(http.StatusForbidden, "mailboxes are not moved over plain HTTP (R-5.6)")
		r.vdir = vdir
		return r
	}
	if vdir.MaxBody > 0 && h.contentLength > vdir.MaxBody {
		r := refuse(http.StatusRequestEntityTooLarge, errBodyTooLarge.reason)
		r.vdir = vdir
		return r
	}
	r := route{action: actBridge, vdir: vdir, path: path, target: h.target, rule: rule}
	if why := refusesLogin(o, vdir, h); why != "" {
		r := refuse(http.StatusForbidden, why)
		r.vdir = vdir
		return r
	}
	r.requestOnly = o.multiplexed || vdir.BasicOnly && !o.internal
	if suffix, ok := underV2(path); ok {
		if h.method != "GET" && h.method != "HEAD" {
			r := refuse(http.StatusMethodNotAllowed, "autodiscover.json: only GET and HEAD")
			r.allow, r.vdir = []string{"GET", "HEAD"}, vdir
			return r
		}
		target, err := v2Target(h.method, suffix, query)
		if err != nil {
			r := blocked(ruleV2, vdir)
			r.why += ": " + err.Error()
			return r
		}
		r.target = target
	}
	return r
}

// refusesLogin says why a login of the connection does not get through to a
// server; "" if it does, or there is none. A multiplexer would give it to whoever
// comes next on the connection. In a directory with BasicOnly nobody was
// offered it, except where a server has nothing else for clients that know
// nothing else.
func refusesLogin(o origin, vdir *VirtualDirectory, h *requestHead) string {
	switch {
	case !h.identity:
		return ""
	case o.multiplexed:
		return "NTLM or Negotiate over a multiplexer, which would share the login among its users"
	case vdir.BasicOnly && !o.internal && !vdir.windowsLogin():
		return "NTLM or Negotiate in " + vdir.Name + ", which is basic_only"
	}
	return ""
}

// windowsLogin tells whether clients of the directory may know no other login
// than NTLM and Negotiate: MAPI over HTTP and Outlook Anywhere.
func (v *VirtualDirectory) windowsLogin() bool {
	for _, p := range v.Prefixes {
		for _, root := range []string{"/mapi", "/rpc", "/rpcwithcert"} {
			if p == root || strings.HasPrefix(p, root+"/") {
				return true
			}
		}
	}
	return false
}

// redirectRoot leads who asks for nothing but the host to its start page, if that
// is published to them. The Location has no host: the client knows best by
// which name and port it came.
func redirectRoot(o origin, host *Host, h *requestHead) (route, bool) {
	asked, _, _ := strings.Cut(h.target, "?")
	if asked != "/" || h.method != "GET" && h.method != "HEAD" {
		return route{}, false
	}
	to, err := canonicalPath(host.RootRedirect)
	if err != nil {
		return route{}, false
	}
	vdir := findDirectory(host.VirtualDirectories, to)
	if vdir == nil || !vdir.open(o.internal, to) {
		return route{}, false
	}
	return route{action: actRedirect, location: host.RootRedirect, vdir: vdir}, true
}

// routePlain routes a request that came in clear.
func routePlain(o origin, host *Host, h *requestHead, path, query string) route {
	if strings.HasPrefix(path, "/.well-known/acme-challenge/") {
		if o.table.ACMEChallenge == nil {
			return refuse(http.StatusNotFound, "no ACME challenge is being served")
		}
		return route{action: actHandler, handler: o.table.ACMEChallenge}
	}
	if host.Mode == Passthrough {
		return refuse(http.StatusNotFound, "a passthrough host has no plain HTTP site")
	}
	// An alias is a name of its own, in the same certificate: who asked for it is
	// not sent to another name, which would be worth a prompt. It is a configured
	// name like any other, not whatever Host says.
	own := host.Name
	if h.hostName != "" {
		own = h.hostName
	}
	target := own
	if host.Mode == Redirect {
		target = host.RedirectTo
	}
	if _, ok := autodiscoverFile(path); ok {
		return redirectAutodiscover(target, h.method, path, query)
	}
	if host.Mode == Bridge && (h.method == "GET" || h.method == "HEAD") {
		vdir := findDirectory(host.VirtualDirectories, path)
		if path == "/" || vdir != nil && vdir.open(o.internal, path) {
			return route{action: actRedirect, location: "https://" + own + h.target}
		}
	}
	return refuse(http.StatusNotFound, "nothing is served here in clear")
}

// open tells whether a request for path may use the directory.
func (v *VirtualDirectory) open(internal bool, path string) bool {
	if v.Access == Deny || v.Access == Internal && !internal {
		return false
	}
	if v.HealthPage && !internal {
		for _, p := range v.Prefixes {
			// With anything behind it too: to IIS that is the same file, and a PATH_INFO.
			if page := p + "/healthcheck.htm"; path == page || strings.HasPrefix(path, page+"/") {
				return false
			}
		}
	}
	return true
}

func (v *VirtualDirectory) allows(method string) bool {
	if v.Methods == nil {
		return true
	}
	for _, m := range v.Methods {
		if m == method {
			return true
		}
	}
	return false
}

// findDirectory returns the directory whose prefix covers path on a segment
// border; of several, the longest prefix wins, so that a configured path inside
// a preset one can be opened or closed by itself.
func findDirectory(dirs []VirtualDirectory, path string) *VirtualDirectory {
	var best *VirtualDirectory
	bestLen := -1
	for i := range dirs {
		for _, p := range dirs[i].Prefixes {
			if len(p) > bestLen && strings.HasPrefix(path, p) && (len(path) == len(p) || p == "/" || path[len(p)] == '/') {
				best, bestLen = &dirs[i], len(p)
			}
		}
	}
	return best
}

// The errors of canonicalPath; each is answered with 400.
var (
	errPathForm     = errors.New("request target is not a path")
	errPathEscape   = errors.New("malformed percent escape in the path")
	errPathDouble   = errors.New("double percent encoding in the path")
	errPathSlash    = errors.New("encoded slash or backslash in the path")
	errPathDots     = errors.New("dot-dot segment in the path")
	errPathControl  = errors.New("control character in the path")
	errPathEncoding = errors.New("path is not UTF-8")
	errPathWide     = errors.New("full-width separator in the path")
	errPathStream   = errors.New("NTFS stream type in the path")
)

// canonicalPath reduces the raw path of a request target to the form on which
// routes are decided: percent escapes decoded once, empty and "." segments
// dropped, trailing dots and spaces of segments dropped, letter case folded. It
// is at least as aggressive as IIS, so that two spellings that IIS serves alike
// route alike, and it refuses what IIS and we could read differently.
// The raw target, not this form, is what a backend is sent. It is idempotent.
func canonicalPath(raw string) (string, error) {
	if raw == "*" {
		return raw, nil
	}
	if raw == "" || raw[0] != '/' {
		return "", errPathForm
	}
	if simplePath(raw) {
		return raw, nil
	}
	decoded := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", errPathEscape // also %uXXXX, which only IIS knows
			}
			c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
			i += 2
			if c == '/' || c == '\\' {
				return "", errPathSlash
			}
		}
		if c == '\\' {
			return "", errPathSlash // IIS reads it as a slash
		}
		if c < ' ' || c == 0x7f {
			return "", errPathControl
		}
		decoded = append(decoded, c)
	}
	for i := 0; i+2 < len(decoded); i++ {
		if decoded[i] == '%' && (isHex(decoded[i+1]) && isHex(decoded[i+2]) || decoded[i+1]|0x20 == 'u') {
			return "", errPathDouble
		}
	}
	if !utf8.Valid(decoded) {
		return "", errPathEncoding
	}
	path := string(decoded)
	if strings.ContainsAny(path, "\uff0e\uff0f\uff3c\uff05\u2215\u2216") {
		return "", errPathWide
	}
	if strings.Contains(path, ":$") {
		return "", errPathStream // to NTFS, /closed::$INDEX_ALLOCATION/ is /closed/
	}
	var out strings.Builder
	for seg := range strings.SplitSeq(path, "/") {
		// What is left of a segment made of dots alone is empty: "..", "..." and
		// ". ." are all refused but for the single dot.
		trimmed := strings.TrimRight(seg, ". ")
		if trimmed == "" {
			if seg != "" && seg != "." {
				return "", errPathDots
			}
			continue
		}
		out.WriteByte('/')
		out.WriteString(trimmed)
	}
	if out.Len() == 0 || strings.HasSuffix(path, "/") {
		out.WriteByte('/')
	}
	return foldPath(out.String()), nil
}

// simplePath tells whether raw is already canonical, the common case.
func simplePath(raw string) bool {
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '/':
			if i > 0 && raw[i-1] == '/' {
				return false
			}
		case c == '.':
			if i == 0 || raw[i-1] == '/' || i+1 == len(raw) || raw[i+1] == '/' || raw[i+1] == '.' {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// foldPath folds letter case. Upper-casing first also folds letters such as the
// long s and the Kelvin sign, which lower-casing alone leaves apart.
func foldPath(s string) string { return strings.ToLower(strings.ToUpper(s)) }

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
