package config

import (
	"slices"
)

var hostsPath = path{"hosts"}

// owner is the host a name belongs to, and where the name stands.
type owner struct {
	host string
	path path
}

// owners maps every name and alias to its host; the first in the file wins.
func (v validator) owners() map[string]owner {
	all := make(map[string]owner)
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		all[name] = owner{name, hostsPath.key(name)}
	}
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		for i, alias := range v.c.Hosts[name].Aliases {
			if _, taken := all[alias]; !taken && alias != "" {
				all[alias] = owner{name, hostsPath.key(name).key("aliases").index(i)}
			}
		}
	}
	return all
}

// names checks that there are hosts, and that each name leads to one of them. Names that are keys twice are the
// decoder's to report.
func (v validator) names() {
	if len(v.c.Hosts) == 0 && v.c.Redirects == nil && !v.bad(hostsPath) {
		v.fail(hostsPath, RuleNoHosts, "at least one public name under `hosts`", "there are no hosts: every client would be refused")
	}
	owners := v.owners()
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		p := hostsPath.key(name).key("aliases")
		for i, alias := range v.c.Hosts[name].Aliases {
			q := p.index(i)
			o := owners[alias]
			if alias == "" || v.bad(q) || o.path.String() == q.String() {
				continue
			}
			what := "an alias of " + o.host
			if o.host == alias {
				what = "a host of its own"
			}
			if o.host == name && o.host == alias {
				what = "the name of this host"
			}
			v.fail(q, RuleHostNameTwice, "each name once, in one place", "%s is %s already, on line %d", alias, what, v.entries[o.path.String()].line)
		}
	}
}

func (v validator) hosts() {
	defaults := make(map[string]string) // listen address → host
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		h, p := v.c.Hosts[name], hostsPath.key(name)
		modes := v.given(p, "site", "passthrough", "redirect", "answer")
		if !h.Answer && !v.bad(p.key("answer")) { // answer: false
			modes = slices.DeleteFunc(modes, func(k string) bool { return k == "answer" })
		}
		switch len(modes) {
		case 0:
			v.fail(p, RuleHostNoMode, "one of site, passthrough, redirect and answer", "the host does nothing")
		case 1:
			v.mode(name, h, Mode(modes[0]))
		default:
			v.failKey(p.key(modes[1]), RuleHostTwoModes, "one of site, passthrough, redirect and answer",
				"the host has %s as well as %s", modes[1], modes[0])
		}
		v.certificate(p.key("certificate"), h.Certificate)
		v.hostTLS(name, p.key("tls"), h.TLS)
		v.defaultHost(name, h.Default, defaults)
		v.virtualDirectories(p.key("virtual_directories"), h)
		v.mail(p, h)
	}
}

// mode checks the keys of a host against the one thing it does.
func (v validator) mode(name string, h *Host, mode Mode) {
	p := hostsPath.key(name)
	unused := func(why string, keys ...string) {
		for _, k := range v.given(p, keys...) {
			v.failKey(p.key(k), RuleHostKeyUnused, "the host without "+k, "%s has no effect here: %s", k, why)
		}
	}
	if mode != ModePassthrough {
		unused("it is about passthrough hosts; for mail servers it is a key of mail", "send_proxy")
	}
	switch mode {
	case ModePassthrough:
		for _, k := range v.given(p, "certificate", "virtual_directories", "tls", "root_redirect", "hide_headers") {
			v.failKey(p.key(k), RulePassthroughTLS, "the host without "+k+", or with site instead of passthrough",
				"%s has no effect here: a passthrough connection is not decrypted", k)
		}
		unused("it is about redirect hosts without certificate", "refuse")
		if h.Passthrough == nil || v.bad(p.key("passthrough")) {
			return
		}
		if h.Passthrough.Site == "" && len(h.Passthrough.Backends) == 0 {
			v.fail(p.key("passthrough"), RuleEmptyValue, "a site, or [host:port, …]", "there is nowhere to go to")
		}
		q := p.key("passthrough")
		if v.has(q.key("site")) {
			q = q.key("site")
		}
		v.site(q, h.Passthrough.Site)
		if s := v.c.Sites[h.Passthrough.Site]; s != nil {
			if s.Offload {
				v.fail(q, RulePassthroughClear, "a site with https:// servers, or [host:port, …]; or site instead of passthrough, to take the TLS off here",
					"a passthrough connection arrives there as TLS, and the servers of the site %q speak none (offload: true)", h.Passthrough.Site)
			}
			if s.Health.Mode == "off" && h.Passthrough.Health != "" {
				v.warn(p.key("passthrough").key("health"), RulePassthroughPage, "the site without health: off, or the host without health",
					"the site %q has health: off, so nobody asks for the page", h.Passthrough.Site)
			}
		}
	case ModeRedirect:
		unused("a redirect host publishes nothing", "virtual_directories", "root_redirect", "hide_headers")
		v.unusedTLS(p, "a redirect host publishes nothing", "client_auth", "client_ca", "client_certificate_headers")
		if v.has(p.key("certificate")) {
			unused("with a certificate the name is not refused", "refuse")
		} else {
			unused("without a certificate there is no TLS", "tls")
			if v.has(p.key("default")) && h.Default.on() {
				v.failKey(p.key("default"), RuleNoCertificate, "a certificate, or the host without default",
					"hellos without a name are to land here, and there is no certificate to answer them with")
			}
		}
		v.redirect(name, h)
	case ModeAnswer:
		unused("an answer host publishes nothing but Autodiscover", "virtual_directories", "root_redirect", "hide_headers")
		v.unusedTLS(p, "an answer host has no servers", "client_certificate_headers")
		unused("it is about redirect hosts without certificate", "refuse")
		v.needCertificate(p)
		if len(v.c.Domains) == 0 && !v.bad(path{"domains"}) {
			v.failKey(p.key("answer"), RuleAnswerNoDomains, "the mail domains under `domains`", "there are no domains to answer for")
		}
	case ModeSite:
		unused("it is about redirect hosts without certificate", "refuse")
		v.needCertificate(p)
		v.site(p.key("site"), h.Site)
	}
}

func (v validator) needCertificate(p path) {
	if !v.has(p.key("certificate")) {
		v.fail(p.key("certificate"), RuleNoCertificate, "certificate: {cert: FILE, key: FILE}, or another source of one", "the host has no certificate")
	}
}

// unusedTLS reports keys of a host's tls that its mode has no use for.
func (v validator) unusedTLS(p path, why string, keys ...string) {
	for _, k := range v.given(p.key("tls"), keys...) {
		v.failKey(p.key("tls").key(k), RuleHostKeyUnused, "tls without "+k, "%s has no effect here: %s", k, why)
	}
}

// hostTLS checks which TLS the clients of a host may speak. Half of what client certificates need would look like
// protection and be none.
func (v validator) hostTLS(name string, p path, t TLS) {
	if v.bad(p) {
		return
	}
	if t.Profile == "old" {
		v.warn(p.key("profile"), RuleProfileOld, "intermediate; or old for a name of its own, which only the clients have that need it",
			"THE TLS OF %s IS NOT SAFE: TLS 1.0, 3DES and RSA key exchange have known attacks, and who records the traffic can read it once the key is his", name)
	}
	if v.bad(p.key("client_auth")) || v.bad(p.key("client_ca")) || v.c.Hosts[name].Redirect != "" {
		return
	}
	asked := t.ClientAuth == "request" || t.ClientAuth == "require"
	ca := v.has(p.key("client_ca"))
	switch {
	case t.ClientAuth == "require" && !ca:
		v.fail(p.key("client_auth"), RuleClientAuth, "client_ca: FILE with the CA that has issued the clients' certificates", "require without client_ca: nothing says which certificates are good")
	case ca && !asked:
		v.fail(p.key("client_ca"), RuleClientAuth, "client_auth: require, or request; or no client_ca", "no client is asked for a certificate: client_ca has no effect")
	case t.ClientAuth == "request" && !ca && !t.ClientCertificateHeaders:
		v.warn(p.key("client_auth"), RuleClientUnchecked, "client_ca: FILE with the CA that has issued the clients' certificates",
			"clients are asked for certificates that nothing is held against: any will do, and only the log names it")
	}
	if headers := p.key("client_certificate_headers"); t.ClientCertificateHeaders && !v.bad(headers) && (!asked || !ca) {
		v.fail(headers, RuleClientAuth, "client_auth: require, or request, and client_ca: FILE",
			"the servers would take for proven what is not verified: client_certificate_headers needs client_auth and client_ca")
	}
}

func (v validator) certificate(p path, c *Certificate) {
	if c == nil || v.bad(p) || v.entries[p.String()].shape != shapeMap {
		return
	}
	const want = "{cert, key} or {pfx, password_file}; or acme, autocert, self_signed"
	pem, pfx := v.given(p, "cert", "key"), v.given(p, "pfx", "password_file")
	switch {
	case len(pem) > 0 && len(pfx) > 0:
		v.failKey(p.key(pfx[0]), RuleCertificateForm, want, "%s does not go together with %s", pfx[0], pem[0])
	case len(pem)+len(pfx) == 0:
		v.fail(p, RuleCertificateForm, want, "it is not said where the certificate is")
	case len(pem) == 1:
		v.fail(p, RuleCertificateForm, want, "there is %s alone", pem[0])
	case len(pfx) == 1 && pfx[0] == "password_file":
		v.fail(p, RuleCertificateForm, want, "there is password_file alone")
	}
}

// on reports whether any hello without a name lands on the host.
func (d Default) on() bool { return d.Everywhere || len(d.Listeners) > 0 }

func (v validator) defaultHost(name string, d Default, taken map[string]string) {
	p := hostsPath.key(name).key("default")
	if v.bad(p) || !v.has(p) {
		return
	}
	var https []string // every listener that clients may come to without a name
	for _, l := range v.listeners() {
		if l.key != "http" && l.key != "admin" {
			https = append(https, l.addr)
		}
	}
	if v.entries[p.String()].shape == shapeList && len(d.Listeners) == 0 {
		v.fail(p, RuleEmptyValue, "true, or some of the https and mail listeners: "+oneOfOr(https, "there are none"), "the list is empty")
	}
	claim := func(q path, addr string) {
		if other, ok := taken[addr]; ok && other != name {
			v.fail(q, RuleDefaultTwice, "one default host for each listen address",
				"%s is the default of %s already", other, addr)
			return
		}
		taken[addr] = name
	}
	for i, addr := range d.Listeners {
		q := p.index(i)
		switch {
		case addr == "" || v.bad(q):
		case !slices.Contains(https, addr):
			v.fail(q, RuleDefaultListener, "one of the https and mail listeners: "+oneOfOr(https, "there are none"), "%s is not the address of an https or mail listener", addr)
		case !v.serves(name, addr):
			v.fail(q, RuleDefaultListener, "mail with the protocol of that listener, or the list without it", "%s does not serve what is spoken at %s: hellos without a name would be refused", name, addr)
		default:
			claim(q, addr)
		}
	}
	if !d.Everywhere {
		return
	}
	if len(https) == 0 {
		v.fail(p, RuleDefaultListener, "an address under listen.https, or the host without default", "there is no https or mail listener for which this host could be the default")
	}
	for _, addr := range https {
		before := len(v.report.Problems)
		claim(p, addr)
		if len(v.report.Problems) > before {
			break // the same two hosts again
		}
	}
}

// serves reports whether a host serves what is spoken at a listen address.
func (v validator) serves(name, addr string) bool {
	for _, key := range MailKeys() {
		if slices.Contains(v.c.Listen.Mail(key), addr) {
			return v.c.Hosts[name].Mail.Protocol(key) != nil
		}
	}
	return true
}
