package config

import "strings"

var domainsPath = path{"domains"}

func (v validator) domains() {
	answered := false
	for _, h := range v.c.Hosts {
		answered = answered || h.Answer
	}
	seen := make(map[string]bool) // domains of a loop that is reported
	for _, name := range ordered(v, domainsPath, v.c.Domains) {
		d, p := v.c.Domains[name], domainsPath.key(name)
		unused := func(keys ...string) {
			for _, k := range v.given(p, keys...) {
				v.failKey(p.key(k), RuleDomainKeyUnused, "the domain without "+k+", or with another autodiscover",
					"%s has no effect here: autodiscover is %s", k, d.Autodiscover)
			}
		}
		switch d.Autodiscover {
		case "answer":
			unused("site", "redirect_addr", "redirect_url")
			if len(v.given(p, "external_url", "internal_url")) == 0 {
				v.fail(p.key("external_url"), RuleDomainURL, "external_url: https://mail."+name+", internal_url, or both", "there is no URL to answer with")
			}
		case "bridge":
			unused("redirect_addr", "redirect_url")
			if !v.has(p.key("site")) && len(v.c.Sites) != 1 {
				v.fail(p.key("site"), RuleDomainSite, "site: "+oneOfOr(v.c.SiteNames(), "there is none yet"), "it is not said which of the %d sites is asked", len(v.c.Sites))
			}
			v.site(p.key("site"), d.Site)
		case "redirect":
			unused("external_url", "internal_url", "auth_package", "site")
			v.domainRedirect(name, d, seen)
		}
		if !answered && (d.Autodiscover == "answer" || d.Autodiscover == "redirect") {
			v.warn(p.key("autodiscover"), RuleDomainUnanswered, "a host with answer: true, such as autodiscover."+name,
				"no host answers Autodiscover: nobody learns what is said here and in the other domains")
			answered = true // once is enough
		}
	}
}

func (v validator) domainRedirect(name string, d *Domain, seen map[string]bool) {
	p := domainsPath.key(name)
	if len(v.given(p, "redirect_addr", "redirect_url")) != 1 {
		v.fail(p.key("autodiscover"), RuleDomainRedirect, "one of redirect_addr and redirect_url", "it is not clear where to redirect to")
		return
	}
	target := redirectDomain(d)
	if target == name {
		// AUTODISCOVER: clients give up on an address that leads to itself.
		v.fail(p.key("redirect_addr"), RuleDomainSelf, "an address in another domain", "%s leads back to %s", d.RedirectAddr, name)
		return
	}
	loop := []string{name}
	for at := target; at != "" && !seen[at]; at = redirectDomain(v.c.Domains[at]) {
		if at == name {
			for _, member := range loop {
				seen[member] = true
			}
			v.fail(p.key("redirect_addr"), RuleDomainLoop, "an end to it: one domain with autodiscover: answer or bridge",
				"the addresses lead round in a circle: %s → %s", strings.Join(loop, " → "), name)
			return
		}
		if next := redirectDomain(v.c.Domains[at]); next == at || len(loop) > len(v.c.Domains) {
			return // a circle this domain is not part of
		}
		loop = append(loop, at)
	}
}

// redirectDomain is the domain a domain's addresses are redirected to, or "".
func redirectDomain(d *Domain) string {
	if d == nil || d.Autodiscover != "redirect" {
		return ""
	}
	_, domain, _ := strings.Cut(d.RedirectAddr, "@")
	return domain
}
