package proxy

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
)

// Rule is one of the known attacks on Exchange that bridged hosts stop.
type Rule struct {
	ID        string // in logs and counters; never changes its meaning
	Stops     string // which requests, in one sentence
	Reference string // the vulnerability, or where the rule comes from
	// Removes: the request goes on without what is named; all others are answered
	// with 404 and reach no server.
	Removes bool
}

// Rules returns all rules, in the order in which they are tried.
func Rules() []Rule {
	var all []Rule
	for _, r := range attackRules[1:] {
		all = append(all, r.Rule)
	}
	return all
}

// RuleHits returns, by the rule's ID, how many requests each rule has matched
// since the server began.
func (s *Server) RuleHits() map[string]uint64 {
	hits := map[string]uint64{}
	for i := range attackRules[1:] {
		hits[attackRules[i+1].ID] = s.ruleHits[i+1].Load()
	}
	return hits
}

// ruleNumber is a rule's place in attackRules.
type ruleNumber int

const (
	noRule ruleNumber = iota
	ruleProxyLogon
	ruleProxyShell
	ruleOWASSRF
	ruleV2
	ruleProxyToken
	ruleBackEndToken
	ruleBackEndHeaders
)

// attackRule is a rule and its condition: a pure function of what was found in the
// head, the canonical path and the directory that covers it.
type attackRule struct {
	Rule
	match func(f findings, path string, v *VirtualDirectory) bool
}

// attackRules are data: a new attack is a line here, a finding below, and its
// requests in the test's table (PROXYING.md section 11.3).
var attackRules = [...]attackRule{
	ruleProxyLogon: {
		Rule{
			ID: "proxylogon", Reference: "CVE-2021-26855 (ProxyLogon)",
			Stops: "a cookie `X-AnonResource-Backend`, or a cookie `X-BEResource` that holds more than a server's name",
		},
		func(f findings, _ string, _ *VirtualDirectory) bool { return f.any(anonBackend | beResourcePath) },
	},
	ruleProxyShell: {
		// The condition that was left after several narrower ones had been got round.
		Rule{
			ID: "proxyshell", Reference: "CVE-2021-34473 (ProxyShell), CVE-2022-41040 (ProxyNotShell)",
			Stops: "`autodiscover` and `powershell` in one URL, or `autodiscover` in a cookie `Email`",
		},
		func(f findings, _ string, _ *VirtualDirectory) bool {
			return f.all(autodiscoverWord|powershellWord) || f.any(emailCookie)
		},
	},
	ruleOWASSRF: {
		// A slash before the word, because the word alone is in many a subject line. OWA
		// 2010 and later open the links of a message through redir.aspx, and the address
		// of a page about PowerShell is no attack there.
		Rule{
			ID: "owassrf", Reference: "CVE-2022-41080 (OWASSRF)",
			Stops: "`/powershell` in the path or query of any directory but a published PowerShell one",
		},
		func(f findings, path string, v *VirtualDirectory) bool {
			return (f.any(powershellPath) || f.any(powershellQuery) && path != "/owa/redir.aspx") && !isPowershell(v)
		},
	},
	ruleV2: {
		// The exact document is held against its allow-list while it is rebuilt.
		Rule{
			ID: "autodiscover-v2", Reference: "CVE-2021-34473, CVE-2022-41040",
			Stops: "`autodiscover.json` anywhere but as the document itself, and the document with anything but its known keys and one address",
		},
		func(f findings, path string, _ *VirtualDirectory) bool {
			_, exact := underV2(path)
			return f.any(v2Query) || f.any(v2Path) && !exact
		},
	},
	ruleProxyToken: {
		Rule{
			ID: "proxytoken", Reference: "CVE-2021-33766 (ProxyToken)",
			Stops: "a cookie `SecurityToken` that is not empty, in `/ecp`",
		},
		func(f findings, path string, _ *VirtualDirectory) bool {
			return f.any(securityToken) && (path == "/ecp" || strings.HasPrefix(path, "/ecp/"))
		},
	},
	ruleBackEndToken: {
		Rule{
			ID: "backend-token", Reference: "CVE-2021-34523 (ProxyShell)",
			Stops: "`X-Rps-CAT=` in a URL, which tells a back end who the user is",
		},
		func(f findings, _ string, _ *VirtualDirectory) bool { return f.any(backEndToken) },
	},
	ruleBackEndHeaders: {
		// Removed, not refused (AUTODISCOVER.md section 9): nothing is lost of a request
		// that some server, not a client, made.
		Rule{
			ID: "backend-headers", Reference: "CVE-2021-34523 (ProxyShell)", Removes: true,
			Stops: "headers by which Exchange's front end tells its back end who the user is: `X-CommonAccessToken`, `X-Rps-CAT`, `X-IsFromCafe`, `X-IsFromBackend`, `X-SourceCafeServer`, also spelled with `_`",
		},
		func(f findings, _ string, _ *VirtualDirectory) bool { return f.any(backEndHeaders) },
	},
}

// blocked is the answer to an attack: 404 like everything that is not
// published, which tells a scanner nothing, and after which Outlook goes on to the
// next dialect if it was no attack after all. After 403 it gives up.
func blocked(n ruleNumber, v *VirtualDirectory) route {
	r := refuse(http.StatusNotFound, "blocked by rule "+attackRules[n].ID)
	r.rule, r.vdir = n, v
	return r
}

// findAttack returns the first rule that a request matches, or noRule.
func findAttack(h *requestHead, v *VirtualDirectory, path, query string) ruleNumber {
	f := findInTarget(path, query) | findInFields(h.fields)
	if f == 0 {
		return noRule
	}
	for n := noRule + 1; int(n) < len(attackRules); n++ {
		if attackRules[n].match(f, path, v) {
			return n
		}
	}
	return noRule
}

// findings is what of interest a head holds, a set of bits.
type findings uint16

const (
	autodiscoverWord findings = 1 << iota // in the target
	powershellWord                        // in the target
	powershellPath                        // "/powershell" in the path
	powershellQuery                       // "/powershell" in the query
	v2Path                                // "/autodiscover.json" in the path
	v2Query                               // "/autodiscover.json" in the query
	backEndToken                          // "x-rps-cat=" in the target
	anonBackend                           // cookie X-AnonResource-Backend
	beResourcePath                        // cookie X-BEResource with more than a name
	securityToken                         // cookie SecurityToken with a value
	emailCookie                           // cookie Email that names Autodiscover
	backEndHeaders
)

func (f findings) any(of findings) bool { return f&of != 0 }

func (f findings) all(of findings) bool { return f&of == of }

// isPowershell tells whether a directory is there for PowerShell.
func isPowershell(v *VirtualDirectory) bool {
	return slices.ContainsFunc(v.Prefixes, func(p string) bool { return strings.HasPrefix(p, "/powershell") })
}

var (
	wordAutodiscover = []byte("autodiscover")
	wordPowershell   = []byte("powershell")
	wordRpsCAT       = []byte("x-rps-cat=")
	slashPowershell  = []byte("/powershell")
	slashV2          = []byte("/autodiscover.json")
)

// findInTarget looks at path and query.
func findInTarget(path, query string) findings {
	f := findInText(path, powershellPath, v2Path)
	if query != "" {
		f |= findInText(query, powershellQuery, v2Query)
	}
	return f
}

// findInText looks at a text in every decoding; slashed and document are the
// findings for the two words behind a slash.
func findInText(s string, slashed, document findings) (f findings) {
	var stack [256]byte // longer ones are copied to the heap
	for text, n := append(stack[:0], s...), 0; text != nil; n++ {
		text = foldText(text)
		f |= findWords(text)
		if bytes.Contains(text, slashPowershell) {
			f |= slashed
		}
		if bytes.Contains(text, slashV2) {
			f |= document
		}
		text = nextDecoding(text, n)
	}
	return f
}

func findWords(text []byte) (f findings) {
	if bytes.Contains(text, wordAutodiscover) {
		f |= autodiscoverWord
	}
	if bytes.Contains(text, wordPowershell) {
		f |= powershellWord
	}
	if bytes.Contains(text, wordRpsCAT) {
		f |= backEndToken
	}
	return f
}

// findInFields looks for cookies and headers that only servers have a use for.
func findInFields(fields []field) (f findings) {
	open := false // the last Cookie line ended in the value of X-BEResource
	for i := range fields {
		fl := &fields[i]
		switch {
		case fl.is("Cookie"):
			if open {
				// IIS puts several lines together with a comma, and what looks like another
				// cookie is then the rest of this value.
				f |= beResourcePath
			}
			var found findings
			found, open = findInCookies(fl.value)
			f |= found
		case backEndHeader(fl.name):
			f |= backEndHeaders
		}
	}
	return f
}

// findInCookies looks at the value of one Cookie line. A name counts wherever a
// lenient parser may see one begin.
func findInCookies(line []byte) (f findings, open bool) {
	for i := range line {
		if i > 0 && line[i-1] != ';' && line[i-1] != ',' && line[i-1] != ' ' && line[i-1] != '\t' {
			continue
		}
		rest := line[i:]
		switch rest[0] | 0x20 {
		case 'x':
			if _, ok := cutPrefixFold(rest, "X-AnonResource-Backend"); ok {
				f |= anonBackend
			} else if value, last, ok := cookieValue(rest, "X-BEResource"); ok {
				open = last
				if inAnyDecoding(value, holdsPath) {
					f |= beResourcePath
				}
			}
		case 's':
			if value, _, ok := cookieValue(rest, "SecurityToken"); ok && len(value) > 0 {
				f |= securityToken
			}
		case 'e':
			if value, _, ok := cookieValue(rest, "Email"); ok && inAnyDecoding(value, holdsAutodiscover) {
				f |= emailCookie
			}
		}
	}
	return f, open
}

// cookieValue returns the value of a cookie that text begins with, up to the next
// semicolon, and whether the line ends in it.
func cookieValue(text []byte, name string) (value []byte, last, ok bool) {
	text, ok = cutPrefixFold(text, name)
	if !ok {
		return nil, false, false
	}
	text, ok = bytes.CutPrefix(bytes.TrimLeft(text, " \t"), []byte("="))
	if !ok {
		return nil, false, false
	}
	value, _, more := bytes.Cut(text, []byte(";"))
	return bytes.TrimSpace(value), !more, true
}

func cutPrefixFold(text []byte, prefix string) ([]byte, bool) {
	if len(text) < len(prefix) || !equalFold(text[:len(prefix)], prefix) {
		return text, false
	}
	return text[len(prefix):], true
}

// holdsPath tells whether the value of X-BEResource is more than what Exchange
// puts there itself, a server's name, "~" and a number.
func holdsPath(value []byte) bool { return bytes.ContainsAny(value, "/?#@") }

func holdsAutodiscover(value []byte) bool { return bytes.Contains(value, wordAutodiscover) }

// inAnyDecoding tells whether holds is true of the value in any of its decodings.
func inAnyDecoding(value []byte, holds func([]byte) bool) bool {
	for text, n := append([]byte{}, value...), 0; text != nil; n++ {
		text = foldText(text)
		if holds(text) {
			return true
		}
		text = nextDecoding(text, n)
	}
	return false
}

// backEndNames are the headers that only Exchange's front end sends, to its back
// end. X-AnchorMailbox, X-PreferServerAffinity and the cookies X-BackEndCookie and
// X-BackEndOverrideCookie are the clients' own. msExchProxyUri and its like
// are from Exchange 2010, whose servers send requests to other sites with them.
var backEndNames = [...]string{"x-commonaccesstoken", "x-rps-cat", "x-isfromcafe", "x-isfrombackend", "x-sourcecafeserver"}

// backEndHeader tells whether a header is one of backEndNames, also when spelled
// with "_".
func backEndHeader(name []byte) bool {
	for _, want := range backEndNames {
		if len(name) == len(want) && beginsAs(name, want) {
			return true
		}
	}
	return false
}

// maxDecodings: servers decode once, Exchange here and there a second time. The
// third is for caution.
const maxDecodings = 3

// nextDecoding decodes text once more, in place; nil if that changes nothing or
// enough has been tried, n times already.
func nextDecoding(text []byte, n int) []byte {
	if n == maxDecodings || bytes.IndexByte(text, '%') < 0 {
		return nil
	}
	out, w := text, 0
	for i := 0; i < len(text); w++ {
		c := text[i]
		switch {
		case c == '%' && i+2 < len(text) && isHex(text[i+1]) && isHex(text[i+2]):
			c = unhex(text[i+1])<<4 | unhex(text[i+2])
			i += 3
		case c == '%' && i+5 < len(text) && text[i+1] == 'u' && isHex(text[i+2]) && isHex(text[i+3]) && isHex(text[i+4]) && isHex(text[i+5]):
			// Only ASP.NET knows %uXXXX, in queries. Of what is not ASCII the width is
			// folded, and the rest is of no interest.
			r := rune(unhex(text[i+2]))<<12 | rune(unhex(text[i+3]))<<8 | rune(unhex(text[i+4]))<<4 | rune(unhex(text[i+5]))
			if 0xff01 <= r && r <= 0xff5e {
				r -= 0xff01 - '!'
			}
			c = '_'
			if r < 0x80 {
				c = byte(r)
			}
			i += 6
		default:
			i++
		}
		out[w] = c
	}
	if w == len(text) {
		return nil
	}
	return out[:w]
}

// foldText folds in place what a server may take for the same letter: upper case,
// the four letters outside ASCII whose other case is in it, full-width forms, and
// the backslash.
func foldText(text []byte) []byte {
	w := 0
	for i := 0; i < len(text); w++ {
		c := text[i]
		i++
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '\\':
			c = '/'
		case c < 0x80:
		case c == 0xc5 && i < len(text) && text[i] == 0xbf: // long s
			c = 's'
			i++
		case c == 0xc4 && i < len(text) && (text[i] == 0xb0 || text[i] == 0xb1): // the Turkish i
			c = 'i'
			i++
		case c == 0xe2 && i+1 < len(text) && text[i] == 0x84 && text[i+1] == 0xaa: // Kelvin
			c = 'k'
			i += 2
		case c == 0xef && i+1 < len(text) && (text[i] == 0xbc && 0x81 <= text[i+1] && text[i+1] <= 0xbf || text[i] == 0xbd && 0x80 <= text[i+1] && text[i+1] <= 0x9e):
			// U+FF01 is "!", U+FF40 "`".
			c = '!' + text[i+1] - 0x81
			if text[i] == 0xbd {
				c = '`' + text[i+1] - 0x80
			}
			i += 2
			if 'A' <= c && c <= 'Z' {
				c |= 0x20
			} else if c == '\\' {
				c = '/'
			}
		}
		text[w] = c
	}
	return text[:w]
}
