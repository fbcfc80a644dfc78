package main

import (
	"crypto/tls"
	"fmt"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

// mailProtocols are the mail protocols by their keys.
var mailProtocols = map[string]proxy.MailProtocol{
	"imaps": proxy.IMAPS, "pop3s": proxy.POP3S, "submissions": proxy.Submissions,
	"imap": proxy.IMAP, "pop3": proxy.POP3, "submission": proxy.Submission,
}

var proxyVersions = map[string]proxy.ProxyVersion{"v1": proxy.ProxyV1, "v2": proxy.ProxyV2}

// buildMail makes what a host does with the mail protocols. conf ends the clients'
// TLS; nil while the host has no certificate.
func (f *frontDoor) buildMail(cfg *config.Config, name string, conf *tls.Config) (map[proxy.MailProtocol]*proxy.Mail, error) {
	mc := cfg.Hosts[name].Mail
	if mc == nil {
		return nil, nil
	}
	all := map[proxy.MailProtocol]*proxy.Mail{}
	for key, protocol := range mailProtocols {
		pc := mc.Protocol(key)
		if pc == nil {
			continue
		}
		m := &proxy.Mail{Mode: proxy.Bridge, Idle: pc.IdleTimeout}
		if pc.Mode == "passthrough" {
			m.Mode = proxy.Passthrough
		}
		if conf != nil {
			m.TLS = conf.Clone()
			m.TLS.NextProtos = protocol.ALPN()
		}
		var err error
		if m.Site, err = f.mailSite(cfg, name, key); err != nil {
			return nil, fmt.Errorf("host %s: mail: %w", name, err)
		}
		all[protocol] = m
	}
	return all, nil
}

// mailSite makes the backends of a mail protocol.
func (f *frontDoor) mailSite(cfg *config.Config, name, key string) (*proxy.Site, error) {
	mc := cfg.Hosts[name].Mail
	site := &proxy.Site{Name: name + " " + key, ConnectTimeout: cfg.Limits.ConnectTimeout}
	for _, s := range cfg.MailServers(mc, key) {
		b := &proxy.Backend{
			Name: s.Host, Address: s.Address(), Drain: s.Drain,
			SendProxy: proxyVersions[mc.SendProxy], StartTLS: s.Scheme == "starttls",
		}
		if s.Scheme != "tcp" {
			trust, serverName, owner := serverTrust{mc.Trust, mc.TLS, mc.AllowInternalUntrustedCerts}, mc.ServerName, name
			if s.Site != "" {
				sc := cfg.Sites[s.Site]
				trust, serverName, owner = trustOfSite(sc), sc.ServerName, s.Site
			}
			site.AllowInternalUntrustedCerts = site.AllowInternalUntrustedCerts || trust.untrusted
			o, err := backendTLS(cfg, trust)
			if err != nil {
				return nil, err
			}
			if o.ServerName = s.Host; serverName != "" {
				o.ServerName = serverName
			}
			if trust.Mode == "first_use" {
				o.FirstUse = f.storage.FirstUse(owner, s.Address(), f.log)
			}
			if b.TLS, err = tlsconf.BackendConfig(o); err != nil {
				return nil, err
			}
			b.TLS.KeyLogWriter = f.keyLog
			b.TLS.NextProtos = nil // mail servers are known by their ports
		}
		site.Backends = append(site.Backends, b)
	}
	return site, nil
}

// withProxyHeader returns a site of a passthrough host's own, with the same servers,
// each of which gets a PROXY header first.
func withProxyHeader(host string, site *proxy.Site, version string) *proxy.Site {
	out := &proxy.Site{
		Name: "passthrough of " + host, ConnectTimeout: site.ConnectTimeout, Exchange: site.Exchange, Health: site.Health,
		Affinity: site.Affinity, Balance: site.Balance, SlowStart: site.SlowStart, HandshakesPerSecond: site.HandshakesPerSecond,
	}
	for _, b := range site.Backends {
		out.Backends = append(out.Backends, &proxy.Backend{
			Name: b.Name, Address: b.Address, TLS: b.TLS, Drain: b.Drain, SendProxy: proxyVersions[version],
		})
	}
	return out
}
