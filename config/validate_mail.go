package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// mail checks the mail protocols of a host. What they need is in three places: the listener, the host, and the servers.
func (v validator) mail(host path, h *Host) {
	p, m := host.key("mail"), h.Mail
	if m == nil || v.bad(p) {
		return
	}
	protocols := v.given(p, MailKeys()...)
	if len(protocols) == 0 {
		v.fail(p, RuleMailProtocol, "one or more of "+oneOf(MailKeys())+", each bridge or passthrough", "it is not said which protocol is served")
		return
	}
	v.site(p.key("site"), m.Site)
	if v.has(p.key("site")) && v.has(p.key("backend")) {
		v.failKey(p.key("backend"), RuleMailForm, "one of the two; or a backend below the protocol that has another", "the mail servers are those of a site already")
	}
	v.emptyBackend(p.key("backend"), m.Backend)
	shared := v.mailProtocols(p, h, protocols)
	v.mailPort(p.key("backend"), m, shared)
	v.mailTrust(p, m)
}

// mailProtocols checks each protocol and returns those that go to the backend they share.
func (v validator) mailProtocols(p path, h *Host, protocols []string) (shared []string) {
	m := h.Mail
	clear := false
	for _, k := range mailKeys {
		if !slices.Contains(protocols, k.key) {
			continue
		}
		q, protocol := p.key(k.key), m.Protocol(k.key)
		if v.bad(q) || protocol == nil {
			continue
		}
		if len(v.c.Listen.Mail(k.key)) == 0 && !v.bad(path{"listen"}) && !v.bad(path{"listen", k.key}) {
			usual := mailPorts[k.language].tls
			if k.startTLS {
				usual = mailPorts[k.language].clear
			}
			v.warn(q, RuleMailListener, `listen: {`+k.key+`: [":`+usual+`"]}, or the host without it`, "there is no listener for %s: no client can arrive", k.key)
		}
		if protocol.Mode == "bridge" && !v.has(p.parent().key("certificate")) {
			v.fail(q, RuleNoCertificate, "passthrough, or a certificate for the host", "bridge decrypts, and the host has no certificate for it")
		}
		least := 10 * time.Minute // RFC 1939 section 3, RFC 5321 section 4.5.3.2.6
		if k.language == "imap" {
			least = 30 * time.Minute // RFC 9051 section 5.4
		}
		if idle := protocol.IdleTimeout; idle > 0 && idle < least {
			v.warn(q.key("idle_timeout"), RuleMailIdle, strings.TrimSuffix(least.String(), "0s")+" or more", "clients of %s may be silent for longer, and are cut off", k.key)
		}
		v.emptyBackend(q.key("backend"), protocol.Backend)
		urls, at := protocol.Backend, q.key("backend")
		if urls == nil {
			urls, at = m.Backend, p.key("backend")
			if m.Backend != nil {
				shared = append(shared, k.key)
			} else if !v.has(p.key("site")) {
				v.fail(q, RuleMailForm, "site: SITE, or backend: tls://HOST", "it is not said where %s goes", k.key)
			}
		}
		for i, text := range urls.All() {
			item := at
			if v.entries[at.String()].shape == shapeList {
				item = at.index(i)
			}
			scheme, rest, _ := strings.Cut(text, "://")
			if text == "" || v.bad(item) {
				continue // reported
			}
			want := "tls"
			if k.startTLS {
				want = "starttls"
			}
			switch {
			case protocol.Mode == "passthrough" && scheme != want:
				v.fail(item, RuleMailScheme, want+"://"+strings.Split(rest, ":")[0]+", or "+k.key+": bridge",
					"%s is not decrypted, so the server's TLS has to begin as the client's does", k.key)
			case scheme == "tcp" && !m.Offload:
				v.fail(item, RuleMailOffload, "tls:// or starttls://; tcp:// only together with offload: true", "%s would carry mail and passwords in clear", text)
			case scheme == "tcp" && !loopback(text):
				v.warn(item, RuleMailOffload, "tls:// or starttls://, or a server on this machine", "%s gets mail and passwords in clear: whoever is on the way reads them", text)
			}
			clear = clear || scheme == "tcp"
		}
	}
	if m.Offload && !clear && !v.bad(p.key("backend")) {
		v.failKey(p.key("offload"), RuleMailOffload, "a backend such as tcp://imap.contoso.local:143, or mail without offload", "no mail server is spoken to in clear")
	}
	return shared
}

func (v validator) emptyBackend(p path, b *MailBackend) {
	if b != nil && v.entries[p.String()].shape == shapeList && len(b.URLs) == 0 && !v.bad(p) {
		v.fail(p, RuleEmptyValue, "tls://HOST, or [tls://HOST, …]", "the list is empty")
	}
}

// mailPort: one port speaks one language.
func (v validator) mailPort(p path, m *Mail, shared []string) {
	for _, text := range m.Backend.All() {
		u, err := url.Parse(text)
		if err != nil || u.Port() == "" {
			continue
		}
		languages := map[string]bool{}
		for _, k := range mailKeys {
			if slices.Contains(shared, k.key) {
				languages[k.language] = true
			}
		}
		if len(languages) > 1 {
			v.fail(p, RuleMailPort, u.Scheme+"://"+u.Hostname()+", which takes the port of each protocol; or a backend below each of them",
				"port %s cannot serve %s", u.Port(), strings.Join(shared, " and "))
			return
		}
	}
}

// mailTrust checks the keys that say how the backends are spoken to; a site has its own.
func (v validator) mailTrust(p path, m *Mail) {
	own := v.has(p.key("backend"))
	for _, k := range mailKeys {
		own = own || v.has(p.key(k.key).key("backend"))
	}
	if !own && v.has(p.key("site")) {
		for _, k := range v.given(p, "trust", "allow_internal_untrusted_certs", "server_name", "tls") {
			v.failKey(p.key(k), RuleMailForm, k+" at sites."+m.Site, "%s has no effect here: the site says how its servers are spoken to", k)
		}
		return
	}
	v.trust(p, m.Trust, m.AllowInternalUntrustedCerts)
	v.siteTLS(p.key("tls"), m.TLS)
	if m.AllowInternalUntrustedCerts {
		v.warn(p.key("allow_internal_untrusted_certs"), RuleUntrustedCerts, "trust: {ca: FILE} with the CA of the servers, {pin: [sha256/…]} with their keys, or first_use",
			"THE MAIL SERVERS ARE NOT AUTHENTICATED: whoever answers at their addresses reads every password and mailbox that passes")
	}
}

// mailListeners warns about listeners that refuse everybody.
func (v validator) mailListeners() {
	for _, key := range MailKeys() {
		served := slices.ContainsFunc(v.c.HostNames(), func(name string) bool { return v.c.Hosts[name] != nil && v.c.Hosts[name].Mail.Protocol(key) != nil })
		if p := (path{"listen", key}); len(v.c.Listen.Mail(key)) > 0 && !served && !v.bad(p) && !v.bad(hostsPath) {
			v.warn(p, RuleMailListener, "a host with mail: {"+key+": bridge, …}; or "+key+": []", "no host serves %s: every client is refused", key)
		}
	}
}

// loopback reports whether a URL leads to this machine.
func loopback(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}
