package config

import "slices"

// acme checks what the keys of certificates.acme say together, and whether the hosts that use them get a certificate that way.
func (v validator) acme() {
	p := path{"certificates", "acme"}
	a := v.c.Certificates.ACME
	if a == nil {
		a = &ACME{Challenges: []string{"tls-alpn-01", "http-01"}}
	}
	v.acmeDNS(p, a)
	if v.has(p.key("challenges")) && len(a.Challenges) == 0 && !v.bad(p.key("challenges")) {
		v.fail(p.key("challenges"), RuleEmptyValue, "some of tls-alpn-01, http-01 and dns-01, or the line removed for the first two", "the list is empty")
		return
	}
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		c := v.c.Hosts[name].Certificate
		if c == nil || c.Source != "acme" && c.Source != "autocert" {
			continue
		}
		q := hostsPath.key(name).key("certificate")
		if c.Source == "autocert" {
			v.autocert(q, a)
		}
		v.challengesPossible(q, a)
	}
}

// challengesPossible checks that an issuer can reach us for one of the challenges.
func (v validator) challengesPossible(host path, a *ACME) {
	off := map[string]string{}
	if len(v.c.Listen.HTTP) == 0 {
		off["http-01"] = "listen.http"
	}
	if len(v.c.Listen.HTTPS) == 0 {
		off["tls-alpn-01"] = "listen.https"
	}
	if v.bad(path{"listen"}) || v.bad(path{"listen", "http"}) || v.bad(path{"listen", "https"}) || len(a.Challenges) == 0 || v.bad(path{"certificates", "acme", "challenges"}) {
		return
	}
	if !slices.ContainsFunc(a.Challenges, func(c string) bool { return off[c] == "" }) {
		v.fail(host, RuleACMEChallenge, "an address under listen.http or listen.https; or dns-01 among certificates.acme.challenges",
			"no certificate can be had: %s needs %s, which is off", a.Challenges[0], off[a.Challenges[0]])
		return
	}
	list := path{"certificates", "acme", "challenges"}
	for i, c := range a.Challenges {
		if q := list.index(i); off[c] != "" && v.has(list) && !v.bad(q) {
			v.warn(q, RuleACMEChallenge, "the list without it, or an address under "+off[c], "%s cannot be used: %s is off", c, off[c])
			v.faulty[q.String()] = true // once, not for every host
		}
	}
}

func (v validator) acmeDNS(p path, a *ACME) {
	wanted := slices.Contains(a.Challenges, "dns-01")
	q := p.key("dns")
	if v.bad(q) || v.bad(p) {
		return
	}
	d := a.DNS
	switch {
	case wanted && d == nil:
		v.fail(p.key("challenges"), RuleACMEDNS, "dns: {server: …, tsig_name: …, tsig_secret_file: …} or dns: {exec: FILE}", "dns-01 is to be used, and it is not said how records are written")
	case d == nil:
	case !wanted && !v.bad(p.key("challenges")):
		v.failKey(q, RuleACMEDNS, "challenges: [dns-01], or the line removed", "dns has no effect here: dns-01 is not among the challenges")
	}
	if d == nil {
		return
	}
	for _, k := range v.given(q, "server", "exec", "tsig_name", "tsig_secret_file") {
		if v.bad(q.key(k)) {
			return
		}
	}
	switch {
	case d.Server == "" && d.Exec == "":
		v.fail(q, RuleACMEDNS, "server, or exec", "it is not said who writes the records")
	case d.Server != "" && d.Exec != "":
		v.failKey(q.key("exec"), RuleACMEDNS, "server, or exec", "exec does not go together with server")
	case d.Exec != "" && len(v.given(q, "tsig_name", "tsig_secret_file")) > 0:
		k := v.given(q, "tsig_name", "tsig_secret_file")[0]
		v.failKey(q.key(k), RuleACMEDNS, "the line removed", "%s has no effect here: the program writes the records", k)
	case (d.TSIGName == "") != (d.TSIGSecretFile == ""):
		k := v.given(q, "tsig_name", "tsig_secret_file")[0]
		v.failKey(q.key(k), RuleACMEDNS, "tsig_name and tsig_secret_file, or neither", "there is %s alone", k)
	}
}

// autocert refuses what autocert cannot do.
func (v validator) autocert(p path, a *ACME) {
	const want = "acme"
	settings := path{"certificates", "acme"}
	for _, k := range v.given(settings, "dns", "fallback") {
		v.fail(p, RuleACMEAutocert, want, "autocert knows no %s (certificates.acme.%s)", k, k)
	}
	if a.OnDemand {
		v.fail(p, RuleACMEAutocert, want, "autocert does not go together with certificates.acme.on_demand")
	}
	if isRedis(v.c.Certificates.Storage) {
		v.fail(p, RuleACMEAutocert, want+", or a directory as certificates.storage", "autocert is for one node, and certificates.storage is shared by several")
	}
	if !slices.Contains(a.Challenges, "tls-alpn-01") {
		v.fail(p, RuleACMEAutocert, want+", or tls-alpn-01 among the challenges", "autocert always tries tls-alpn-01 first, and certificates.acme.challenges is without it")
	} else if slices.Contains(a.Challenges, "dns-01") && !v.has(settings.key("dns")) {
		v.fail(p, RuleACMEAutocert, want, "autocert knows no dns-01 (certificates.acme.challenges)")
	}
}
