package tlsconf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Plan is which names, DNS records and certificates a deployment needs.
type Plan struct {
	Models      []Model  `json:"models"` // the namespace models it follows
	Names       []Need   `json:"names"`
	Records     []Record `json:"records"`
	Recommended Option   `json:"recommended"` // the cheapest that covers the names without a prompt anywhere
	Others      []Option `json:"others"`
	Hints       []string `json:"hints"` // on choosing who issues it
}

// Model is a namespace model of the documents.
type Model struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Tradeoff string `json:"tradeoff"` // in one line
}

// NamespaceModels are the models that [Deployment.Plan] tells apart.
func NamespaceModels() []Model {
	return []Model{
		{"consolidated", "consolidated data center", "fewest records and certificates, one address for everybody; there is no second data center"},
		{"proxy-sites", "single namespace with proxy sites", "one certificate outside, self-signed ones will do between the sites; requests for the other sites cross the WAN, so few users should live there"},
		{"several-facing", "single namespace, several Internet-facing sites", "not recommended: many requests land in the wrong site, and ActiveSync of 2007 fails there; take regional names, or leave the sites' external_url out so that requests are proxied"},
		{"regional", "regional namespaces", "users reach their own region directly; more records, more certificates, and users who have to know their address"},
		{"forests", "several forests, regional namespaces in each", "each forest keeps its own names and certificates; Autodiscover must lead the users of a domain to their forest"},
		{"coexistence", "coexistence with older servers", "users learn no new address; the legacy name needs a record and a place in the certificate until the last mailbox has moved"},
		{"split-dns", "split DNS", "clients inside go to the servers and do not load the front door; two views of DNS to keep, worth it in larger deployments"},
		{"array", "several servers behind one name", "servers come and go unnoticed; where the same certificate is wanted on them (passthrough, Extended Protection), its private key must be exportable"},
		{"mail-domains", "several mail domains", "an autodiscover name for every mail domain, in DNS and in the certificate"},
		{"hosted", "many hosted domains", "each domain is a CNAME to the redirect site, which needs no certificate; Outlook asks its users once about the redirection"},
	}
}

// Record is a DNS record that clients look for.
type Record struct {
	Name  string `json:"name"`
	Type  string `json:"type"` // A/AAAA, CNAME or SRV
	Value string `json:"value"`
	Why   string `json:"why"`
}

// Option is a way to have the names certified.
type Option struct {
	Kind         string        `json:"kind"`
	Certificates [][]string    `json:"certificates,omitempty"` // the names of each; the first one is the common name
	Why          string        `json:"why"`
	Limits       []ClientLimit `json:"limits,omitempty"` // the clients that it does not suit
}

// The kinds of options.
const (
	KindNone           = "none"
	KindSingle         = "single name"
	KindSingleSRV      = "single name and SRV records"
	KindSingleRedirect = "single name and redirect site"
	KindSAN            = "several names (SAN)"
	KindRegions        = "one for each region"
	KindWildcard       = "wildcard"
	KindSeveral        = "several with a single name"
	KindACME           = "ACME"
	KindOwnCA          = "own CA"
	KindSelfSigned     = "self-signed"
)

// caHints are what to look at when choosing a CA.
func caHints() []string {
	return []string{
		"its root is known to all clients, old devices and phones included",
		"it issues certificates with several names (SAN, \"unified communications\"), and as many names as are needed",
		"it allows the certificate on every server that needs it, the front door and the Exchange servers",
		"names can be added or corrected for some time without a new purchase",
		"it speaks ACME: public certificates live for 200 days at most since March 2026, 100 from March 2027, 47 from March 2029",
	}
}

// Plan works out what the deployment needs. It is pure: nothing is looked up.
func (d Deployment) Plan() Plan {
	p := Plan{Names: d.Needs(), Hints: caHints()}
	p.Models = d.models()
	p.Records = d.records(p.Names)
	p.options(d)
	c := Circumstances{Redirected: slices.ContainsFunc(d.Sites, func(s ServerSite) bool { return s.ExternalHost != "" })}
	for _, s := range d.Sites {
		c.Exchange = with(c.Exchange, s.Exchange)
	}
	for _, ns := range d.Namespaces {
		if slices.Contains(ns.Services, "rpc") && c.Principal == "" && ns.Certificate != "" {
			c.Principal = ns.Host
		}
		if ns.Certificate != "" && slices.ContainsFunc([]string{"imap", "imaps", "pop3", "pop3s"}, func(s string) bool { return slices.Contains(ns.Services, s) }) {
			c.Mail = append(c.Mail, ns.Host)
		}
	}
	p.Recommended.limits(c)
	for i := range p.Others {
		p.Others[i].limits(c)
	}
	for _, n := range p.Names {
		if n.Place != Nowhere && n.Place != Elsewhere && internalName(n.Name) {
			p.Hints = append(p.Hints, n.Name+" is no name of the public DNS, and no public CA issues for it: take it out of the URLs, or use an own CA for it")
		}
	}
	return p
}

// limits adds the limits of clients that matter with an option.
func (o *Option) limits(c Circumstances) {
	c.PrivateCA, c.SelfSigned = o.Kind == KindOwnCA, o.Kind == KindSelfSigned
	certificates := o.Certificates
	if len(certificates) == 0 {
		certificates, c.Principal, c.Mail = [][]string{nil}, "", nil
	}
	all := c
	for _, c.Names = range certificates {
		// A name that this one does not carry is none of its limits.
		carries := func(name string) bool {
			return slices.ContainsFunc(c.Names, func(n string) bool { return canonical(n) == canonical(name) || under(canonical(name), canonical(n)) })
		}
		c.Mail = slices.DeleteFunc(slices.Clone(all.Mail), func(n string) bool { return !carries(n) })
		if c.Principal = all.Principal; !carries(c.Principal) {
			c.Principal = ""
		}
		for _, l := range c.Limits() {
			if !slices.Contains(o.Limits, l) {
				o.Limits = append(o.Limits, l)
			}
		}
	}
}

// internalName reports whether no public CA issues for a name (Baseline Requirements section 4.2.2).
func internalName(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return false
	}
	i := strings.LastIndexByte(name, '.')
	return i < 0 || slices.Contains([]string{"local", "localdomain", "internal", "lan", "corp", "home", "intranet", "private"}, name[i+1:])
}

// registrable is the domain that somebody has registered.
func registrable(name string) string {
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name
	}
	return domain
}

// published are the hosts that users work with: bridged or passed through, but for the names of Autodiscover and of older
// servers.
func (d Deployment) published() []Namespace {
	return slices.DeleteFunc(d.ordered(), func(n Namespace) bool {
		return n.Mode != "site" && n.Mode != "passthrough" || rank(canonical(n.Host)) > 0
	})
}

// models tells which namespace models a deployment follows.
func (d Deployment) models() []Model {
	facing := map[string][]string{} // site → its public names
	for _, n := range d.published() {
		if n.Site != "" {
			facing[n.Site] = append(facing[n.Site], canonical(n.Host))
		}
	}
	older := map[string]bool{} // sites that a legacy name leads to
	for _, n := range d.Namespaces {
		if rank(canonical(n.Host)) == 1 && n.Site != "" {
			older[n.Site] = true
		}
	}
	shared, hidden, array, regions := false, false, false, map[string]bool{}
	for _, s := range d.Sites {
		array = array || len(s.Servers) > 1
		if s.ExternalHost != "" && !slices.Contains(facing[s.Name], canonical(s.ExternalHost)) {
			facing[s.Name] = append(facing[s.Name], canonical(s.ExternalHost))
		}
		if len(facing[s.Name]) == 0 && !older[s.Name] {
			hidden = true
		}
	}
	seen := map[string]string{}
	for site, names := range facing {
		for _, n := range names {
			if other := seen[n]; other != "" && other != site {
				shared = true
			}
			seen[n] = site
		}
		if len(names) > 0 {
			regions[site] = true
		}
	}
	registered := map[string]bool{}
	for n := range seen {
		registered[registrable(n)] = true
	}
	legacy := slices.ContainsFunc(d.Needs(), func(n Need) bool { return n.Host != "" && rank(n.Name) == 1 })
	several := len(regions) > 1 && !shared
	forests := several && len(registered) > 1 && len(d.Domains) > 1
	local := 0 // mail domains whose users are here
	split := false
	for _, m := range d.Domains {
		if m.RedirectHost == "" {
			local++
		}
		split = split || m.InternalHost != ""
	}
	applies := map[string]bool{
		"consolidated": !hidden && !shared && !several, "proxy-sites": hidden && !shared && !several, "several-facing": shared,
		"regional": several && !forests, "forests": forests, "coexistence": legacy, "split-dns": split, "array": array,
		"mail-domains": local > 1 && !forests, "hosted": d.Redirected != "",
	}
	return slices.DeleteFunc(NamespaceModels(), func(m Model) bool { return !applies[m.ID] })
}

// records are the DNS records that lead clients to the names.
func (d Deployment) records(needs []Need) (out []Record) {
	main := d.mainName(needs)
	// near is the name that Autodiscover of a domain belongs to: where its services are, or at least one of the same owner.
	near := func(name string) string {
		domain := strings.TrimPrefix(name, autodiscoverPrefix)
		for _, m := range d.Domains {
			external := canonical(m.ExternalHost)
			if canonical(m.Name) == domain && slices.ContainsFunc(needs, func(n Need) bool { return n.Name == external && n.Host != "" }) {
				return external
			}
		}
		for _, n := range d.published() {
			if registrable(canonical(n.Host)) == registrable(name) {
				return canonical(n.Host)
			}
		}
		return main
	}
	const here = "the public address of the front door"
	for _, n := range needs {
		switch {
		case n.Host != "" && rank(n.Name) == 2 && near(n.Name) != "" && near(n.Name) != n.Name:
			out = append(out, Record{n.Name, "CNAME", near(n.Name), "or A/AAAA with the same address; clients derive the name from the mail address"})
		case n.Host != "" && rank(n.Name) == 1:
			out = append(out, Record{n.Name, "A/AAAA", here, "or that of the older servers, if they are published by themselves"})
		case n.Host != "":
			out = append(out, Record{n.Name, "A/AAAA", here, strings.Join(n.Reasons, "; ")})
		case n.Place == OnServers:
			out = append(out, Record{n.Name, "A/AAAA, inside", "the servers", strings.Join(n.Reasons, "; ")})
		}
	}
	for _, m := range d.Domains {
		name := autodiscoverPrefix + canonical(m.Name)
		if i := slices.IndexFunc(needs, func(n Need) bool { return n.Name == name }); i >= 0 && needs[i].Host == "" {
			target := canonical(m.ExternalHost)
			if target == "" {
				target = canonical(m.RedirectHost)
			}
			if target == "" {
				target = main
			}
			if target != "" {
				out = append(out, Record{"_autodiscover._tcp." + canonical(m.Name), "SRV", "0 0 443 " + target, "no host " + name + ", which must not be in DNS then: clients try it first"})
			}
		}
	}
	for _, m := range d.Domains {
		if m.InternalHost == "" || m.ExternalHost == "" || canonical(m.InternalHost) != canonical(m.ExternalHost) {
			continue
		}
		r := Record{canonical(m.InternalHost), "A/AAAA, inside", "the servers, or the inside address of the front door", "the same name outside and inside"}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if d.Redirected != "" {
		out = append(out, Record{"autodiscover.DOMAIN of each hosted domain", "CNAME", main, "the redirect site; its answer leads to " + canonical(d.Redirected)})
		if main == "" {
			out[len(out)-1].Type, out[len(out)-1].Value = "A/AAAA", here
		}
	}
	return out
}

// mainName is the name that users know best.
func (d Deployment) mainName(needs []Need) string {
	if p := d.published(); len(p) > 0 {
		return canonical(p[0].Host)
	}
	for _, n := range needs {
		if n.Host != "" && rank(n.Name) == 0 {
			return n.Name
		}
	}
	return ""
}

// options chooses the cheapest certificate and lists the other ways.
func (p *Plan) options(d Deployment) {
	var here, atServers, inside, free []string
	for _, n := range p.Names {
		switch {
		case n.Place == Here:
			here = append(here, n.Name)
		case n.Place == OnServers && n.Host != "":
			atServers = append(atServers, n.Name)
		case n.Place == OnServers:
			inside = append(inside, n.Name)
		case n.Place == Nowhere && n.Host != "":
			free = append(free, n.Name)
		}
	}
	srv := slices.ContainsFunc(p.Records, func(r Record) bool { return r.Type == "SRV" })
	protected := slices.ContainsFunc(d.Sites, func(s ServerSite) bool { return s.Protection })
	if protected {
		// One certificate on both sides, so that it carries the names of both.
		for _, n := range inside {
			if !internalName(n) && len(here) > 0 {
				here = append(here, n)
			}
		}
	}
	regional := slices.ContainsFunc(p.Models, func(m Model) bool { return m.ID == "regional" || m.ID == "forests" })
	groups := [][]string{here}
	if regional {
		groups = p.regions(d, here)
	}
	byACME := len(here) > 0
	for _, n := range d.Namespaces {
		if n.Certificate != "" && n.Certificate != "acme" && n.Certificate != "autocert" {
			byACME = false
		}
	}
	add := func(kind, why string, certificates ...[]string) {
		p.Others = append(p.Others, Option{Kind: kind, Certificates: certificates, Why: why})
	}
	r := &p.Recommended
	switch {
	case len(here) == 0:
		*r = Option{Kind: KindNone, Why: "nothing is decrypted here: no certificate is needed on the front door"}
	case byACME:
		*r = Option{Kind: KindACME, Why: "ordered and renewed by itself, one for each host, at no cost"}
		for _, ns := range d.ordered() {
			if names := hostNames(ns); ns.Certificate != "" {
				r.Certificates = append(r.Certificates, names)
			}
		}
	case len(here) == 1 && len(free) > 0:
		*r = Option{Kind: KindSingleRedirect, Certificates: groups, Why: "one name is all that needs a certificate, which is the cheapest there is; Outlook asks its users once about the redirection from " + free[0]}
	case len(here) == 1 && srv:
		*r = Option{Kind: KindSingleSRV, Certificates: groups, Why: "one name is all that needs a certificate, which is the cheapest there is; SCP and all internal URLs must have that name, and not every mobile client looks for SRV records"}
	case len(here) == 1:
		*r = Option{Kind: KindSingle, Certificates: groups, Why: "one name is all that needs a certificate, which is the cheapest there is"}
	case len(groups) > 1:
		*r = Option{Kind: KindRegions, Certificates: groups, Why: "each region renews its own, and none needs the names of the others"}
	default:
		*r = Option{Kind: KindSAN, Certificates: groups, Why: fmt.Sprintf("one certificate for all %d names: every client connects without a prompt", len(here))}
	}
	if protected && len(here) > 0 {
		r.Why += "; with Extended Protection the same certificate, exported with its key, is on the servers too"
	}
	if len(atServers) > 0 {
		add("on the servers", "passed through: the servers show it", atServers)
	}
	if len(inside) > 0 && !protected {
		add("on the servers", "for clients that go to them inside; one of an own CA will do where its root is on all of them", inside)
	}
	if len(here) == 0 {
		return
	}
	if len(groups) > 1 {
		add(KindSAN, "one to buy and renew; every region shows the names of all", here)
	}
	if names := wildcards(here); len(names) < len(here) {
		add(KindWildcard, "names can be added without a new one; dearer than a few names, its one key opens them all, and it reaches one label deep", names)
	}
	if len(here) > 1 {
		var each [][]string
		for _, n := range here {
			each = append(each, []string{n})
		}
		if r.Kind != KindACME {
			add(KindSeveral, "cheap ones, but each to be renewed; they share one address by SNI, and clients without SNI see that of the default host", each...)
		}
		rest := slices.DeleteFunc(slices.Clone(here), func(n string) bool { return rank(n) == 2 })
		if len(rest) > 0 && len(rest) < len(here) {
			kind := func(single string) string {
				if len(rest) == 1 {
					return single
				}
				return strings.Replace(single, "single name", "fewer names", 1)
			}
			add(kind(KindSingleRedirect), "redirect: on the autodiscover hosts, without certificate: Outlook fails on https first and then asks its users once", rest)
			add(kind(KindSingleSRV), "no autodiscover hosts: Outlook asks its users once, before its update of June 2007 it fails; not every mobile client looks for SRV records", rest)
		}
	}
	if r.Kind != KindACME && !slices.ContainsFunc(here, internalName) {
		add(KindACME, "certificate: acme on each host: free and renewed by itself; port 443 or 80 must be reachable for the issuer, or DNS be changed by dns-01")
	}
	var selfSigned [][]string
	for _, ns := range d.ordered() {
		if ns.Certificate == "self_signed" {
			selfSigned = append(selfSigned, hostNames(ns))
		}
	}
	if len(selfSigned) > 0 {
		add(KindSelfSigned, "as it is now: free, for tests; Outlook in the domain is silent, elsewhere it asks, and so do browsers", selfSigned...)
	}
	add(KindOwnCA, "free; its root must be on every client, which many mobile devices do not allow")
}

func hostNames(ns Namespace) []string {
	var out []string
	for _, n := range append([]string{ns.Host}, ns.Aliases...) {
		out = append(out, canonical(n))
	}
	return out
}

// regions groups names by the site they belong to; names of no site go to the first group of the same registered domain.
func (p *Plan) regions(d Deployment, here []string) (groups [][]string) {
	site := map[string]string{}
	for _, ns := range d.Namespaces {
		for _, n := range hostNames(ns) {
			if ns.Mode == "site" {
				site[n] = ns.Site
			}
		}
	}
	index := map[string]int{}
	var rest []string
	for _, n := range here {
		s := site[n]
		i, ok := index[s]
		switch {
		case s == "" || rank(n) == 2:
			rest = append(rest, n)
		case ok:
			groups[i] = append(groups[i], n)
		default:
			index[s] = len(groups)
			groups = append(groups, []string{n})
		}
	}
	for _, n := range rest {
		i := slices.IndexFunc(groups, func(g []string) bool { return registrable(g[0]) == registrable(n) })
		if i < 0 {
			groups = append(groups, []string{n})
			continue
		}
		groups[i] = append(groups[i], n)
	}
	return groups
}

// wildcards replaces names by a wildcard where it stands for two of them or more. It stands for one label, so that each
// level needs one of its own; and none is issued for a public suffix.
func wildcards(names []string) (out []string) {
	under := map[string]int{}
	parent := func(name string) string {
		_, rest, _ := strings.Cut(name, ".")
		if suffix, _ := publicsuffix.PublicSuffix(rest); !strings.Contains(rest, ".") || suffix == rest {
			return ""
		}
		return rest
	}
	for _, n := range names {
		if p := parent(n); p != "" {
			under[p]++
		}
	}
	for _, n := range names {
		name := n
		if p := parent(n); p != "" && under[p] > 1 {
			name = "*." + p
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
