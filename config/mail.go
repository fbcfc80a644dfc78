package config

import (
	"net"
	"net/url"
	"slices"
)

// mailKeys are the mail protocols, which have one key each under `listen` and under a host's `mail`, with the language
// that is spoken and whether it begins in clear.
var mailKeys = []struct {
	key, language string
	startTLS      bool
}{
	{"imaps", "imap", false},
	{"pop3s", "pop3", false},
	{"submissions", "submission", false},
	{"imap", "imap", true},
	{"pop3", "pop3", true},
	{"submission", "submission", true},
}

// mailPorts are the usual ports of each language: with TLS from the first byte, and else.
var mailPorts = map[string]struct{ tls, clear string }{
	"imap":       {"993", "143"},
	"pop3":       {"995", "110"},
	"submission": {"465", "587"},
}

// MailKeys returns the keys of the mail protocols, in the order of the reference.
func MailKeys() []string {
	var keys []string
	for _, k := range mailKeys {
		keys = append(keys, k.key)
	}
	return keys
}

// Mail returns the addresses of a mail protocol's listeners; key is one of MailKeys.
func (l Listen) Mail(key string) []string {
	return map[string][]string{
		"imaps": l.IMAPS, "pop3s": l.POP3S, "submissions": l.Submissions,
		"imap": l.IMAP, "pop3": l.POP3, "submission": l.Submission,
	}[key]
}

// Protocol returns what the host does with a mail protocol, nil if it does not serve it; key is one of MailKeys. m may be
// nil.
func (m *Mail) Protocol(key string) *MailProtocol {
	if m == nil {
		return nil
	}
	return map[string]*MailProtocol{
		"imaps": m.IMAPS, "pop3s": m.POP3S, "submissions": m.Submissions,
		"imap": m.IMAP, "pop3": m.POP3, "submission": m.Submission,
	}[key]
}

// All returns the URLs of the backends. b may be nil.
func (b *MailBackend) All() []string {
	switch {
	case b == nil:
		return nil
	case b.URL != "":
		return []string{b.URL}
	}
	return b.URLs
}

// MailServer is where the connections of one mail protocol go.
type MailServer struct {
	Scheme string // tls, starttls or tcp
	Host   string // without brackets
	Port   string
	Drain  bool
	Site   string // whose trust holds for it; empty: that of the mail keys
}

// Address returns host:port, as it is dialled.
func (s MailServer) Address() string { return net.JoinHostPort(s.Host, s.Port) }

// MailServers returns the servers of a mail protocol that the host serves; key is one of MailKeys.
func (c *Config) MailServers(m *Mail, key string) []MailServer {
	k := mailKeys[slices.Index(MailKeys(), key)]
	p := m.Protocol(key)
	urls := p.Backend.All()
	if len(urls) == 0 {
		urls = m.Backend.All()
	}
	var servers []MailServer
	add := func(s MailServer) {
		if s.Port == "" {
			s.Port = mailPorts[k.language].clear
			if s.Scheme == "tls" {
				s.Port = mailPorts[k.language].tls
			}
		}
		servers = append(servers, s)
	}
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil { // canonical since urlForm
			add(MailServer{Scheme: u.Scheme, Host: u.Hostname(), Port: u.Port()})
		}
	}
	if site := c.Sites[m.Site]; len(urls) == 0 && site != nil {
		scheme := "tls"
		// Exchange takes submission with STARTTLS alone. Undecrypted bytes can only go where TLS begins in the same way.
		if k.startTLS && p.Mode == "passthrough" || k.language == "submission" && p.Mode == "bridge" {
			scheme = "starttls"
		}
		for _, s := range site.Servers {
			add(MailServer{Scheme: scheme, Host: s.Host(), Drain: s.Drain, Site: m.Site})
		}
	}
	return servers
}
