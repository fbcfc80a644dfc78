package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// Mode is the one thing a host does.
type Mode int

// The modes of a host.
const (
	Bridge      Mode = iota // terminate TLS, send requests on to a site over TLS
	Passthrough             // forward the bytes of the connection undecrypted
	Redirect                // answer Autodiscover paths with 302 to another host
	Answer                  // hand requests to an http.Handler
)

var modeNames = [...]string{"bridge", "passthrough", "redirect", "answer"}

// String returns the word used for the mode in the config and in logs.
func (m Mode) String() string { return modeNames[m] }

// Refusal is how a TLS connection is ended for a name that is not served.
type Refusal int

// The ways to refuse. An alert is quick and unambiguous for clients, which is why
// it is the default (AUTODISCOVER rule 8, R-6.11).
const (
	RefuseAlert Refusal = iota // fatal alert unrecognized_name (112), RFC 6066 section 3
	RefuseClose                // close without a word
	RefuseReset                // TCP RST
)

// Table says what every name means. It is immutable once given to a [Server];
// a reload makes a new one. A connection keeps the table it was accepted under.
type Table struct {
	// Hosts maps canonical names and aliases (see CanonicalName) to their host.
	Hosts map[string]*Host
	// Defaults maps a listener's name to the host for hellos without SNI and for
	// HTTP/1.0 requests without Host; the key "" stands for every other listener.
	Defaults map[string]*Host
	// PlainHost finds the host of a name that is not among Hosts, for plain HTTP alone:
	// TLS refuses it as unknown. It is for redirect sites of more names than a table of
	// hosts should hold, is asked for every request, and returns nil for names it does
	// not know. Nil: there are no others.
	PlainHost func(name string) *Host
	// RPCClientAccess maps the names of ServeRPC's listeners, which are their addresses,
	// to the site whose servers get the connections.
	RPCClientAccess map[string]*Site
	// ACMEChallenge answers /.well-known/acme-challenge/ on plain HTTP; nil: 404.
	ACMEChallenge http.Handler
	// InternalNetworks are the clients for whom a virtual directory with access
	// Internal is published.
	InternalNetworks []netip.Prefix
	// TrustedProxies are the peers whose X-Forwarded-For is appended to; everybody
	// else's is removed.
	TrustedProxies []netip.Prefix
	// Multiplexers are the peers that send requests of several users over one
	// connection, such as a CDN: no login of the connection gets through from them
	//
	Multiplexers []netip.Prefix
	// RewriteAnswer replaces URLs and host names in an Autodiscover answer, for sites
	// with a HostMap; nil: such answers pass as they are.
	RewriteAnswer Rewriter

	protects bool // there is a site with Extended Protection; set by SetTable
}

// Rewriter returns a document with every text that external knows replaced by what
// external says of it, and whether there was one; if not, the document is the same.
// The error says that it could not be read for certain.
type Rewriter func(contentType string, document []byte, external func(text string) (string, bool)) (rewritten []byte, changed bool, err error)

// Host is one public name (with its aliases) and what it does.
type Host struct {
	Name string // canonical; the name that redirects use
	Mode Mode
	// TLS terminates connections for the name; nil: 443 refuses it (never with
	// another name's certificate).
	TLS *tls.Config
	// ClientCAs returns the CAs that client certificates are held against, in place of
	// those in TLS and of those in Mail, so that they may change; nil: those hold.
	ClientCAs func() *x509.CertPool
	// ClientCertificateHeaders tells the servers of a Bridge which certificate a client
	// has shown, if it was verified (RFC 9440).
	ClientCertificateHeaders bool
	// Validation answers validations of the name by TLS-ALPN-01, hellos that offer
	// acme-tls/1 alone (RFC 8737); nil: they get no more than others. No byte is
	// exchanged after the handshake.
	Validation *tls.Config
	// Leaf returns the certificate that TLS shows now, for Extended Protection; nil
	// while there is none.
	Leaf func() *x509.Certificate
	// Ready tells whether there is a certificate to show yet; until then it is as if
	// TLS were nil. Nil: there is.
	Ready func() bool
	// Policy tells whether two hosts have the same certificate and TLS settings:
	// only then may one be asked for over the other's connection; otherwise the
	// answer is 421 (RFC 9110 section 15.5.20).
	Policy string
	Refuse Refusal

	Site               *Site              // Bridge and Passthrough
	Health             string             // Passthrough: the directory whose health decides; "": that servers can be connected to
	VirtualDirectories []VirtualDirectory // Bridge: what is published; all else is 404
	RootRedirect       string             // Bridge: the path that GET / is led to, if it is published; "": 404
	HideHeaders        []string           // Bridge: fields of responses that clients do not get
	RedirectTo         string             // Redirect: the target host name
	Handler            http.Handler       // Answer

	Mail map[MailProtocol]*Mail // the mail protocols under this name, whatever its mode
}

// certified tells whether connections for the host can be terminated.
func (h *Host) certified() bool { return h.TLS != nil && (h.Ready == nil || h.Ready()) }

// lacks says why a host is not certified.
func (h *Host) lacks() string {
	if h.ClientCAs != nil && h.ClientCAs() == nil {
		return "no CAs to hold client certificates against: client_ca has not been read"
	}
	return "no certificate for this name"
}

// Site is a set of interchangeable backends. Like the rest of the table it does not
// change; what is learned about it is in its state, which a reload keeps.
type Site struct {
	Name           string // two sites of one table, passthrough hosts' own included, have two names
	Backends       []*Backend
	ConnectTimeout time.Duration // per backend, TCP and TLS each; 0: 5 s
	// AllowInternalUntrustedCerts says that the TLS of the backends authenticates
	// nobody. It changes nothing, but the status shows it.
	AllowInternalUntrustedCerts bool
	// ExtendedProtection says whether a server must have the certificate that clients
	// see.
	ExtendedProtection ExtendedProtection
	HostMap            *HostMap // names in responses that change on the way out; nil: none
	HostHeader         string   // the Host that servers get: HostPreserve (or ""), HostBackend, or a name
	// Exchange is the version of the servers, "2007" to "SE"; it decides what is
	// checked of them. "": they are only connected to.
	Exchange string
	// Health is how they are looked after; nil: only when traffic has met a failure.
	Health *Health
	// Balance is how the servers share new connections; SlowStart for how long one
	// that was down gets less than its share, 0: not at all.
	Balance   Balance
	SlowStart time.Duration
	// HandshakesPerSecond is how many connections a server takes in a second while
	// clients come over from one that is gone; more wait for their turn. 0: no limit.
	HandshakesPerSecond int
	// Affinity is how clients are known again, in all directories; nil: as the Exchange
	// version needs it in each; empty: not at all.
	Affinity []Affinity

	state  atomic.Pointer[siteState]
	tokens atomic.Pointer[map[*Backend]string] // see cookieToken
}

// Backend is one server of a site.
type Backend struct {
	Name    string      // for logs
	Address string      // host:port to dial
	TLS     *tls.Config // verification, SNI and session cache; nil: plain TCP
	Drain   bool        // takes no new connections while another backend can
	// SendProxy puts a PROXY header before everything else on each connection
	// 0: none.
	SendProxy ProxyVersion
	// StartTLS: of a mail protocol, whose connection begins in clear and goes over to
	// TLS by the protocol's own command.
	StartTLS bool

	state atomic.Pointer[backendState]
}

// Access says who may use a virtual directory.
type Access int

// The accesses of a virtual directory.
const (
	Deny     Access = iota // nobody: 404, no backend sees the request
	Internal               // clients in internal networks
	Publish                // everybody
)

// VirtualDirectory is a published part of a bridged host.
type VirtualDirectory struct {
	Name     string   // "owa", or the path itself for a custom one
	Prefixes []string // canonical path prefixes, matched on segment borders
	Access   Access
	Methods  []string // allowed methods; nil: all but TRACE and CONNECT
	// RequestIdle and ResponseIdle are how long the client or the backend may be
	// silent in the middle of an exchange. Bytes in either direction re-arm both
	// there is no limit on the whole exchange.
	RequestIdle, ResponseIdle time.Duration
	MaxBody                   int64 // bytes in a request body, more is 413; 0: no limit
	Upgrade                   bool  // forward Upgrade requests
	BasicOnly                 bool  // clients outside are not offered NTLM and Negotiate
	HealthPage                bool  // has a healthcheck.htm, which only internal networks see
	// Affinity is the group of directories between which a client carries state, so
	// that it has to find it on the same server where servers do not share it
	// (PROXYING.md section 9.1); "" where there is none.
	Affinity string
	// Forms are the canonical paths that login forms are posted to: small requests,
	// which have to be complete in [Options].RequestHeadTimeout.
	Forms []string
	// Logins are the canonical paths below which nothing is served anonymously: 2xx
	// to a POST or an RPC_… request there proves its credentials right.
	Logins []string
}

// webDAV is what Outlook Web Access, Entourage and DavMail ask of the directories
// of Exchange 2000 to 2007. No other directory knows these methods.
var webDAV = []string{
	"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PROPFIND", "PROPPATCH", "SEARCH", "MKCOL", "MOVE", "COPY", "LOCK", "UNLOCK",
	"SUBSCRIBE", "UNSUBSCRIBE", "POLL", "NOTIFY", "BMOVE", "BCOPY", "BDELETE", "BPROPFIND", "BPROPPATCH",
}

// Preset returns the virtual directories of an Exchange server: the eight that
// need publishing; the remote PowerShell one and those of Exchange 2000 to 2007,
// denied. Methods follow PROXYING.md section 11.4, times section 10.1: an
// ActiveSync ping may be silent for 59 minutes, an Outlook Anywhere channel for 15.
// No preset limits bodies: Exchange has limits of its own, which administrators
// raise.
func Preset() []VirtualDirectory {
	const m = time.Minute
	get := []string{"GET", "HEAD", "POST", "OPTIONS"}
	return []VirtualDirectory{
		{
			Name: "owa", Prefixes: []string{"/owa"}, Access: Publish, Methods: get,
			RequestIdle: 5 * m, ResponseIdle: 10 * m, HealthPage: true, Affinity: "owa",
			Forms: []string{"/owa/auth.owa", "/owa/auth/owaauth.dll"}, // 2010 and later; 2007
		},
		{
			Name: "ecp", Prefixes: []string{"/ecp"}, Access: Publish, Methods: get,
			RequestIdle: 5 * m, ResponseIdle: 10 * m, HealthPage: true, Affinity: "owa", // it shares OWA's login cookie
		},
		{
			Name: "ews", Prefixes: []string{"/ews"}, Access: Publish, Methods: get,
			RequestIdle: 5 * m, ResponseIdle: 31 * m, HealthPage: true, Affinity: "ews",
			Logins: []string{"/ews/exchange.asmx"},
		},
		{
			Name: "mapi", Prefixes: []string{"/mapi"}, Access: Publish, Methods: []string{"POST", "GET", "OPTIONS"},
			RequestIdle: 5 * m, ResponseIdle: 10 * m, HealthPage: true,
			Logins: []string{"/mapi/emsmdb", "/mapi/nspi"},
		},
		{
			Name: "rpc", Prefixes: []string{"/rpc", "/rpcwithcert"}, Access: Publish, Methods: []string{"RPC_IN_DATA", "RPC_OUT_DATA", "GET", "POST"},
			RequestIdle: 25 * m, ResponseIdle: 25 * m, HealthPage: true, Affinity: "rpc",
			Logins: []string{"/rpc/rpcproxy.dll", "/rpcwithcert/rpcproxy.dll"},
		},
		{
			Name: "oab", Prefixes: []string{"/oab"}, Access: Publish, Methods: []string{"GET", "HEAD"},
			RequestIdle: 2 * m, ResponseIdle: 2 * m, HealthPage: true,
		},
		{
			Name: "autodiscover", Prefixes: []string{"/autodiscover"}, Access: Publish, Methods: get,
			RequestIdle: 1 * m, ResponseIdle: 2 * m, HealthPage: true,
			Logins: []string{"/autodiscover/autodiscover.xml"}, // the others are anonymous in part
		},
		{
			Name: "activesync", Prefixes: []string{"/microsoft-server-activesync"}, Access: Publish, Methods: []string{"POST", "OPTIONS", "GET"},
			RequestIdle: 5 * m, ResponseIdle: 62 * m, HealthPage: true, Affinity: "activesync",
			Logins: []string{"/microsoft-server-activesync", "/microsoft-server-activesync/default.eas"},
		},
		{
			Name: "powershell", Prefixes: []string{"/powershell"}, Access: Deny, Methods: []string{"POST"},
			RequestIdle: 5 * m, ResponseIdle: 5 * m, HealthPage: true, Affinity: "powershell",
		},
		{
			Name: "exchange", Prefixes: []string{"/exchange"}, Access: Deny, Methods: webDAV,
			RequestIdle: 5 * m, ResponseIdle: 10 * m, Affinity: "owa",
		},
		{
			Name: "public", Prefixes: []string{"/public"}, Access: Deny, Methods: webDAV,
			RequestIdle: 5 * m, ResponseIdle: 10 * m, Affinity: "owa",
		},
		{
			Name: "exchweb", Prefixes: []string{"/exchweb"}, Access: Deny, Methods: webDAV,
			RequestIdle: 5 * m, ResponseIdle: 10 * m, Affinity: "owa",
			Forms: []string{"/exchweb/bin/auth/owaauth.dll"}, // 2003
		},
	}
}

// CustomDirectory returns a virtual directory for a configured path prefix:
// every method but TRACE and CONNECT, streaming, no health page.
func CustomDirectory(prefix string, access Access) VirtualDirectory {
	return VirtualDirectory{
		Name: prefix, Prefixes: []string{foldPath(prefix)}, Access: access,
		RequestIdle: 5 * time.Minute, ResponseIdle: 10 * time.Minute,
	}
}

// CanonicalName brings a host name as found in SNI, Host or a config into the
// one form used as key: lower case, no trailing dot.
func CanonicalName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// contains tells whether addr lies in one of the prefixes.
func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
