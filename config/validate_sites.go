package config

import (
	"slices"
	"strings"
)

var sitesPath = path{"sites"}

func (v validator) sites() {
	used := v.usedSites()
	for _, name := range ordered(v, sitesPath, v.c.Sites) {
		s, p := v.c.Sites[name], sitesPath.key(name)
		v.servers(p.key("servers"), s)
		v.trust(p, s.Trust, s.AllowInternalUntrustedCerts)
		v.siteTLS(p.key("tls"), s.TLS)
		v.health(p.key("health"), s.Health)
		v.rpcClientAccess(p.key("rpc_client_access"), s.RPCClientAccess)
		v.protection(name, s)
		v.hostMap(p.key("host_map"), s)
		if s.AllowInternalUntrustedCerts {
			v.warn(p.key("allow_internal_untrusted_certs"), RuleUntrustedCerts, "trust: {ca: FILE} with the CA of the servers, {pin: [sha256/…]} with their keys, or first_use",
				"THE SERVERS OF SITE %s ARE NOT AUTHENTICATED: whoever answers at their addresses reads every password and mailbox that passes", name)
		}
		// A mailbox may name any site, and the mailboxes are not in this file.
		if !used[name] && v.c.Mailboxes == nil {
			v.warn(p, RuleSiteUnused, "a host or a domain that names it, or the file without it", "no host and no domain leads to the site %q", name)
		}
	}
}

func (v validator) usedSites() map[string]bool {
	used := make(map[string]bool)
	for _, h := range v.c.Hosts {
		used[h.Site] = true
		if h.Mail != nil {
			used[h.Mail.Site] = true
		}
		if h.Passthrough != nil {
			used[h.Passthrough.Site] = true
		}
	}
	for _, d := range v.c.Domains {
		used[d.Site] = true
		if d.Autodiscover == "bridge" && d.Site == "" { // the only one
			for name := range v.c.Sites {
				used[name] = true
			}
		}
	}
	return used
}

func (v validator) servers(p path, s *Site) {
	if v.has(p) && len(s.Servers) == 0 && !v.bad(p) {
		v.fail(p, RuleSiteNoServers, "one server or more, such as [https://cas01.contoso.local]", "the site has no servers")
	}
	if len(s.Servers) > 0 && !slices.ContainsFunc(s.Servers, func(server Server) bool { return !server.Drain || server.URL == "" }) {
		v.warn(p, RuleServersDrain, "one server or more without drain: true", "every server of the site drains, so new clients get to them all the same")
	}
	seen := make(map[string]int)
	for i, server := range s.Servers {
		q := p.index(i)
		if server.URL == "" {
			continue // reported
		}
		at := q
		if v.has(q.key("url")) {
			at = q.key("url")
		}
		line := v.entries[q.String()].line
		if first, ok := seen[server.Address()]; ok {
			v.fail(at, RuleServerTwice, "each server once", "%s is in the list already, on line %d", server.Address(), first)
		} else {
			seen[server.Address()] = line
		}
		if server.Scheme() == "https" && s.Offload {
			v.fail(at, RuleServerOffload, "http://"+server.Host()+", or offload: false", "%s is spoken to over TLS, and offload: true means without", server.URL)
		}
		if server.Scheme() == "http" && !s.Offload {
			v.fail(at, RuleServerHTTP, "https://"+server.Host()+"; http:// only together with offload: true", "%s would carry mail and passwords in clear", server.URL)
		}
	}
}

// health checks what counts.
func (v validator) health(p path, h Health) {
	for key, n := range map[string]int{"fall": h.Fall, "rise": h.Rise} {
		if q := p.key(key); h.Mode == "" && n < 1 && v.has(q) && !v.bad(q) {
			v.fail(q, RuleHealthCount, "2 or 3", "it takes one look at least to find a server up or down")
		}
	}
}

// rpcClientAccess checks that each address says which port of the servers is meant.
func (v validator) rpcClientAccess(p path, addresses []string) {
	for i, addr := range addresses {
		if addr != "" && listenIP(addr).Port() == 0 {
			v.fail(p.index(i), RuleRPCPort, `":135", and the ports that the services were fixed to, such as ":59532"`,
				"connections go to the same port of the servers, which %s does not say", addr)
		}
	}
}

// siteTLS compares versions as text, which is their order too.
func (v validator) siteTLS(p path, t SiteTLS) {
	if t.MinVersion > t.MaxVersion && !v.bad(p.key("min_version")) && !v.bad(p.key("max_version")) {
		at := p.key("min_version")
		if !v.has(at) {
			at = p.key("max_version")
		}
		v.fail(at, RuleSiteTLS, "a min_version that is not above max_version", "no TLS version is both at least %s and at most %s", t.MinVersion, t.MaxVersion)
	}
	if t.MinVersion == "1.3" && len(t.Ciphers) > 0 {
		v.fail(p.key("ciphers"), RuleSiteTLS, "one of the two", "ciphers chooses suites up to TLS 1.2, and min_version allows TLS 1.3 alone")
	}
	const want = "1.2 and the suites that go with it; or this, for servers that have nothing newer"
	const danger = ": who stands in between may read what passes, so the network between here and the servers has to be trusted"
	if (t.MinVersion == "1.0" || t.MinVersion == "1.1") && !v.bad(p.key("min_version")) {
		v.warn(p.key("min_version"), RuleSiteTLSOld, want, "TLS %s, RSA key exchange and 3DES have known attacks"+danger, t.MinVersion)
	}
	for i, suite := range t.Ciphers {
		if q := p.key("ciphers").index(i); !v.bad(q) && strings.Contains(suite, "_RC4_") {
			v.warn(q, RuleSiteTLSOld, want, "RC4 is broken"+danger)
		}
	}
}

func (v validator) trust(p path, trust Trust, untrusted bool) {
	q := p.key("trust")
	if v.has(q) && untrusted {
		v.fail(p.key("allow_internal_untrusted_certs"), RuleTrustConflict, "one of the two",
			"trust says how the servers are authenticated, allow_internal_untrusted_certs says they are not")
	}
	if !v.has(q) || v.bad(q) || v.entries[q.String()].shape != shapeMap {
		return
	}
	given := v.given(q, "ca", "pin")
	if len(given) != 1 || given[0] == "pin" && len(trust.Pin) == 0 && !v.bad(q.key("pin")) {
		v.fail(q, RuleTrustForm, "verify, first_use, {ca: FILE} or {pin: [sha256/…]}", "it is not clear what the certificates are held against")
	}
}

// hostMap checks where the names lead. Each is mapped once, so that what it is mapped to must be meant for clients.
func (v validator) hostMap(p path, s *Site) {
	owners := v.owners()
	for _, internal := range sortedKeys(s.HostMap) {
		q, external := p.key(internal), s.HostMap[internal]
		if external == "" || v.bad(q) {
			continue
		}
		if _, ok := s.HostMap[external]; ok {
			v.fail(q, RuleHostMapLoop, "the name that clients are to see in the end", "%s is mapped itself", external)
			continue
		}
		name, _, _ := strings.Cut(external, ":")
		if _, ok := owners[name]; !ok {
			v.warn(q, RuleHostMapUnserved, "a name or an alias under hosts, unless another machine serves it", "clients are sent to %s, which is no host here", name)
		}
	}
}
