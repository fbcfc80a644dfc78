package tlsconf

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// Deployment is what is known of the names a deployment uses, as a configuration tells it.
type Deployment struct {
	Namespaces []Namespace
	Domains    []MailDomain
	Sites      []ServerSite
	Redirected string // the host that many hosted domains are redirected to, listed in a file; "" if there is none
}

// Namespace is a public host name and what the front door does for it.
type Namespace struct {
	Host        string
	Aliases     []string
	Mode        string   // site, passthrough, redirect or answer
	Site        string   // with site, and with passthrough to one
	Redirect    string   // with redirect: the host that clients are sent to
	Certificate string   // acme, autocert, self_signed, files; "" without one
	Services    []string // what clients use it for: autodiscover, owa, ews, …, imap, pop3, submission
	Passed      []string // those of Services that are passed through although the host is not
}

// MailDomain is a mail domain, and where its users' services are.
type MailDomain struct {
	Name         string
	ExternalHost string // of external_url
	InternalHost string // of internal_url, for clients inside
	RedirectHost string // of redirect_url, or autodiscover.DOMAIN of redirect_addr
}

// ServerSite is a site of servers.
type ServerSite struct {
	Name         string
	Servers      []string // their hosts
	ExternalHost string   // of external_url: a public address of its own
	Exchange     string   // its version, "" if that is not said
	Protection   bool     // Extended Protection is on
}

// Place is where the certificate for a name is needed.
type Place string

// The places.
const (
	Here      Place = "here"      // the front door shows it
	OnServers Place = "servers"   // the servers show it: passthrough, or clients that go to them inside
	Nowhere   Place = "none"      // clients get no further than port 80, or a DNS record
	Elsewhere Place = "elsewhere" // another front door or company
)

// Need is a name that clients use.
type Need struct {
	Name     string   `json:"name"`
	Place    Place    `json:"certificate"`
	Host     string   `json:"host,omitempty"`     // the host of the configuration that it belongs to
	Services []string `json:"services,omitempty"` // behind it
	Reasons  []string `json:"reasons"`
}

const autodiscoverPrefix = "autodiscover."

// Needs are the names that clients of a deployment use, each once, with where its certificate is needed and why: first
// the names that people type, those of Autodiscover last.
func (d Deployment) Needs() []Need {
	var needs []Need
	need := func(name string, place Place, reason string) *Need {
		name = canonical(name)
		i := slices.IndexFunc(needs, func(n Need) bool { return n.Name == name })
		if i < 0 {
			needs = append(needs, Need{Name: name, Place: place})
			i = len(needs) - 1
		}
		if !slices.Contains(needs[i].Reasons, reason) {
			needs[i].Reasons = append(needs[i].Reasons, reason)
		}
		return &needs[i]
	}
	for _, ns := range d.ordered() {
		place, reason := Here, "a public name"
		switch {
		case ns.Mode == "passthrough":
			place, reason = OnServers, "passed through: the handshake ends at the servers"
		case ns.Mode == "redirect" && ns.Certificate == "":
			place, reason = Nowhere, "the redirect site: port 80 answers for it, 443 refuses it"
		case ns.Mode == "redirect":
			reason = "redirects to " + ns.Redirect + ", on 443 too"
		case ns.Mode == "answer":
			reason = "Autodiscover is answered here"
		case ns.Mode == "site":
			reason = "bridged to site " + ns.Site
		}
		for i, name := range append([]string{ns.Host}, ns.Aliases...) {
			r := reason
			if i > 0 {
				r = "another name of " + ns.Host
			}
			n := need(name, place, r)
			n.Host = ns.Host
			n.Services = ns.Services
			if len(ns.Passed) > 0 {
				n.Reasons = append(n.Reasons, strings.Join(ns.Passed, " and ")+" are passed through, so that the mail servers need a certificate for it as well")
			}
			if first, _, _ := strings.Cut(n.Name, "."); first == "legacy" {
				n.Reasons = append(n.Reasons, "mailboxes on older servers are sent there during coexistence")
			}
		}
	}
	for _, m := range d.Domains {
		name := autodiscoverPrefix + canonical(m.Name)
		n := need(name, Nowhere, "clients of "+m.Name+" look for Autodiscover there")
		n.Services = with(n.Services, "autodiscover")
		if n.Host == "" {
			n.Reasons = append(n.Reasons, "no host has that name, so that the SRV record alone leads them")
		}
		// The domain itself comes first in the clients' order; where it is no host of ours a web site answers, and must not
		// have the clients wait.
		if i := slices.IndexFunc(needs, func(n Need) bool { return n.Name == canonical(m.Name) }); i >= 0 {
			needs[i].Reasons = append(needs[i].Reasons, "clients try the mail domain itself first")
			needs[i].Services = with(needs[i].Services, "autodiscover")
		}
		if m.ExternalHost != "" {
			need(m.ExternalHost, Elsewhere, "the services of "+m.Name+" are published there")
		}
		if m.InternalHost != "" {
			need(m.InternalHost, OnServers, "clients inside use it for "+m.Name)
		}
		if m.RedirectHost != "" {
			need(m.RedirectHost, Elsewhere, "Autodiscover leads the users of "+m.Name+" there")
		}
	}
	for _, s := range d.Sites {
		if s.ExternalHost != "" {
			need(s.ExternalHost, Elsewhere, "users of site "+s.Name+" are redirected there")
		}
	}
	for _, ns := range d.Namespaces {
		if ns.Mode == "redirect" {
			need(ns.Redirect, Elsewhere, "Autodiscover of "+ns.Host+" is redirected there")
		}
	}
	if d.Redirected != "" {
		need(d.Redirected, Elsewhere, "Autodiscover of the hosted domains is redirected there")
	}
	slices.SortStableFunc(needs, func(a, b Need) int { return cmp.Compare(rank(a.Name), rank(b.Name)) })
	return needs
}

// ordered puts the names first that people use: those of bridged hosts, by the number of their services.
func (d Deployment) ordered() []Namespace {
	out := slices.Clone(d.Namespaces)
	weight := func(n Namespace) int {
		if n.Mode == "site" {
			return -len(n.Services) - 1
		}
		return 0
	}
	slices.SortStableFunc(out, func(a, b Namespace) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(a.Host, b.Host))
	})
	return out
}

// rank orders names: published ones, those of older servers, Autodiscover.
func rank(name string) int {
	switch first, _, _ := strings.Cut(name, "."); first {
	case "autodiscover":
		return 2
	case "legacy":
		return 1
	}
	return 0
}

func with(list []string, word string) []string {
	if slices.Contains(list, word) {
		return list
	}
	return append(slices.Clone(list), word)
}

// canonical is a name as it is compared: lower case, no trailing dot, internationalised labels in their ASCII form.
func canonical(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if rest, wild := strings.CutPrefix(name, "*."); wild {
		return "*." + canonical(rest)
	}
	if _, err := netip.ParseAddr(name); err != nil {
		if ascii, err := idna.Lookup.ToASCII(name); err == nil {
			return ascii
		}
	}
	return name
}

// Match is by what a certificate is good for a name.
type Match string

// The matches. A common name counts only for clients of old, and only where there is no subject alternative name.
const (
	NoMatch         Match = ""
	MatchExact      Match = "exact"
	MatchWildcard   Match = "wildcard"
	MatchAddress    Match = "address"
	MatchCommonName Match = "common name"
)

// MatchName tells by which of its names a certificate is good for a name. Only a match of a subject alternative name makes
// clients of today accept it (see [Covers]).
func MatchName(leaf *x509.Certificate, name string) (by Match, carried string) {
	if leaf == nil {
		return NoMatch, ""
	}
	name = canonical(name)
	if Covers(leaf, name) {
		for _, n := range leaf.DNSNames {
			if canonical(n) == name {
				return MatchExact, n
			}
		}
		for _, n := range leaf.DNSNames {
			if under(name, canonical(n)) {
				return MatchWildcard, n
			}
		}
		return MatchAddress, name
	}
	if len(sanNames(leaf)) == 0 && name != "" {
		if cn := canonical(leaf.Subject.CommonName); cn == name || under(name, cn) {
			return MatchCommonName, leaf.Subject.CommonName
		}
	}
	return NoMatch, ""
}

// under reports whether a wildcard stands for a name: for exactly one label, never for none or two.
func under(name, wildcard string) bool {
	parent, wild := strings.CutPrefix(wildcard, "*.")
	first, rest, ok := strings.Cut(name, ".")
	return wild && ok && first != "" && first != "*" && rest == parent
}

// Coverage is what a certificate carries of the names that are needed.
type Coverage struct {
	Carried     []Carried `json:"carried"`
	Missing     []Need    `json:"missing"`
	Superfluous []string  `json:"superfluous"` // names it carries that nobody needs from it
}

// Carried is a needed name, and by what the certificate is good for it.
type Carried struct {
	Need
	By  Match  `json:"by"`
	San string `json:"carried_by"`
}

// Hold holds a certificate against the names needed from it.
func Hold(leaf *x509.Certificate, needs []Need) (c Coverage) {
	var used []string
	for _, n := range needs {
		by, carried := MatchName(leaf, n.Name)
		if by == NoMatch {
			c.Missing = append(c.Missing, n)
			continue
		}
		used = append(used, canonical(carried))
		c.Carried = append(c.Carried, Carried{n, by, carried})
	}
	for _, n := range sanNames(leaf) {
		if !slices.Contains(used, canonical(n)) {
			c.Superfluous = append(c.Superfluous, n)
		}
	}
	return c
}

// ClientLimit is something that a client cannot do with a certificate that is otherwise in order.
type ClientLimit struct {
	ID     string `json:"id"`
	Client string `json:"client"`
	Limit  string `json:"limit"`
	Do     string `json:"do"`
}

// ClientLimits are the limits that the documents of 2008 to 2011 know of. docs/certificate-names.md has them as a table.
func ClientLimits() []ClientLimit {
	return []ClientLimit{
		{"wildcard", "Windows Mobile 5.0, some Palm devices", "do not accept a wildcard certificate", "name each host in the certificate"},
		{"wildcard-principal", "Outlook on Windows XP and earlier (Outlook Anywhere)", "does not match a wildcard by itself", "CertPrincipalName msstd:*.DOMAIN in the EXPR answer (Set-OutlookProvider EXPR -CertPrincipalName)"},
		{"principal", "Outlook on Windows XP and earlier (Outlook Anywhere)", "wants CertPrincipalName to equal a name on the certificate, and takes the common name for it", "make the external host name of Outlook Anywhere the common name, or set CertPrincipalName to msstd: and a name on the certificate"},
		{"self-signed", "Outlook Anywhere, ActiveSync", "do not connect to a self-signed certificate", "a certificate from a CA"},
		{"mail-san", "Outlook before 2010 (POP3 and IMAP4)", "looks at the common name alone there, not at the subject alternative names", "make the name of the mail server the common name, or give it a certificate of its own (a hotfix exists for 2007 SP2)"},
		{"own-root", "many mobile devices", "allow no CA of one's own to be installed", "a certificate from a public CA"},
		{"cng", "Exchange 2010", "does not use CNG keys, and an ECDSA key is always one", "an RSA key from a CryptoAPI provider, where servers share the certificate"},
		{"redirect", "ActiveSync of Exchange 2007", "knows no redirection to another site", "let the requests of such mailboxes be proxied: leave external_url of the site out"},
	}
}

// Circumstances are what decides which limits matter.
type Circumstances struct {
	Names      []string // of the certificate; the first is the common name
	SelfSigned bool
	PrivateCA  bool // issued by a CA that is not public
	ECDSA      bool
	Principal  string   // the name that Outlook Anywhere uses; "" without it
	Mail       []string // the names of POP3 and IMAP4
	Exchange   []string // the versions that are known, or "" for a server whose version is not
	Redirected bool     // users of a site are redirected to its own address
}

// CircumstancesOf takes from a certificate what it tells.
func CircumstancesOf(leaf *x509.Certificate) Circumstances {
	_, ec := leaf.PublicKey.(*ecdsa.PublicKey)
	c := Circumstances{SelfSigned: selfIssued(leaf), ECDSA: ec, Names: []string{leaf.Subject.CommonName}}
	for _, n := range sanNames(leaf) {
		c.Names = with(c.Names, n)
	}
	return c
}

// Limits are those of the limits that matter under the circumstances.
func (c Circumstances) Limits() []ClientLimit {
	wildcard := func(n string) bool { return strings.HasPrefix(n, "*.") }
	exact := func(name string) bool {
		return slices.ContainsFunc(c.Names, func(n string) bool { return canonical(n) == canonical(name) })
	}
	common := ""
	if len(c.Names) > 0 {
		common = canonical(c.Names[0])
	}
	applies := map[string]bool{
		"wildcard":           slices.ContainsFunc(c.Names, wildcard),
		"wildcard-principal": slices.ContainsFunc(c.Names, wildcard) && (c.Principal == "" || !exact(c.Principal)),
		"principal":          c.Principal != "" && exact(c.Principal) && canonical(c.Principal) != common,
		"self-signed":        c.SelfSigned,
		"mail-san":           slices.ContainsFunc(c.Mail, func(n string) bool { return canonical(n) != common }),
		"own-root":           c.PrivateCA && !c.SelfSigned,
		"cng":                c.ECDSA && (len(c.Exchange) == 0 || slices.Contains(c.Exchange, "2010") || slices.Contains(c.Exchange, "")),
		"redirect":           c.Redirected && slices.Contains(c.Exchange, "2007"),
	}
	return slices.DeleteFunc(ClientLimits(), func(l ClientLimit) bool { return !applies[l.ID] })
}
