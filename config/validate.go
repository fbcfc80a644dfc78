package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// validator looks at what no single value can tell. It changes nothing and opens nothing.
type validator struct {
	*findings
	c *Config
}

func (v validator) all() {
	v.listen()
	v.names()
	v.hosts()
	v.acme()
	v.mailListeners()
	v.storage()
	v.sites()
	v.domains()
	v.redirects()
	v.mailboxes()
	v.inside()
	v.outside()
	v.notInEffect()
}

// ordered returns the keys of a table in the order of the file, so that "first" means what a reader takes it for. A key
// whose value is not a set of keys has been reported, and there is nothing to say about its inside.
func ordered[V any](v validator, p path, table map[string]V) []string {
	names := slices.DeleteFunc(sortedKeys(table), func(name string) bool {
		return v.entries[p.key(name).String()].shape != shapeMap
	})
	slices.SortFunc(names, func(a, b string) int {
		x, y := v.entries[p.key(a).String()], v.entries[p.key(b).String()]
		return cmp.Or(cmp.Compare(x.keyLine, y.keyLine), cmp.Compare(x.keyColumn, y.keyColumn))
	})
	return names
}

// given returns those of the keys that the file holds below p, in the order asked for.
func (v validator) given(p path, keys ...string) []string {
	return slices.DeleteFunc(keys, func(k string) bool { return !v.has(p.key(k)) })
}

// bad reports whether the value at p was found wrong already; what follows from that is not worth a message.
func (v validator) bad(p path) bool { return v.faulty[p.String()] }

// listener is one address of one of the keys of listen.
type listener struct {
	path path
	key  string
	addr string
}

// where names the list that the address stands in.
func (l listener) where() string {
	if l.key == "rpc_client_access" {
		return l.path.parent().String()
	}
	return "listen." + l.key
}

func (v validator) listeners() []listener {
	p, l := path{"listen"}, v.c.Listen
	var all []listener
	for _, list := range []struct {
		key   string
		addrs []string
	}{
		{"https", l.HTTPS},
		{"http", l.HTTP},
		{"imaps", l.IMAPS},
		{"pop3s", l.POP3S},
		{"submissions", l.Submissions},
		{"imap", l.IMAP},
		{"pop3", l.POP3},
		{"submission", l.Submission},
	} {
		for i, addr := range list.addrs {
			all = append(all, listener{p.key(list.key).index(i), list.key, addr})
		}
	}
	if l.Admin != "" {
		all = append(all, listener{p.key("admin"), "admin", l.Admin})
	}
	for _, name := range ordered(v, sitesPath, v.c.Sites) {
		for i, addr := range v.c.Sites[name].RPCClientAccess {
			all = append(all, listener{sitesPath.key(name).key("rpc_client_access").index(i), "rpc_client_access", addr})
		}
	}
	return slices.DeleteFunc(all, func(l listener) bool { return l.addr == "" }) // reported by the decoder
}

// storage looks at what belongs to Redis alone.
func (v validator) storage() {
	p := path{"certificates"}
	c := v.c.Certificates
	if v.bad(p.key("storage")) {
		return
	}
	if !isRedis(c.Storage) {
		for _, key := range v.given(p, "storage_password_file", "storage_ca", "storage_key_file", "storage_prefix") {
			v.failKey(p.key(key), RuleStorageKey, "storage: redis://…; or without it", "%s is for storage on Redis, and storage is a directory", key)
		}
		return
	}
	if c.StorageCA != "" && !strings.HasPrefix(c.Storage, "rediss://") {
		v.failKey(p.key("storage_ca"), RuleStorageKey, "storage: rediss://…; or without it", "storage_ca is for storage over TLS")
	}
	if strings.HasPrefix(c.Storage, "redis://") && !loopback(c.Storage) {
		switch {
		case c.StorageKeyFile == "":
			v.warn(p.key("storage"), RuleStorageClear, "rediss://…; or storage_key_file", "private keys cross the network in clear")
		case c.StoragePasswordFile != "":
			v.warn(p.key("storage"), RuleStorageClear, "rediss://…", "the password of Redis crosses the network in clear")
		}
	}
}

func (v validator) listen() {
	p := path{"listen"}
	all := v.listeners()
	for i, b := range all {
		for _, a := range all[:i] {
			if !overlap(a.addr, b.addr) || a.key == b.key && a.addr == b.addr {
				continue // the same address twice in one list is the decoder's to report
			}
			shown, other := b, a
			if !v.has(b.path) { // a default: the fault is in what the file says
				shown, other = a, b
			}
			v.fail(shown.path, RuleListenPortTwice, "another port, or another address; or "+other.key+": [] to switch that one off",
				"the port of %s is taken: %s is %s", shown.addr, other.where(), other.addr)
			break
		}
	}
	if !slices.ContainsFunc(all, func(l listener) bool { return l.key != "admin" }) && !v.bad(p) {
		v.fail(p, RuleListenNothing, `https: [":443"], http: [":80"], or the line removed for these defaults`, "there is no port on which a client could arrive")
	}
	if admin := v.c.Listen.Admin; admin != "" {
		if a, err := netip.ParseAddrPort(admin); err != nil || !a.Addr().IsLoopback() {
			v.warn(p.key("admin"), RuleAdminExposed, "127.0.0.1:9480 or [::1]:9480, or a firewall that lets in only those who may see and steer this server",
				"the admin listener %s can be reached from other machines, and it asks for no login", admin)
		}
	}
	if len(v.c.Listen.TrustedProxies) > 0 && !v.has(p.key("multiplexers")) {
		// An empty list says it as well: it is the administrator's word that they keep clients apart.
		v.warn(p.key("trusted_proxies"), RuleMultiplexers, "multiplexers: with those of them that do; or multiplexers: [] if each connection of theirs belongs to one client",
			"it is not said whether these proxies send requests of several clients over one connection: if they do, NTLM and Negotiate give one user the mailbox of another")
	}
	for key, list := range map[string][]netip.Prefix{"proxy_protocol_from": v.c.Listen.ProxyProtocolFrom, "trusted_proxies": v.c.Listen.TrustedProxies} {
		for i, prefix := range list {
			if prefix.IsValid() && prefix.Bits() == 0 {
				v.warn(p.key(key).index(i), RulePrefixEveryone, "the addresses of your own proxies", "%s is everybody: any client may then claim any source address", prefix)
			}
		}
	}
}

// overlap reports whether two listen addresses cannot be bound together. An address without IP, and ::, take the port in
// IPv4 as well.
func overlap(a, b string) bool {
	x, y := listenIP(a), listenIP(b)
	if x.Port() != y.Port() || x.Port() == 0 {
		return false
	}
	if y.Addr().IsUnspecified() {
		x, y = y, x
	}
	switch {
	case x.Addr() == netip.IPv6Unspecified():
		return true
	case x.Addr() == netip.IPv4Unspecified():
		return y.Addr().Is4() || y.Addr() == netip.IPv6Unspecified()
	}
	return x.Addr() == y.Addr()
}

func listenIP(addr string) netip.AddrPort {
	if addr[0] == ':' {
		addr = "[::]" + addr
	}
	a, _ := netip.ParseAddrPort(addr) // canonical since readListen
	return a
}

// site checks that the site named at p exists.
func (v validator) site(p path, name string) {
	if _, ok := v.c.Sites[name]; !ok && name != "" && !v.bad(p) {
		want := "a site of `sites`: " + oneOfOr(sortedKeys(v.c.Sites), "there is none yet")
		v.fail(p, RuleSiteUnknown, didYouMean(name, slices.Values(sortedKeys(v.c.Sites)), want), "there is no site %q", name)
	}
}

func oneOfOr(words []string, otherwise string) string {
	if len(words) == 0 {
		return otherwise
	}
	return oneOf(words[:min(len(words), 10)])
}

func (v validator) mailboxes() {
	p := path{"mailboxes"}
	if v.c.Mailboxes != nil && !v.bad(p) && len(v.given(p, "file", "ldap")) != 1 {
		v.fail(p, RuleMailboxesForm, "one of file and ldap", "it is not clear where the mailboxes are")
	}
	if v.c.Mailboxes != nil && v.c.Mailboxes.LDAP != nil {
		v.ldap(p.key("ldap"), v.c.Mailboxes.LDAP)
	}
}

// ldap looks at what only makes sense together. A bind with a name and no password would succeed as one without a name
// (RFC 4513 section 5.1.2).
func (v validator) ldap(p path, l *LDAP) {
	if q := p.key("url"); v.entries[q.String()].shape == shapeList && len(l.URL.URLs) == 0 && !v.bad(q) {
		v.fail(q, RuleEmptyValue, "ldaps://HOST, or [ldaps://HOST, …]", "the list is empty")
	}
	switch given := v.given(p, "bind_dn", "password_file"); {
	case len(given) != 1 || v.bad(p):
	case given[0] == "bind_dn":
		v.failKey(p.key("bind_dn"), RuleLDAPAccount, "password_file as well, or neither for anonymous searches", "the account has no password")
	default:
		v.failKey(p.key("password_file"), RuleLDAPAccount, "bind_dn as well, or neither for anonymous searches", "it is not said whose password that is")
	}
}

// inside warns about what is kept for clients inside when nobody is said to be there, or everybody.
func (v validator) inside() {
	for i, prefix := range v.c.InternalNetworks {
		if prefix.IsValid() && prefix.Bits() == 0 {
			v.warn(path{"internal_networks"}.index(i), RulePrefixEveryone, "your own networks", "%s is everybody: what is kept for clients inside is open to all", prefix)
		}
	}
	if len(v.c.InternalNetworks) > 0 || v.bad(path{"internal_networks"}) {
		return
	}
	nobody := func(p path, what string) {
		v.warn(p, RuleInternalNobody, "internal_networks: [10.0.0.0/8], with your own networks", "there are no internal_networks: %s", what)
	}
	for _, name := range ordered(v, hostsPath, v.c.Hosts) {
		p := hostsPath.key(name).key("virtual_directories")
		for key, dir := range v.c.Hosts[name].VirtualDirectories {
			if dir.Access == "internal" {
				nobody(p.key(key), "nobody can reach "+key)
			}
		}
	}
	for _, name := range ordered(v, domainsPath, v.c.Domains) {
		if p := domainsPath.key(name).key("internal_url"); v.c.Domains[name].InternalURL != "" {
			nobody(p, "nobody is given internal_url")
		}
	}
}
