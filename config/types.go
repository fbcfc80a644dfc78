package config

import (
	"net/netip"
	"time"
)

// Config is a whole configuration file with its defaults filled in. Host, site and domain names are in canonical
// form (see CanonicalHost). A Config is not to be changed once it is in use.
type Config struct {
	// Where the front door listens. A key that is missing takes its default, `[]` switches it off.
	Listen Listen `yaml:"listen"`
	// Where certificates come from when they are not files.
	Certificates Certificates `yaml:"certificates"`
	// The public names (namespaces). Each does exactly one of site, passthrough, redirect or answer.
	Hosts map[string]*Host `yaml:"hosts" key:"host"`
	// The internal Client Access servers, grouped as in Active Directory.
	Sites map[string]*Site `yaml:"sites" key:"site"`
	// The mail domains, and how Autodiscover answers for each.
	Domains map[string]*Domain `yaml:"domains" key:"domain"`
	// The redirect site for many domains, listed in a file of their own.
	Redirects *Redirects `yaml:"redirects"`
	// Who has a mailbox, and where. Without it Autodiscover needs no login and answers by domain alone.
	Mailboxes *Mailboxes `yaml:"mailboxes"`
	// The clients that are inside: they get internal URLs, and reach virtual directories marked `internal`.
	InternalNetworks []netip.Prefix `yaml:"internal_networks" default:"[]" example:"[10.0.0.0/8]"`
	// Accept certificates that do not verify when checking servers outside the organisation, as the MSExchangeOWA
	// registry value AllowExternalUntrustedCerts does.
	AllowExternalUntrustedCerts bool `yaml:"allow_external_untrusted_certs" default:"false"`
	// How long to wait, and how much to bear.
	Limits Limits `yaml:"limits"`
	// What the log holds.
	Log Log `yaml:"log"`

	dir string // of the file, for Path
}

// Listen says where the front door listens. Addresses are `ip:port`, `[ipv6]:port` or `:port`; port 0 takes a free one.
type Listen struct {
	// TLS: passthrough, redirect, answer and site hosts, told apart by the name in the ClientHello.
	HTTPS []string `yaml:"https" kind:"listen" default:"[\":443\"]"`
	// Plain HTTP: ACME challenges and the redirect site; nothing else is served there.
	HTTP []string `yaml:"http" kind:"listen" default:"[\":80\"]"`
	// Metrics, health and status. Keep it on loopback; `[]` switches it off.
	Admin string `yaml:"admin" kind:"listen" off:"true" default:"127.0.0.1:9480"`
	// IMAP over TLS, for hosts with `mail`.
	IMAPS []string `yaml:"imaps" kind:"listen" default:"[]" example:"[\":993\"]"`
	// POP3 over TLS, for hosts with `mail`.
	POP3S []string `yaml:"pop3s" kind:"listen" default:"[]" example:"[\":995\"]"`
	// Mail submission over TLS, for hosts with `mail`.
	Submissions []string `yaml:"submissions" kind:"listen" default:"[]" example:"[\":465\"]"`
	// IMAP that begins in clear and goes over to TLS with STARTTLS, for hosts with `mail`.
	IMAP []string `yaml:"imap" kind:"listen" default:"[]" example:"[\":143\"]"`
	// POP3 that begins in clear and goes over to TLS with STLS, for hosts with `mail`.
	POP3 []string `yaml:"pop3" kind:"listen" default:"[]" example:"[\":110\"]"`
	// Mail submission that begins in clear and goes over to TLS with STARTTLS, for hosts with `mail`.
	Submission []string `yaml:"submission" kind:"listen" default:"[]" example:"[\":587\"]"`
	// Who may send a PROXY protocol header (version 1 or 2). A bare address counts as itself alone.
	ProxyProtocolFrom []netip.Prefix `yaml:"proxy_protocol_from" default:"[]" example:"[10.0.0.0/8]"`
	// The proxies in front: the client is the one that their X-Forwarded-For names, and the header is continued. Everybody
	// else's X-Forwarded-* headers are removed.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies" default:"[]" example:"[10.0.0.0/8]"`
	// Who sends requests of several users over one connection, as CDNs and most reverse proxies do. NTLM and Negotiate log in
	// a connection, so from there they do not get through, and are not offered.
	Multiplexers []netip.Prefix `yaml:"multiplexers" default:"[]" example:"[192.0.2.0/24]"`
}

// Certificates says where certificates come from when they are not files.
type Certificates struct {
	// The ACME account and issuer behind `certificate: acme` and `certificate: autocert`.
	ACME *ACME `yaml:"acme"`
	// Where accounts and issued certificates are kept: a directory, or Redis when several nodes share them:
	// redis://[user@]host[:port][/database], rediss://… for the same over TLS, unix://[user@]/path[?db=database].
	Storage string `yaml:"storage" kind:"storage" default:"/var/lib/autodgate"`
	// A file whose first line is the password of Redis. It is read for each new connection.
	StoragePasswordFile string `yaml:"storage_password_file" kind:"file" example:"redis.pass"`
	// CA certificates (PEM) that vouch for a rediss:// server. Without it: those of the system.
	StorageCA string `yaml:"storage_ca" kind:"file" example:"internal-ca.pem"`
	// A file whose first line is a secret of at least 32 characters, the same on every node: what is stored in Redis is
	// encrypted with it.
	StorageKeyFile string `yaml:"storage_key_file" kind:"file" example:"storage.key"`
	// What every key in Redis begins with, before a colon: front doors with different ones share nothing.
	StoragePrefix string `yaml:"storage_prefix" default:"autodgate"`
}

// ACME is an ACME account and its issuer.
type ACME struct {
	// Whom the issuer may write to.
	Email string `yaml:"email" kind:"email" example:"hostmaster@contoso.com"`
	// The directory URL of the issuer. Without it: Let's Encrypt.
	Directory string `yaml:"directory" kind:"https" example:"https://acme.contoso.com/directory"`
	// CA certificates (PEM) that vouch for the directory, for a private ACME server.
	DirectoryCA string `yaml:"directory_ca" kind:"file" example:"acme-ca.pem"`
	// The challenges that may be used.
	Challenges []string `yaml:"challenges" enum:"tls-alpn-01,http-01,dns-01" default:"[tls-alpn-01, http-01]"`
	// How dns-01 writes its records: DNS updates (RFC 2136) signed with TSIG (RFC 8945), or a program.
	DNS *ACMEDNS `yaml:"dns"`
	// External account binding, for issuers that want it (RFC 8555 section 7.3.4).
	EAB *ACMEEAB `yaml:"eab"`
	// A second issuer, asked whenever the first one fails.
	Fallback *ACMEFallback `yaml:"fallback"`
	// Order a certificate at the first hello for its name, instead of when serving starts.
	OnDemand bool `yaml:"on_demand" default:"false"`
}

// ACMEDNS is who writes the records of dns-01: a DNS server that takes updates, or a program.
type ACMEDNS struct {
	// The server that takes updates, as host:port.
	Server string `yaml:"server" kind:"hostport" example:"ns1.contoso.com:53"`
	// The name of the TSIG key, which is of the algorithm hmac-sha256.
	TSIGName string `yaml:"tsig_name" example:"autodgate"`
	// A file that holds the secret of the TSIG key, in base64.
	TSIGSecretFile string `yaml:"tsig_secret_file" kind:"file" example:"tsig.secret"`
	// Instead of a server: the program that writes the records. It is called, without a shell, with `present` or `cleanup`, the
	// full name with a final dot, and the value, and has two minutes.
	Exec string `yaml:"exec" kind:"file" example:"/usr/local/bin/dns-hook"`
}

// ACMEEAB is an external account binding.
type ACMEEAB struct {
	// The key identifier the issuer gave out.
	KeyID string `yaml:"key_id" required:"true" example:"kid-1"`
	// A file that holds the HMAC key the issuer gave out, in base64url.
	HMACKeyFile string `yaml:"hmac_key_file" kind:"file" required:"true" example:"eab.key"`
}

// ACMEFallback is a second issuer.
type ACMEFallback struct {
	// The directory URL of the second issuer.
	Directory string `yaml:"directory" kind:"https" required:"true" example:"https://acme2.contoso.com/directory"`
	// CA certificates (PEM) that vouch for that directory.
	DirectoryCA string `yaml:"directory_ca" kind:"file" example:"acme2-ca.pem"`
	// External account binding at the second issuer.
	EAB *ACMEEAB `yaml:"eab" example:"{key_id: kid-2, hmac_key_file: eab2.key}"`
}

// Host is one public name. Exactly one of Site, Passthrough, Redirect and Answer is set; Mode says which.
type Host struct {
	// Bridge: decrypt, pick the virtual directory, re-encrypt to this site.
	Site string `yaml:"site" kind:"site" example:"hq"`
	// Do not decrypt: hand the connection to a site, or to one of these backends, byte for byte.
	Passthrough *Passthrough `yaml:"passthrough" example:"hq"`
	// With passthrough: tell the backends the client's address in a PROXY protocol header of this version. They must expect it.
	SendProxy string `yaml:"send_proxy" enum:"v1,v2" example:"v2"`
	// The redirect site: Autodiscover requests get a 302 to this host name.
	Redirect string `yaml:"redirect" kind:"host" example:"mail.contoso.com"`
	// Answer Autodiscover ourselves, for every domain in `domains`.
	Answer bool `yaml:"answer" default:"false"`
	// Further names that behave exactly as this one and are in its certificate.
	Aliases []string `yaml:"aliases" kind:"host" default:"[]" example:"[legacy.contoso.com]"`
	// What proves the name. A redirect host may go without, and then only answers on plain HTTP.
	Certificate *Certificate `yaml:"certificate" example:"self_signed"`
	// Which TLS the clients may speak.
	TLS TLS `yaml:"tls"`
	// What of the site is published, merged over a safe preset. A key is the name of a virtual directory (owa, ecp, ews,
	// mapi, rpc, oab, autodiscover, activesync, powershell, exchange, public, exchweb, api, …), or a path prefix that
	// begins with `/`.
	VirtualDirectories map[string]*VirtualDirectory `yaml:"virtual_directories" key:"vdir" example:"{ecp: internal}"`
	// Where GET / leads: a path that is published; elsewhere it stays 404. `""` switches it off.
	RootRedirect string `yaml:"root_redirect" kind:"rootpath" off:"true" default:"/owa/"`
	// Which headers of the servers' responses are kept from clients.
	HideHeaders *HideHeaders `yaml:"hide_headers" example:"identification"`
	// Hellos without a name land here: on every https and mail listener (true), or on the listed ones. Hellos with an
	// unknown name are always refused.
	Default Default `yaml:"default" default:"false"`
	// How port 443 turns away a redirect host without certificate: with the TLS alert unrecognized_name, by closing, or by
	// resetting the connection.
	Refuse string `yaml:"refuse" enum:"alert,close,reset" default:"alert"`
	// Mail protocols under the same name.
	Mail *Mail `yaml:"mail"`
}

// Certificate is where a certificate comes from: Source, or the files of one of two forms.
type Certificate struct {
	// `acme` (certmagic), `autocert` (one node, one issuer), or `self_signed` as Exchange set-up makes it.
	Source string `form:"scalar" enum:"acme,autocert,self_signed"`
	// The certificate and its chain, PEM.
	Cert string `yaml:"cert" kind:"file" example:"mail.pem"`
	// Its private key, PEM.
	Key string `yaml:"key" kind:"file" example:"mail.key"`
	// Certificate, chain and key in one PKCS #12 file, as exported by Exchange (3DES, RC2 and AES are read).
	PFX string `yaml:"pfx" kind:"file" example:"mail.pfx"`
	// A file that holds the password of the PFX, without the line end. Without it the password is empty.
	PasswordFile string `yaml:"password_file" kind:"file" example:"pfx.pass"`
}

// TLS is which TLS the clients of a host may speak.
type TLS struct {
	// Mozilla's recommendation of that name. `old` lets TLS 1.0 clients in, and is not safe.
	Profile string `yaml:"profile" enum:"modern,intermediate,old" default:"intermediate"`
	// Whether clients are asked for a certificate: not at all, as they like, or they are turned away without one. The servers
	// do not learn of it by themselves: their own login with certificates needs passthrough.
	ClientAuth string `yaml:"client_auth" enum:"none,request,require" default:"none"`
	// CA certificates (PEM) that have issued the certificates of clients. A changed file is read again.
	ClientCA string `yaml:"client_ca" kind:"file" example:"client-ca.pem"`
	// Tell the servers which certificate a client has shown, in the headers Client-Cert and Client-Cert-Chain (RFC 9440).
	// Exchange does not read them. What clients send under these names is removed always.
	ClientCertificateHeaders bool `yaml:"client_certificate_headers" default:"false"`
}

// VirtualDirectory is what the outside may do with one virtual directory or path prefix.
type VirtualDirectory struct {
	// `publish` it to everybody, keep it `internal` (only internal_networks), or `deny` it.
	Access string `yaml:"access" form:"scalar" enum:"publish,internal,deny" example:"publish"`
	// Offer no NTLM and Negotiate to clients outside internal_networks, and take none. Under mapi and rpc only where the
	// servers offer Basic too.
	BasicOnly bool `yaml:"basic_only" default:"false"`
	// Let requests with `Upgrade` (WebSocket) through.
	Upgrade bool `yaml:"upgrade" default:"false"`
	// The methods that are let through. Without it: those of the directory's protocol, and in a directory that has none
	// of its own every method but TRACE and CONNECT.
	Methods []string `yaml:"methods" kind:"method" example:"[GET, HEAD, POST]"`
	// How long the client may be silent in the middle of a request. Without it: what the protocol of the directory needs.
	RequestTimeout time.Duration `yaml:"request_timeout" example:"5m"`
	// How long the backend may be silent. Without it: what the protocol of the directory needs.
	ResponseTimeout time.Duration `yaml:"response_timeout" example:"10m"`
	// The largest request body; what is larger is answered with 413. Exchange has limits of its own.
	MaxBody Size `yaml:"max_body" default:"none" example:"64MiB"`
}

// HideHeaders is which headers of the servers' responses are kept from clients.
type HideHeaders struct {
	// `identification` stands for those that tell a server's name and versions: X-FEServer, X-BEServer, X-CalculatedBETarget,
	// X-DiagInfo, X-OWA-Version, X-AspNet-Version, X-Powered-By and Server.
	Known string `form:"scalar" enum:"identification"`
	// These headers. What clients need is refused.
	Names []string `form:"sequence" kind:"header"`
}

// Passthrough is where a connection goes that is not decrypted: to a site's servers, or to the listed backends.
type Passthrough struct {
	// The site whose servers get the connection.
	Site string `yaml:"site" form:"scalar" kind:"site" example:"hq"`
	// The backends that get the connection, as host:port.
	Backends []string `form:"sequence" kind:"hostport"`
	// With a site: the virtual directory whose health page, asked for under the host's name, says which server is fit. Without it a
	// server is fit that can be connected to.
	Health string `yaml:"health" enum:"owa,ecp,ews,mapi,rpc,oab,autodiscover,activesync,powershell" example:"owa"`
}

// Default says for which https and mail listeners a host takes the hellos without a name.
type Default struct {
	// Take them on every https and mail listener.
	Everywhere bool `form:"scalar"`
	// Take them on these https and mail listeners.
	Listeners []string `form:"sequence" kind:"listen"`
}

// Mail is the mail protocols of a host. The servers are those of a site, or the ones named as backend.
type Mail struct {
	// IMAP over TLS.
	IMAPS *MailProtocol `yaml:"imaps" example:"bridge"`
	// POP3 over TLS.
	POP3S *MailProtocol `yaml:"pop3s" example:"bridge"`
	// Mail submission over TLS.
	Submissions *MailProtocol `yaml:"submissions" example:"bridge"`
	// IMAP with STARTTLS.
	IMAP *MailProtocol `yaml:"imap" example:"bridge"`
	// POP3 with STLS.
	POP3 *MailProtocol `yaml:"pop3" example:"bridge"`
	// Mail submission with STARTTLS.
	Submission *MailProtocol `yaml:"submission" example:"bridge"`
	// The site whose servers are the mail servers, as Exchange's are: at 993 and 995, for submission at 587 with STARTTLS;
	// where nothing is decrypted, at the port of the protocol. The site says how they are trusted.
	Site string `yaml:"site" kind:"site" example:"hq"`
	// The mail servers, when they are not a site's, each as tls://host, starttls://host or tcp://host, with :port if it is not
	// the usual one. With tls:// that is 993, 995 or 465, else 143, 110 or 587.
	Backend *MailBackend `yaml:"backend" example:"\"tls://imap.contoso.local\""`
	// Send mail and passwords on in clear, to tcp:// backends.
	Offload bool `yaml:"offload" default:"false"`
	// What a backend's certificate is held against.
	Trust Trust `yaml:"trust" default:"verify"`
	// Encrypt to the backends without authenticating them. Anybody between here and the server can then read and change
	// everything.
	AllowInternalUntrustedCerts bool `yaml:"allow_internal_untrusted_certs" default:"false"`
	// The name sent to the backends as SNI and looked for in their certificates, when it is not the host of their URL.
	ServerName string `yaml:"server_name" kind:"host" example:"mail.contoso.com"`
	// Which TLS is spoken with the backends, when it is not what is safe.
	TLS SiteTLS `yaml:"tls"`
	// Tell the mail servers the client's address in a PROXY protocol header of this version. They must expect it.
	SendProxy string `yaml:"send_proxy" enum:"v1,v2" example:"v2"`
}

// MailProtocol is what happens to one mail protocol.
type MailProtocol struct {
	// `bridge`: decrypt, and encrypt again to the mail server. `passthrough`: hand the encrypted bytes on.
	Mode string `yaml:"mode" form:"scalar" enum:"bridge,passthrough" required:"true" example:"bridge"`
	// The servers of this protocol, when they are not those of the others.
	Backend *MailBackend `yaml:"backend" example:"\"tls://imap.contoso.local\""`
	// How long nothing may move in either direction. Without it: 31m for IMAP, whose clients in IDLE speak every 29 minutes,
	// else 11m.
	IdleTimeout time.Duration `yaml:"idle_timeout" example:"31m"`
}

// MailBackend is a mail server, or several.
type MailBackend struct {
	// The one server.
	URL string `form:"scalar" kind:"mail"`
	// The servers; a connection goes to one of them.
	URLs []string `form:"sequence" kind:"mail"`
}

// Site is a set of Client Access servers that serve the same mailboxes.
type Site struct {
	// The servers, as https://host or https://host:port.
	Servers []Server `yaml:"servers" required:"true" example:"[\"https://cas01.contoso.local\"]"`
	// What a server's certificate is held against.
	Trust Trust `yaml:"trust" default:"verify"`
	// Encrypt to the servers without authenticating them, as the MSExchangeOWA registry value AllowInternalUntrustedCerts
	// does. Anybody between here and the server can then read and change everything.
	AllowInternalUntrustedCerts bool `yaml:"allow_internal_untrusted_certs" default:"false"`
	// The name sent to the servers as SNI and looked for in their certificates, when it is not the host of their URL.
	ServerName string `yaml:"server_name" kind:"host" example:"mail.contoso.com"`
	// What the servers call themselves, with or without a port, and the public name that clients get to see instead: in
	// redirects and cookies, and in Autodiscover answers. No other name is touched.
	HostMap map[string]string `yaml:"host_map" key:"authority" kind:"publicname" example:"{cas01.contoso.local: mail.contoso.com}"`
	// The Host header for the servers: `preserve` the client's, the `backend`'s own name, or the name given here.
	HostHeader string `yaml:"host_header" kind:"hostheader" default:"preserve"`
	// Which TLS is spoken with the servers, when it is not what is safe.
	TLS SiteTLS `yaml:"tls"`
	// The Exchange version: presets for affinity, health pages and timeouts.
	Exchange string `yaml:"exchange" enum:"2007,2010,2013,2016,2019,SE" example:"\"2019\""`
	// Exchange's channel binding (Extended Protection). It needs the same certificate on both sides: `auto` warns when a
	// server has another one than clients see, `required` does not use such a server. Without it: `auto` for Exchange 2019
	// and SE, which have it on by default, otherwise `off`.
	ExtendedProtection string `yaml:"extended_protection" enum:"off,auto,required" example:"auto"`
	// The certificate that autodgate shows to servers that ask for one, be it by renegotiation.
	ClientCertificate *ClientCertificate `yaml:"client_certificate"`
	// Send requests on in clear. The servers are then http:// URLs. /ews/mrsproxy.svc, over which mailboxes are moved,
	// is never sent on in clear, but refused.
	Offload bool `yaml:"offload" default:"false"`
	// How clients are known again, so that they reach the server they were at before: by the first of these that a client
	// shows. Without it: what the Exchange version needs, which is nothing since 2013.
	Affinity Affinity `yaml:"affinity" example:"[cookie, source_ip]"`
	// How the servers are looked after. `off`: a server is left out only while it cannot be connected to.
	Health Health `yaml:"health"`
	// How servers share new connections.
	Balance string `yaml:"balance" enum:"round_robin,least_connections" default:"round_robin"`
	// For how long a server that comes back gets less than its share, growing to all of it.
	SlowStart time.Duration `yaml:"slow_start" default:"30s"`
	// How many new connections a server takes in a second while clients come over from one that is gone; more wait for
	// their turn. 0 is no limit.
	HandshakesPerSecond int `yaml:"handshakes_per_second" default:"200"`
	// Addresses on which Outlook reaches the RPC Client Access service of Exchange 2007 and 2010 (a CAS array): connections
	// are carried undecrypted to the same port of the servers.
	RPCClientAccess []string `yaml:"rpc_client_access" kind:"listen" default:"[]" example:"[\":135\", \":59532\"]"`
	// The site's own public address. Requests for its mailboxes are redirected there; without it they are proxied.
	ExternalURL string `yaml:"external_url" kind:"origin" example:"https://mail.branch.contoso.com"`
}

// Affinity is how clients are known again: one way, or several in their order.
type Affinity struct {
	// `none`; `cookie`, which browsers bring back; `existing_cookie`, those of Exchange and Outlook; `user` of a Basic
	// login; `source_ip`, of IPv6 the /64 network.
	One string `form:"scalar" enum:"none,cookie,existing_cookie,user,source_ip"`
	// Several, the strongest first.
	Chain []string `form:"sequence" enum:"cookie,existing_cookie,user,source_ip"`
}

// Health is how the servers of a site are looked after.
type Health struct {
	// `off`: nobody looks after the servers but the clients' own connections.
	Mode string `form:"scalar" enum:"off"`
	// The time between two looks at a server.
	Interval time.Duration `yaml:"interval" default:"10s"`
	// For an answer.
	Timeout time.Duration `yaml:"timeout" default:"5s"`
	// So many failures in a row take a server out.
	Fall int `yaml:"fall" default:"3"`
	// So many successes in a row bring it back.
	Rise int `yaml:"rise" default:"2"`
	// The Host header when health pages are asked for. Without it: server_name, or the server's own name.
	Host string `yaml:"host" kind:"host" example:"mail.contoso.com"`
	// What it means when a health page asks for a login, as that of ActiveSync does on some servers.
	Unauthorized string `yaml:"unauthorized" enum:"up,down" default:"down"`
}

// Server is one Client Access server.
type Server struct {
	// The address: a scheme and a host, and a port when it is not the scheme's own.
	URL string `yaml:"url" form:"scalar" kind:"server" required:"true" example:"https://cas01.contoso.local"`
	// Finish what is running, take nothing new.
	Drain bool `yaml:"drain" default:"false"`
}

// SiteTLS is which TLS is spoken with the servers of a site.
type SiteTLS struct {
	// The oldest version. `1.0` and `1.1` are for servers that have nothing newer, and bring back the cipher suites of that
	// time: RSA key exchange and 3DES.
	MinVersion string `yaml:"min_version" enum:"1.0,1.1,1.2,1.3" default:"\"1.2\""`
	// The newest version. `1.2` is for servers that ask for client certificates by renegotiation, which TLS 1.3 has no more.
	MaxVersion string `yaml:"max_version" enum:"1.0,1.1,1.2,1.3" default:"\"1.3\""`
	// The cipher suites up to TLS 1.2, by their IANA names. Without it: the safe ones, and those that min_version brings.
	Ciphers []string `yaml:"ciphers" kind:"cipher" default:"[]" example:"[TLS_RSA_WITH_3DES_EDE_CBC_SHA]"`
}

// ClientCertificate is a certificate to show to servers.
type ClientCertificate struct {
	// The certificate and its chain, PEM.
	Cert string `yaml:"cert" kind:"file" required:"true" example:"autodgate.pem"`
	// Its private key, PEM.
	Key string `yaml:"key" kind:"file" required:"true" example:"autodgate.key"`
}

// Trust is what a server's certificate is held against.
type Trust struct {
	// `verify` against the CAs of the system, or remember each server's key at `first_use` (in certificates.storage) and
	// accept no other from then on.
	Mode string `form:"scalar" enum:"verify,first_use"`
	// Verify against the CA certificates (PEM) in this file instead of the system's.
	CA string `yaml:"ca" kind:"file" example:"internal-ca.pem"`
	// Accept exactly these: sha256/ and the base64 SHA-256 of the public key, or cert-sha256/ and that of the certificate.
	// Names and dates do not matter then.
	Pin []string `yaml:"pin" kind:"pin" example:"[\"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"]"`
}

// Domain is how Autodiscover answers for one mail domain.
type Domain struct {
	// `answer` it ourselves, `bridge` the question to the servers of a site, or `redirect` it to another address or URL.
	Autodiscover string `yaml:"autodiscover" enum:"answer,bridge,redirect" required:"true" example:"answer"`
	// Where EWS, OAB, OWA, MAPI and ActiveSync are published.
	ExternalURL string `yaml:"external_url" kind:"origin" example:"https://mail.contoso.com"`
	// The same for clients in internal_networks.
	InternalURL string `yaml:"internal_url" kind:"origin" example:"https://mail.contoso.local"`
	// AuthPackage in POX answers. Without it the element is left out.
	AuthPackage string `yaml:"auth_package" enum:"basic,kerb,kerbntlm,ntlm,certificate,negotiate,anonymous" example:"basic"`
	// With bridge: the site that is asked. Needed when there is more than one.
	Site string `yaml:"site" kind:"site" example:"hq"`
	// With redirect: ask again for this address. "@domain" keeps the part before the @.
	RedirectAddr string `yaml:"redirect_addr" kind:"redirectaddr" example:"\"@contoso.com\""`
	// With redirect: ask again at this URL.
	RedirectURL string `yaml:"redirect_url" kind:"autodiscover" example:"https://mail.contoso.com/autodiscover/autodiscover.xml"`
}

// Redirects is the redirect site for many domains.
type Redirects struct {
	// The domains, one a line; what follows a # is a comment. It is read again when it changes. Each is served as
	// autodiscover.DOMAIN and DOMAIN, over plain HTTP; port 443 refuses the names.
	File string `yaml:"file" kind:"file" required:"true" example:"domains.txt"`
	// The host name they are all redirected to: that of a server that answers Autodiscover with a certificate of its own.
	Target string `yaml:"target" kind:"host" required:"true" example:"mail.contoso.com"`
}

// Mailboxes is who has a mailbox, and where. Exactly one of File and LDAP is set.
type Mailboxes struct {
	// A list in YAML, or a table in CSV of any size.
	File string `yaml:"file" kind:"mailboxfile" example:"mailboxes.yaml"`
	// A directory server, such as Active Directory.
	LDAP *LDAP `yaml:"ldap"`
}

// LDAP is a directory of one or several servers that hold the same entries.
type LDAP struct {
	// The servers, as ldaps://host[:port], or as ldap://host[:port], where TLS begins with STARTTLS. Nothing is ever sent in
	// clear. Of several, the first that answers is asked.
	URL LDAPServers `yaml:"url" required:"true" example:"\"ldaps://dc01.contoso.local\""`
	// Where in the tree the mailboxes are.
	BaseDN string `yaml:"base_dn" required:"true" example:"\"DC=contoso,DC=local\""`
	// The account that searches. Without one, searches are anonymous, which Active Directory does not allow.
	BindDN string `yaml:"bind_dn" example:"\"CN=autodgate,CN=Users,DC=contoso,DC=local\""`
	// A file that holds its password, without the line end. It is read for every new connection.
	PasswordFile string `yaml:"password_file" kind:"file" example:"ldap.pass"`
	// CA certificates (PEM) that vouch for the servers. Without it they are the system's.
	CA string `yaml:"ca" kind:"file" example:"internal-ca.pem"`
	// Which entries are mailboxes, as an LDAP filter. Those without an address are none in any case.
	Filter string `yaml:"filter" default:"(|(objectClass=user)(objectClass=inetOrgPerson))"`
	// The attribute that holds the site of a mailbox.
	SiteAttribute string `yaml:"site_attribute" example:"extensionAttribute1"`
	// How long one server may take for one question, with the connection to it.
	Timeout time.Duration `yaml:"timeout" default:"5s"`
	// How long what was found is taken as true, and what was not found as missing. Passwords are always checked by a server.
	CacheAge time.Duration `yaml:"cache_age" default:"1m"`
	// How many answers are kept, and how many names that are missing; 0 asks every time.
	CacheEntries int `yaml:"cache_entries" default:"10000"`
}

// LDAPServers are the servers of a directory: exactly one of URL and URLs is set.
type LDAPServers struct {
	// One server.
	URL string `form:"scalar" kind:"ldap"`
	// Several, in the order they are asked in.
	URLs []string `form:"sequence" kind:"ldap"`
}

// List returns the servers in the order they are asked in.
func (s LDAPServers) List() []string {
	if s.URL != "" {
		return []string{s.URL}
	}
	return s.URLs
}

// Limits is how long to wait, and how much to bear.
type Limits struct {
	// For a whole ClientHello, counted from the connection.
	HelloTimeout time.Duration `yaml:"hello_timeout" default:"10s"`
	// For the head of the first request on a connection.
	RequestHeadTimeout time.Duration `yaml:"request_head_timeout" default:"30s"`
	// For a connection to a backend.
	ConnectTimeout time.Duration `yaml:"connect_timeout" default:"5s"`
	// For a client that sends nothing between two requests. Once it has logged in with NTLM or Negotiate it is at least 20
	// minutes. Inside a request the virtual directory's own limit holds.
	ClientIdleTimeout time.Duration `yaml:"client_idle_timeout" default:"5m"`
	// How long a TCP connection, of a client or to a server, is silent before it is asked for a sign of life.
	TCPKeepalive time.Duration `yaml:"tcp_keepalive" default:"1m"`
	// How long TCP waits for an acknowledgement before it gives the connection up, on Linux: so long a client that has
	// vanished keeps its long poll.
	TCPUserTimeout time.Duration `yaml:"tcp_user_timeout" default:"2m"`
	// How many client connections at once; 0 is no limit.
	Connections int `yaml:"connections" default:"0"`
	// How many wrong passwords before further tries are turned away.
	FailedLogins FailedLogins `yaml:"failed_logins"`
}

// FailedLogins is how many wrong passwords are borne, at Autodiscover and at bridged hosts together.
type FailedLogins struct {
	// For one user; 0 is no limit. Keep it at least two below the lock-out threshold of the directory. Sources from which the
	// user has logged in before stay open until a login from there fails.
	PerUser int `yaml:"per_user" default:"8"`
	// From one source: an IPv4 address or an IPv6 /64; 0 is no limit. Users who have logged in from there before are not
	// shut out.
	PerSource int `yaml:"per_source" default:"100"`
	// How long a wrong password counts.
	Window time.Duration `yaml:"window" default:"15m"`
}

// Log is what the log holds.
type Log struct {
	// The least important level that is written. Mailbox addresses appear at debug only.
	Level string `yaml:"level" enum:"trace,debug,info,warn,error" default:"info"`
	// `json`, one object a line, or `console`, for people.
	Format string `yaml:"format" enum:"json,console" default:"json"`
}
