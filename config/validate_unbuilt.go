package config

// Every key of the file is accepted from the first release on, so that a file may be written once. What this version does
// not do yet is said here, all of it, and goes away line by line. Ignoring a key is only fair when nobody is less
// protected than the file says.

// notInEffect warns about what can be ignored for now.
func (v validator) notInEffect() {
	say := func(p path, want, what string) {
		v.warn(p, RuleNotInEffect, want, "%s", what)
	}
	const later = "nothing else: a later version will do it"
	for _, name := range ordered(v, sitesPath, v.c.Sites) {
		s, p := v.c.Sites[name], sitesPath.key(name)
		if s.ExternalURL != "" {
			say(p.key("external_url"), later, "external_url is not in effect yet: requests for mailboxes of this site are not redirected")
		}
	}
	for _, name := range ordered(v, domainsPath, v.c.Domains) {
		if v.c.Domains[name].Autodiscover == "bridge" {
			say(domainsPath.key(name).key("autodiscover"), "until then: answer or redirect", "autodiscover: bridge is not in effect yet: there is no answer for this domain")
		}
	}
}
