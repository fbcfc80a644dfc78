package config

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// fault is what is wrong with one value, before it is known where the value stands.
type fault struct {
	rule          Rule
	message, want string
}

func faultf(rule Rule, want, format string, args ...any) *fault {
	return &fault{rule: rule, message: fmt.Sprintf(format, args...), want: want}
}

// kind is a sort of text: how it is read into canonical form, and what the schema and the reference say about it.
type kind struct {
	read  func(s string) (string, *fault)
	about string // the type column of the reference
	// format is the JSON Schema format, and pattern its pattern; either may be empty.
	format, pattern string
}

// kinds are the values of the `kind` and `key` tags in types.go.
var kinds = map[string]kind{
	"host":         {read: readHost, about: "host name", format: "idn-hostname"},
	"domain":       {read: readHost, about: "domain", format: "idn-hostname"},
	"site":         {read: readPlain, about: "site"},
	"file":         {read: readPlain, about: "file"},
	"vdir":         {read: readVdir, about: "virtual directory"},
	"listen":       {read: readListen, about: "address"},
	"hostport":     {read: readHostPort, about: "host:port", pattern: `^.+:[0-9]+$`},
	"https":        {read: urlForm{schemes: []string{"https"}, path: anyPath, example: "https://acme.contoso.com/directory"}.read, about: "https URL", pattern: "^https://"},
	"origin":       {read: urlForm{schemes: []string{"https"}, example: "https://mail.contoso.com"}.read, about: "https URL without path", pattern: "^https://[^/?#]+$"},
	"server":       {read: urlForm{rule: RuleServerURL, schemes: []string{"https", "http"}, example: "https://cas01.contoso.local"}.read, about: "URL without path", pattern: "^https?://[^/?#]+$"},
	"mail":         {read: urlForm{rule: RuleMailBackend, schemes: []string{"tls", "starttls", "tcp"}, example: "tls://imap.contoso.local:993"}.read, about: "tls://host[:port]", pattern: "^(tls|starttls|tcp)://[^/?#]+$"},
	"ldap":         {read: urlForm{schemes: []string{"ldaps", "ldap"}, example: "ldaps://dc01.contoso.local"}.read, about: "ldaps://host[:port]", pattern: "^ldaps?://[^/?#]+$"},
	"autodiscover": {read: urlForm{rule: RuleRedirectURL, schemes: []string{"https"}, path: autodiscoverPath, example: "https://mail.contoso.com/autodiscover/autodiscover.xml"}.read, about: "https URL of an autodiscover.xml", pattern: "^https://"},
	"redirectaddr": {read: readRedirectAddr, about: "address, or @domain", pattern: "^[^@]*@[^@]+$"},
	"email":        {read: readEmail, about: "address", format: "email"},
	"storage":      {read: readStorage, about: "directory, or redis URL"},
	"pin":          {read: readPin, about: "sha256/base64", pattern: "^(cert-)?sha256/[A-Za-z0-9+/]{43}=$"},
	"cipher":       {read: readCipher, about: "cipher suite", pattern: "^TLS_[A-Z0-9]+_WITH_[A-Z0-9_]+$"},
	"method":       {read: readMethod, about: "method", pattern: "^[A-Z][A-Z_-]*$"},
	"authority":    {read: readAuthority, about: "name[:port]", pattern: "^[^/@]+$"},
	"publicname":   {read: readPublicName, about: "host name[:port]", pattern: "^[^/@]+$"},
	"hostheader":   {read: readHostHeader, about: "preserve, backend or host name", pattern: "^[^/@:]+$"},
	"rootpath":     {read: readRootPath, about: "path", pattern: "^(/.*)?$"},
	"header":       {read: readHeader, about: "header", pattern: "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"},
	"mailboxfile":  {read: readMailboxFile, about: "file", pattern: `\.([yY][aA]?[mM][lL]|[cC][sS][vV])$`},
	"":             {read: readPlain, about: "text"},
}

func readPlain(s string) (string, *fault) { return s, nil }

// names maps an internationalised name to its A-labels and checks every label, as a resolver's input is (RFC 5891
// section 5). Hyphens in the third and fourth place of a
// label are let through, as such names exist; those at its ends are caught by hyphenAtEdge.
var names = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.CheckHyphens(false),
	idna.VerifyDNSLength(true), idna.Transitional(false))

// CanonicalHost returns a host or domain name as it is compared: lower case, no trailing dot, internationalised labels
// as A-labels (xn--…). The error says what is wrong with a name that is none; IP addresses are none.
func CanonicalHost(name string) (string, error) {
	canonical, f := readHost(name)
	if f != nil {
		return "", errors.New(f.message)
	}
	return canonical, nil
}

func readHost(s string) (string, *fault) {
	const want = "a host name such as mail.contoso.com"
	switch {
	case strings.Contains(s, "://"):
		rest := s[strings.Index(s, "://")+3:]
		return "", faultf(RuleHostName, suggestHost(rest, want), "%q is a URL, not a host name", s)
	case strings.Contains(s, "*"):
		return "", faultf(RuleHostWildcard, "each host name written out", "host names with a wildcard are not accepted (%q)", s)
	case strings.ContainsAny(s, "/?#@"):
		return "", faultf(RuleHostName, suggestHost(s, want), "%q holds more than a host name", s)
	}
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return "", faultf(RuleHostName, want, "%q is an IP address; clients do not send one as a server name", s)
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		return "", faultf(RuleHostName, suggestHost(host, want), "%q holds a port (%s)", s, port)
	}
	ascii, err := names.ToASCII(strings.TrimSuffix(s, "."))
	if err != nil || hyphenAtEdge(ascii) {
		return "", faultf(RuleHostName, want, "%q is not a host name", s)
	}
	// What resolvers would read as an address (all digits at the end, WHATWG URL section 3.5) is not a name either.
	if last := ascii[strings.LastIndexByte(ascii, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "", faultf(RuleHostName, want, "%q is not a host name: it ends in a number", s)
	}
	return ascii, nil
}

// hyphenAtEdge reports whether a label begins or ends with a hyphen (RFC 1123 section 2.1).
func hyphenAtEdge(name string) bool {
	return strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") || strings.Contains(name, ".-") || strings.Contains(name, "-.")
}

// suggestHost is the host name inside s, if there is one.
func suggestHost(s, otherwise string) string {
	if i := strings.IndexAny(s, "/?#"); i >= 0 {
		s = s[:i]
	}
	s = s[strings.LastIndexByte(s, '@')+1:]
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	if strings.ContainsAny(s, "/?#@:*") {
		return otherwise
	}
	if host, f := readHost(s); f == nil {
		return host
	}
	return otherwise
}

// readHostOrIP reads what may stand before a port: a name, or an address without brackets.
func readHostOrIP(s string) (string, *fault) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.String(), nil
	}
	return readHost(s)
}

func readPort(s string, lowest int) (string, bool) {
	n, err := strconv.Atoi(s)
	if err != nil || s != strconv.Itoa(n) || n < lowest || n > 65535 {
		return "", false
	}
	return s, true
}

func readHostPort(s string) (string, *fault) {
	const want = "host:port, such as cas01.contoso.local:443"
	if strings.Contains(s, "://") {
		return "", faultf(RuleHostPort, want, "%q is a URL, not a host and a port", s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", faultf(RuleHostPort, want, "%q is not a host and a port", s)
	}
	if _, ok := readPort(port, 1); !ok {
		return "", faultf(RuleHostPort, "a port from 1 to 65535", "%q is not a port", port)
	}
	if host, f := readHostOrIP(host); f == nil {
		return net.JoinHostPort(host, port), nil
	}
	return "", faultf(RuleHostPort, want, "%q is neither a host name nor an IP address", host)
}

func readListen(s string) (string, *fault) {
	const want = `an address to listen on: ":443", "192.0.2.1:443" or "[2001:db8::1]:443"`
	host, port, err := net.SplitHostPort(s)
	if _, ok := readPort(s, 0); ok {
		return "", faultf(RuleListenAddress, `":`+s+`"`, "%q is a port alone", s)
	}
	if err != nil {
		return "", faultf(RuleListenAddress, want, "%q is not an address and a port", s)
	}
	if _, ok := readPort(port, 0); !ok {
		return "", faultf(RuleListenAddress, "a port from 1 to 65535, or 0 for a free one", "%q is not a port", port)
	}
	if host == "" {
		return ":" + port, nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", faultf(RuleListenAddress, want, "%q is not an IP address", host)
	}
	return netip.AddrPortFrom(ip, uint16(mustAtoi(port))).String(), nil
}

// mustAtoi reads what readPort has accepted.
func mustAtoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// urlForm is what a URL of one sort may hold. None may hold user, query or fragment.
type urlForm struct {
	rule    Rule // RuleURL when empty
	schemes []string
	path    func(path string) bool // nil: no path
	example string
}

func anyPath(string) bool { return true }

func autodiscoverPath(path string) bool {
	return strings.EqualFold(path, "/autodiscover/autodiscover.xml")
}

func (form urlForm) read(s string) (string, *fault) {
	rule := form.rule
	if rule == "" {
		rule = RuleURL
	}
	bad := func(format string, args ...any) (string, *fault) {
		return "", faultf(rule, "such as "+form.example, format, args...)
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Opaque != "" || !strings.Contains(s, "://") {
		return bad("%q is not a URL", s)
	}
	switch {
	case !slices.Contains(form.schemes, u.Scheme):
		return bad("%q does not begin with %s://", s, strings.Join(form.schemes, ":// or "))
	case u.User != nil:
		return bad("%q holds a user name; no credentials belong here", s)
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return bad("%q holds a query or a fragment", s)
	case u.Hostname() == "":
		return bad("%q has no host", s)
	}
	host, f := readHostOrIP(u.Hostname())
	if f != nil {
		return bad("the host of %q is neither a host name nor an IP address", s)
	}
	if port := u.Port(); port != "" {
		if _, ok := readPort(port, 1); !ok {
			return "", faultf(rule, "a port from 1 to 65535, or none for the usual one", "%q is not a port", port)
		}
		host = net.JoinHostPort(host, port)
	} else if strings.HasSuffix(u.Host, ":") {
		return bad("%q has a colon and no port after it", s)
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	switch {
	case form.path == nil && u.Path != "":
		return "", faultf(rule, u.Scheme+"://"+host, "%q holds a path", s)
	case form.path != nil && !form.path(u.Path):
		return bad("the path of %q is not /autodiscover/autodiscover.xml", s)
	}
	return u.Scheme + "://" + host + u.EscapedPath(), nil
}

func readRedirectAddr(s string) (string, *fault) {
	local, domain, _ := strings.Cut(s, "@")
	host, f := readHost(domain)
	if f != nil || strings.ContainsAny(local, " \t\"<>()[]:;,\\") {
		return "", faultf(RuleRedirectAddr, `"@contoso.com" to keep the part before the @, or a full address`, "%q is not a mail address or @domain", s)
	}
	return local + "@" + host, nil
}

func readEmail(s string) (string, *fault) {
	if address, f := readRedirectAddr(s); f == nil && !strings.HasPrefix(address, "@") {
		return address, nil
	}
	return "", faultf(RuleEmail, "an address such as hostmaster@contoso.com", "%q is not a mail address", s)
}

func readStorage(s string) (string, *fault) {
	const want = "a directory, redis://[user@]host[:port][/database], rediss://… or unix://[user@]/path[?db=database]"
	// No message quotes the value: it may hold a password.
	bad := func(format string, args ...any) (string, *fault) {
		return "", faultf(RuleStorage, want, format, args...)
	}
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		return s, nil
	}
	if !isRedis(s) {
		return bad("certificates cannot be kept in %s://", scheme)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("it is not a URL")
	}
	if _, has := u.User.Password(); has {
		return "", faultf(RuleStorage, "storage_password_file: FILE", "there is a password in the URL; this file is shown and copied")
	}
	query, database := u.Query(), strings.TrimPrefix(u.Path, "/")
	switch port := u.Port(); {
	case scheme == "unix" && (u.Host != "" || strings.Trim(u.Path, "/") == ""):
		return bad("there is no absolute path of a socket")
	case scheme == "unix":
		database = query.Get("db")
		query.Del("db")
	case u.Hostname() == "":
		return bad("there is no host")
	case port != "":
		if _, ok := readPort(port, 1); !ok {
			return bad("%q is not a port", port)
		}
	}
	if _, err := strconv.ParseUint(database, 10, 31); err != nil && database != "" {
		return bad("%q is no number of a database", database)
	}
	if len(query) > 0 || u.Fragment != "" {
		return bad("it has parameters that mean nothing here")
	}
	return s, nil
}

func isRedis(storage string) bool {
	scheme, _, ok := strings.Cut(storage, "://")
	return ok && slices.Contains([]string{"redis", "rediss", "unix"}, scheme)
}

func readPin(s string) (string, *fault) {
	encoded, ok := strings.CutPrefix(strings.TrimPrefix(s, "cert-"), "sha256/")
	sum, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(sum) != sha256.Size {
		return "", faultf(RulePin, "sha256/ and the base64 SHA-256 of the public key, or cert-sha256/ and that of the certificate", "%q is not a pin", s)
	}
	return s, nil
}

func readCipher(s string) (string, *fault) {
	const want = "the IANA name of a suite that Go has, such as TLS_RSA_WITH_3DES_EDE_CBC_SHA"
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		switch {
		case suite.Name != s:
		case suite.SupportedVersions[0] == tls.VersionTLS13:
			return "", faultf(RuleCipher, want, "%s belongs to TLS 1.3, whose suites cannot be chosen", s)
		default:
			return s, nil
		}
	}
	return "", faultf(RuleCipher, want, "%q is no cipher suite known here", s)
}

func readMailboxFile(s string) (string, *fault) {
	switch strings.ToLower(filepath.Ext(s)) {
	case ".yaml", ".yml", ".csv":
		return s, nil
	}
	return "", faultf(RuleMailboxesFile, "a file whose name ends in .yaml, .yml or .csv", "the name of %q does not tell its format", s)
}

// vdirPaths are the virtual directories that have a name, and their paths in canonical (lower) case.
var vdirPaths = map[string]string{
	"owa":               "/owa",
	"ecp":               "/ecp",
	"ews":               "/ews",
	"mapi":              "/mapi",
	"rpc":               "/rpc",
	"rpcwithcert":       "/rpcwithcert",
	"oab":               "/oab",
	"autodiscover":      "/autodiscover",
	"activesync":        "/microsoft-server-activesync",
	"powershell":        "/powershell",
	"powershell-liveid": "/powershell-liveid",
	"api":               "/api",
	"publicfolder":      "/publicfolder",
	"publicfolders":     "/publicfolders",
	"unifiedmessaging":  "/unifiedmessaging",
	"exchange":          "/exchange",
	"public":            "/public",
	"exchweb":           "/exchweb",
}

// vdirAlias is the other name administrators use for ActiveSync: that of its directory in IIS.
const vdirAlias = "microsoft-server-activesync"

// readVdir reads a key of virtual_directories: a name in lower case, or a path prefix in lower case. IIS compares
// paths without regard to case, so two prefixes that differ in nothing else are one.
func readVdir(s string) (string, *fault) {
	lower := strings.ToLower(s)
	if !strings.HasPrefix(s, "/") {
		if lower == vdirAlias {
			lower = "activesync"
		}
		if _, ok := vdirPaths[lower]; ok {
			return lower, nil
		}
		want := "one of " + strings.Join(slices.Sorted(maps.Keys(vdirPaths)), ", ") + ", or a path that begins with /"
		return "", faultf(RuleVdirName, didYouMean(lower, maps.Keys(vdirPaths), want), "there is no virtual directory %q", s)
	}
	bad := func(why string) (string, *fault) {
		return "", faultf(RuleVdirPath, "a path such as /custom/app, as it is after every decoding", "%q %s", s, why)
	}
	if s == "/" {
		return "", faultf(RuleVdirPath, "the paths that are to be reached, one by one", `"/" would publish everything the server has`)
	}
	if strings.HasSuffix(s, "/") {
		return bad("ends in /; a prefix matches what is below it anyway")
	}
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`%;\?#"<>^{|}`+"`", c) {
			return bad(fmt.Sprintf("holds %q, which does not stand for itself in a path", c))
		}
	}
	for segment := range strings.SplitSeq(s[1:], "/") {
		switch segment {
		case "":
			return bad("holds //")
		case ".", "..":
			return bad("holds " + segment + " as a segment")
		}
		// IIS drops dots at the end of a segment.
		if strings.HasSuffix(segment, ".") {
			return bad("holds a segment that ends in a dot")
		}
	}
	return lower, nil
}

// readMethod reads a request method. Methods are compared as they are written (RFC 9110 section 9.1), and all that mean
// something to Exchange are in capitals.
func readMethod(s string) (string, *fault) {
	const want = "a method such as GET, POST or PROPFIND"
	switch upper := strings.ToUpper(s); {
	case upper == "TRACE" || upper == "CONNECT":
		return "", faultf(RuleMethod, want, "%s is never let through", upper)
	case strings.Trim(upper, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_-") != "":
		return "", faultf(RuleMethod, want, "%q is not a method", s)
	case upper != s:
		return "", faultf(RuleMethod, upper, "methods are written in capitals, and %q is not", s)
	}
	return s, nil
}

// Size is a number of bytes; 0 stands for no limit.
type Size int64

// String returns the size as it is written in the file: in the largest unit that leaves it whole.
func (s Size) String() string {
	if s == 0 {
		return "none"
	}
	for _, u := range sizeUnits {
		if s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// sizeUnits are the units of sizes, the largest first.
var sizeUnits = []struct {
	name  string
	bytes Size
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// readSize reads a number of bytes, with or without a unit, or none. Units that mean 1000 to some and 1024 to others are
// refused.
func readSize(s string) (Size, *fault) {
	const want = "a size such as 512KiB, 64MiB or 2GiB, or none"
	if s == "none" || s == "0" {
		return 0, nil
	}
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.TrimSpace(s[len(number):])
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || number[0] == '+' {
		return 0, faultf(RuleSize, want, "%q is not a size", s)
	}
	factor := Size(0)
	for _, u := range sizeUnits {
		switch {
		case unit == u.name:
			factor = u.bytes
		case unit == "":
			factor = 1
		case strings.EqualFold(unit, u.name), strings.EqualFold(unit, u.name[:1]), strings.EqualFold(unit, u.name[:1]+"B"):
			return 0, faultf(RuleSize, number+u.name, "the unit of %q is not one that everybody reads alike", s)
		}
	}
	switch {
	case factor == 0:
		return 0, faultf(RuleSize, want, "there is no unit %q", unit)
	case n <= 0:
		return 0, faultf(RuleSize, want, "%s leaves no room at all", s)
	case Size(n) > math.MaxInt64/factor:
		return 0, faultf(RuleSize, want, "%s is more than can be counted", s)
	}
	return Size(n) * factor, nil
}

func readDuration(s string) (time.Duration, *fault) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, faultf(RuleDuration, "a duration such as 10s, 5m or 1h30m", "%q is not a duration", s)
	}
	if d <= 0 {
		return 0, faultf(RuleDuration, "a duration above zero, such as 10s", "%s leaves no time at all", s)
	}
	return d, nil
}

func readPrefix(s string) (netip.Prefix, *fault) {
	const want = "a network such as 10.0.0.0/8 or 2001:db8::/32, or one address"
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		if ip.Is4In6() {
			return netip.Prefix{}, faultf(RulePrefix, ip.Unmap().String(), "%q is an IPv4 address in IPv6 dress", s)
		}
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, faultf(RulePrefix, want, "%q is not a network", s)
	case p.Addr().Is4In6():
		return p, faultf(RulePrefix, want, "%q is an IPv4 network in IPv6 dress", s)
	case p != p.Masked():
		return p, faultf(RulePrefix, p.Masked().String()+", or "+p.Addr().String()+" for the one address", "%q is an address, not the beginning of a network", s)
	}
	return p, nil
}

// readAuthority reads the key of a host map: a name or an address, and a port where it is not the scheme's own.
func readAuthority(s string) (string, *fault) {
	return readNamePort(s, readHostOrIP, "cas01.contoso.local or cas01.contoso.local:444")
}

// readPublicName reads what a host map leads to.
func readPublicName(s string) (string, *fault) { return readNamePort(s, readHost, "mail.contoso.com") }

func readNamePort(s string, readName func(string) (string, *fault), example string) (string, *fault) {
	name, port, err := net.SplitHostPort(s)
	if strings.ContainsAny(s, "/?#@") {
		name = s
	} else if err != nil {
		name, port = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), ""
	} else if _, ok := readPort(port, 1); !ok {
		return "", faultf(RuleHostMapName, "a port from 1 to 65535", "%q is not a port", port)
	}
	host, f := readName(name)
	switch {
	case f != nil:
		return "", faultf(RuleHostMapName, "a name with or without a port, such as "+example, "%q is not such a name", s)
	case port != "":
		return net.JoinHostPort(host, port), nil
	case strings.Contains(host, ":"):
		return "[" + host + "]", nil
	}
	return host, nil
}

func readHostHeader(s string) (string, *fault) {
	if s == "preserve" || s == "backend" {
		return s, nil
	}
	return readHost(s)
}

// readRootPath reads a path on the same host: a second slash would make the first label behind it a host.
func readRootPath(s string) (string, *fault) {
	if !strings.HasPrefix(s, "/") || strings.Contains(s, "//") || s == "/" ||
		strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`%;\?#"<>^{|}`+"`", c) }) {
		return "", faultf(RuleRootRedirect, `a path such as /owa/, or "" for none`, "%q is not a path that / can lead to", s)
	}
	for segment := range strings.SplitSeq(s, "/") {
		if segment != "" && strings.Trim(segment, ".") == "" {
			return "", faultf(RuleRootRedirect, `a path such as /owa/, or "" for none`, "%q holds %s as a segment", s, segment)
		}
	}
	return s, nil
}

// neededHeaders are headers that clients of Exchange act upon, or that frame, authenticate or describe a response. A name
// that ends in - stands for all that begin with it.
var neededHeaders = []string{
	"content-", "transfer-encoding", "connection", "keep-alive", "trailer", "upgrade", "te", "vary", "date", "age", "expires", "cache-control", "pragma",
	"etag", "last-modified", "accept-ranges", "allow", "public", "dav", "location", "refresh", "retry-after", "set-cookie", "www-authenticate",
	"authentication-info", "persistent-auth", "proxy-support", "strict-transport-security", "x-content-type-options", "x-frame-options", "access-control-",
	"ms-", "x-ms-", "x-owa-", "x-soap-enabled", "x-wssecurity-", "x-oauth-enabled", "x-requesttype", "x-responsecode", "x-requestid", "x-clientinfo",
	"x-serverapplication", "x-expirationinfo", "x-pendingperiod", "x-starttime", "x-elapsedtime", "request-id", "client-request-id", "jsonerror",
}

// readHeader reads the name of a header that may be hidden.
func readHeader(s string) (string, *fault) {
	lower := strings.ToLower(s)
	if strings.ContainsFunc(s, func(c rune) bool {
		return c >= 0x7f || c <= ' ' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	}) {
		return "", faultf(RuleHeaderName, "the name of a header, such as X-Powered-By", "%q is not the name of a header", s)
	}
	for _, needed := range neededHeaders {
		if (lower == needed || strings.HasSuffix(needed, "-") && strings.HasPrefix(lower, needed)) && lower != "x-owa-version" {
			return "", faultf(RuleHeaderNeeded, "the list without it", "clients need %s", s)
		}
	}
	return s, nil
}
