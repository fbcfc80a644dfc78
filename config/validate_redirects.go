package config

import (
	"net/url"
	"slices"
	"strings"
)

// Redirects are a graph: hosts lead to hosts, domains to domains and to hosts, and a host that answers for the domains
// leads back to them. Every walk in it has to end, and soon: what is wrong is reported where it begins, with the whole way.

// maxHops is how many redirects clients follow (AUTODISCOVER 1.3).
const maxHops = 10

// redirect checks where a redirect host leads to.
func (v validator) redirect(name string, h *Host) {
	p := hostsPath.key(name).key("redirect")
	if h.Redirect == "" || v.bad(p) {
		return
	}
	if h.Redirect == name || slices.Contains(h.Aliases, h.Redirect) {
		v.fail(p, RuleRedirectSelf, "the name of another host", "the host would redirect to itself")
		return
	}
	v.oneHop(p, name, h.Redirect)
}

// oneHop checks that a redirect to a name does not lead to another one. AUTODISCOVER 1.4: each further hop is a new
// prompt, or a lost method.
func (v validator) oneHop(p path, from, to string) {
	owners := v.owners()
	way, at := []string{from}, to
	var members []string // the hosts of the way
	if o, ok := owners[from]; ok {
		members = append(members, o.host)
	}
	for {
		way = append(way, at)
		o, ok := owners[at]
		if !ok || v.c.Hosts[o.host].Redirect == "" {
			break
		}
		if i := slices.Index(members, o.host); i >= 0 {
			// A circle is reported once, with the first of its hosts in the file.
			first := slices.MinFunc(members[i:], func(a, b string) int { return v.order(hostsPath, a, b) })
			if i > 0 {
				v.fail(p, RuleRedirectChain, "a host that redirects no further", "the redirect goes on, and ends nowhere: %s", strings.Join(way, " → "))
			} else if first == from {
				v.fail(p, RuleRedirectChain, "a host that redirects no further", "the redirects lead round in a circle: %s", strings.Join(way, " → "))
			}
			return
		}
		members = append(members, o.host)
		at = v.c.Hosts[o.host].Redirect
	}
	if len(way) > 2 {
		v.fail(p, RuleRedirectChain, at, "%s is a redirect host too, and clients are to get one hop: %s", to, strings.Join(way, " → "))
	}
}

// order compares the places of two keys in the file.
func (v validator) order(p path, a, b string) int {
	x, y := v.entries[p.key(a).String()], v.entries[p.key(b).String()]
	if x.keyLine != y.keyLine {
		return x.keyLine - y.keyLine
	}
	return x.keyColumn - y.keyColumn
}

// redirects checks the redirect site; what is in its file is for those to look at who open files.
func (v validator) redirects() {
	p := path{"redirects"}
	r := v.c.Redirects
	if r == nil || v.bad(p) {
		return
	}
	if len(v.c.Listen.HTTP) == 0 && !v.bad(path{"listen", "http"}) {
		v.fail(p, RuleRedirectsHTTP, `http: [":80"] under listen, or no redirects`, "nobody is redirected: the domains have no certificates, and listen.http is off")
	}
	if q := p.key("target"); r.Target != "" && !v.bad(q) {
		if o, ok := v.owners()[r.Target]; ok && v.c.Hosts[o.host].Redirect != "" {
			v.oneHop(q, r.File, r.Target)
		}
	}
}

// place is where a client is on its way: it looks for the service of a domain, or, with a host, has been sent to that
// host with an address in the domain.
type place struct{ domain, host string }

func (s place) String() string {
	if s.host != "" {
		return s.host
	}
	return s.domain
}

// next is where redirects lead a client from a place, and by how many of them; ok is false where its way ends.
func (v validator) next(owners map[string]owner, s place) (to place, hops int, ok bool) {
	if s.host == "" {
		d := v.c.Domains[s.domain]
		if d == nil || d.Autodiscover != "redirect" {
			return place{}, 0, false
		}
		if _, domain, found := strings.Cut(d.RedirectAddr, "@"); found {
			return place{domain: domain}, 1, true
		}
		host := v.ownHost(d.RedirectURL)
		if _, found := owners[host]; found {
			return place{s.domain, host}, 1, true
		}
		return place{}, 0, false
	}
	o, found := owners[s.host]
	if !found {
		return place{}, 0, false
	}
	switch h := v.c.Hosts[o.host]; {
	case h.Redirect != "":
		return place{s.domain, h.Redirect}, 1, true
	case h.Answer: // it says of the domain what the config says, whatever name it is asked under
		return place{domain: s.domain}, 0, true
	}
	return place{}, 0, false
}

// ownHost is the host of a URL that clients find us at, or "".
func (v validator) ownHost(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" {
		return ""
	}
	if port := u.Port(); port != "" && port != "443" &&
		!slices.ContainsFunc(v.c.Listen.HTTPS, func(addr string) bool { return strings.HasSuffix(addr, ":"+port) }) {
		return "" // another server on the same machine
	}
	return u.Hostname()
}

// domainRedirects follows the redirects of each domain to their end.
func (v validator) domainRedirects() {
	owners := v.owners()
	left := make(map[place]int)       // how many hops there are from a place to the end; -1 if there is no end
	arrivals := make(map[string]bool) // domains that other domains lead to
	names := ordered(v, domainsPath, v.c.Domains)
	for _, name := range names {
		switch target := redirectDomain(v.c.Domains[name]); target {
		case "":
		case name:
			// AUTODISCOVER: clients give up on an address that leads to itself.
			v.fail(domainsPath.key(name).key("redirect_addr"), RuleDomainSelf, "an address in another domain", "%s leads back to %s", v.c.Domains[name].RedirectAddr, name)
			left[place{domain: name}] = -1
		default:
			arrivals[target] = true
		}
	}
	for _, name := range names {
		if d := v.c.Domains[name]; d.Autodiscover == "redirect" && d.RedirectURL != "" {
			if o, ok := owners[v.ownHost(d.RedirectURL)]; ok && v.c.Hosts[o.host].Redirect != "" && !v.has(hostsPath.key(o.host).key("certificate")) {
				v.fail(domainsPath.key(name).key("redirect_url"), RuleRedirectRefused, "a URL with "+v.c.Hosts[o.host].Redirect+", or a certificate for "+o.host,
					"%s is a redirect host without certificate: it refuses https", o.host)
			}
		}
	}
	for _, name := range names {
		v.follow(owners, name, left)
	}
	for _, name := range names {
		s := place{domain: name}
		if left[s] <= maxHops || arrivals[name] { // those that are arrived at are part of a longer way
			continue
		}
		n, way := left[s], []string{name}
		for ok := true; ok; {
			if s, _, ok = v.next(owners, s); ok {
				way = append(way, s.String())
			}
		}
		v.fail(v.redirectKey(name), RuleDomainChain, "redirects that lead straight to the last domain or server",
			"%d redirects one after the other, and clients follow %d: %s", n, maxHops, strings.Join(way, " → "))
	}
}

// follow finds out how far it is from a domain to the end of its redirects, and reports the circle they lead into, if
// nobody has been there before.
func (v validator) follow(owners map[string]owner, name string, left map[place]int) {
	var way []place
	var hops []int
	been := make(map[place]int) // index in way
	at := place{domain: name}
	end := 0
	for {
		if n, known := left[at]; known {
			end = n
			break
		}
		if i, here := been[at]; here {
			v.circle(way[i:])
			end = -1
			break
		}
		to, n, ok := v.next(owners, at)
		if !ok {
			left[at] = 0
			break
		}
		been[at] = len(way)
		way, hops, at = append(way, at), append(hops, n), to
	}
	for i, s := range slices.Backward(way) {
		if end >= 0 {
			end += hops[i]
		}
		left[s] = end
	}
}

// circle reports redirects that lead round, with the first of their domains in the file.
func (v validator) circle(way []place) {
	first := -1
	for i, s := range way {
		if s.host == "" && (first < 0 || v.order(domainsPath, s.domain, way[first].domain) < 0) {
			first = i
		}
	}
	if first < 0 {
		return // hosts alone, which is reported with the hosts
	}
	var names []string
	for _, s := range append(slices.Concat(way[first:], way[:first]), way[first]) {
		names = append(names, s.String())
	}
	want := "an end to it: one domain with autodiscover: answer or bridge"
	if slices.ContainsFunc(way, func(s place) bool { return s.host != "" }) {
		want = "an end to it: a URL on a server that is asked itself, or autodiscover: answer or bridge"
	}
	v.fail(v.redirectKey(way[first].domain), RuleDomainLoop, want, "the redirects lead round in a circle: %s", strings.Join(names, " → "))
}

// redirectKey is the place of what a domain says about its redirect.
func (v validator) redirectKey(name string) path {
	p := domainsPath.key(name)
	if v.has(p.key("redirect_url")) {
		return p.key("redirect_url")
	}
	return p.key("redirect_addr")
}

// redirectDomain is the domain a domain's addresses are redirected to, or "".
func redirectDomain(d *Domain) string {
	if d == nil || d.Autodiscover != "redirect" {
		return ""
	}
	_, domain, _ := strings.Cut(d.RedirectAddr, "@")
	return domain
}
