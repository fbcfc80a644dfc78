package config

var domainsPath = path{"domains"}

func (v validator) domains() {
	answered := false
	for _, h := range v.c.Hosts {
		answered = answered || h.Answer
	}
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
			if len(v.given(p, "redirect_addr", "redirect_url")) != 1 {
				v.fail(p.key("autodiscover"), RuleDomainRedirect, "one of redirect_addr and redirect_url", "it is not clear where to redirect to")
			}
		}
		if !answered && (d.Autodiscover == "answer" || d.Autodiscover == "redirect") {
			v.warn(p.key("autodiscover"), RuleDomainUnanswered, "a host with answer: true, such as autodiscover."+name,
				"no host answers Autodiscover: nobody learns what is said here and in the other domains")
			answered = true // once is enough
		}
	}
	v.domainRedirects()
}
