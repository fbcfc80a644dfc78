package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/autodiscover"
	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/internal/throttle"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

// frontDoor is a front door made from a configuration, with everything it holds
// open.
type frontDoor struct {
	cfg     *config.Config
	log     zerolog.Logger
	server  *proxy.Server
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	sockets proxy.Sockets
	lab     bool
	keyLog  io.Writer // nil, but in the lab
	closers []io.Closer
	acme    acmeClients
	// renewCheck is how often it is looked whether a certificate from an issuer is due; 0 is the usual.
	renewCheck time.Duration
	logins     *throttle.Throttle // failed ones, wherever they are checked; a reload goes on counting

	storage *tlsconf.Storage // what must outlive the front door, and what several of them share
	tickets *tlsconf.Tickets // session ticket keys; a reload goes on with them

	https, http []string            // addresses listened on, in the order of the config
	mail        map[string][]string // likewise, by the key of the protocol
	admin       string
	adminServer *http.Server
	serving     sync.WaitGroup
}

// frontDoorOptions are what only the lab changes.
type frontDoorOptions struct {
	// Dial connects to backends; nil: the machine's resolver and network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// RenewCheck is how often it is looked whether a certificate from an ACME issuer
	// is due; 0 is the usual.
	RenewCheck time.Duration
	// Lab: plain passwords in a mailboxes file are nothing to warn of.
	Lab bool
	// KeyLog takes the secrets of all TLS sessions, towards clients and servers, for
	// programs that read recorded traffic; nil: nobody gets them.
	KeyLog io.Writer
}

// newFrontDoor makes a front door; nothing listens yet. What is broken about one
// host's certificate takes that host down alone; what makes an answer unsafe (a
// mailboxes file or a CA file that cannot be read) is an error.
func newFrontDoor(cfg *config.Config, log zerolog.Logger, o frontDoorOptions) (*frontDoor, error) {
	f := &frontDoor{cfg: cfg, log: log, dial: o.Dial, lab: o.Lab, keyLog: o.KeyLog, logins: throttle.New(loginLimits(cfg), time.Now), mail: map[string][]string{}}
	f.acme, f.renewCheck = acmeClients{}, o.RenewCheck
	f.sockets = proxy.Sockets{KeepAlive: cfg.Limits.TCPKeepalive, UserTimeout: cfg.Limits.TCPUserTimeout}
	if f.dial == nil {
		f.dial = f.sockets.Dialer().DialContext
	}
	f.server = proxy.NewServer(proxy.Options{
		Logger: log, ProxyProtocolFrom: cfg.Listen.ProxyProtocolFrom,
		HelloTimeout: cfg.Limits.HelloTimeout, RequestHeadTimeout: cfg.Limits.RequestHeadTimeout, ClientIdleTimeout: cfg.Limits.ClientIdleTimeout,
		Connections: cfg.Limits.Connections, Logins: f.logins, Dial: f.dial,
	})
	var err error
	if f.storage, err = openStorage(cfg, log); err != nil {
		return nil, err
	}
	f.tickets = f.storage.NewTickets(log)
	table, closers, err := f.buildTable(cfg)
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	f.closers = closers
	f.acme.loaded()
	f.server.SetTable(table)
	return f, nil
}

// close closes what the front door holds open; the listeners are closed before.
func (f *frontDoor) close() error {
	return errors.Join(closeAll(f.closers), f.tickets.Close(), f.storage.Close())
}

// reload makes a new table from a configuration and swaps it in. On an error the
// old one stays. Listeners are not changed.
func (f *frontDoor) reload(cfg *config.Config) error {
	closing, storage, tickets := f.closers, f.storage, f.tickets
	moved := storageOptions(cfg) != storageOptions(f.cfg)
	if moved {
		opened, err := openStorage(cfg, f.log)
		if err != nil {
			return err
		}
		f.storage, f.tickets = opened, opened.NewTickets(f.log)
	}
	table, closers, err := f.buildTable(cfg)
	if err != nil {
		if moved {
			err = errors.Join(err, f.tickets.Close(), f.storage.Close())
			f.storage, f.tickets = storage, tickets
		}
		return err
	}
	f.logins.SetLimits(loginLimits(cfg))
	f.server.SetTable(table)
	f.cfg, f.closers = cfg, closers
	err = closeAll(closing)
	if moved {
		err = errors.Join(err, tickets.Close(), storage.Close())
	}
	f.acme.start()
	return err
}

func closeAll(closers []io.Closer) error {
	var errs []error
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// buildTable turns a configuration into the traffic path's table. The closers
// are what it opened: certificate watchers, the directory.
func (f *frontDoor) buildTable(cfg *config.Config) (_ *proxy.Table, closers []io.Closer, err error) {
	defer func() {
		if err != nil {
			_ = closeAll(closers)
		}
	}()
	table := &proxy.Table{
		Hosts: map[string]*proxy.Host{}, Defaults: map[string]*proxy.Host{}, RPCClientAccess: map[string]*proxy.Site{},
		InternalNetworks: cfg.InternalNetworks, TrustedProxies: cfg.Listen.TrustedProxies,
		Multiplexers: cfg.Listen.Multiplexers, RewriteAnswer: autodiscover.Rewrite,
	}
	sites := map[string]*proxy.Site{}
	for _, name := range cfg.SiteNames() {
		var opened io.Closer
		if sites[name], opened, err = f.buildSite(cfg, name); err != nil {
			return nil, closers, err
		}
		if opened != nil {
			closers = append(closers, opened)
		}
		for _, address := range cfg.Sites[name].RPCClientAccess {
			table.RPCClientAccess[address] = sites[name]
		}
	}
	var answer *autodiscover.Handler
	if slices.ContainsFunc(cfg.HostNames(), func(n string) bool { return cfg.Hosts[n].Answer }) {
		var dir io.Closer
		if answer, dir, err = f.buildAnswer(cfg); err != nil {
			return nil, closers, err
		}
		if dir != nil {
			closers = append(closers, dir)
		}
	}
	for _, name := range cfg.HostNames() {
		hc := cfg.Hosts[name]
		h := &proxy.Host{Name: name, RedirectTo: hc.Redirect}
		switch hc.Mode() {
		case config.ModeSite:
			h.Mode, h.Site = proxy.Bridge, sites[hc.Site]
			h.VirtualDirectories = virtualDirectories(hc)
			h.RootRedirect, h.HideHeaders = hc.RootRedirect, hc.HiddenHeaders()
		case config.ModePassthrough:
			h.Mode = proxy.Passthrough
			if h.Site = sites[hc.Passthrough.Site]; h.Site == nil {
				h.Site = passthroughSite(name, hc.Passthrough.Backends, cfg.Limits.ConnectTimeout)
			}
			h.Health = hc.Passthrough.Health
			if hc.SendProxy != "" {
				h.Site = withProxyHeader(name, h.Site, hc.SendProxy)
			}
		case config.ModeRedirect:
			h.Mode = proxy.Redirect
		case config.ModeAnswer:
			h.Mode, h.Handler = proxy.Answer, answer
		}
		switch hc.Refuse {
		case "close":
			h.Refuse = proxy.RefuseClose
		case "reset":
			h.Refuse = proxy.RefuseReset
		}
		if hc.Certificate != nil {
			src, err := f.certificate(cfg, name, hc)
			if err != nil {
				// One broken certificate takes down one host, not the front door.
				f.log.Error().Str("host", name).Err(err).Msg("no certificate: TLS connections for this host are refused")
			} else {
				closers = append(closers, src)
				h.Leaf = src.Leaf
				h.Ready = func() bool { return src.Leaf() != nil }
				if r, ok := src.(interface{ Ready() bool }); ok {
					h.Ready = r.Ready
				}
				if v, ok := src.(interface{ ValidationConfig() *tls.Config }); ok {
					h.Validation = v.ValidationConfig()
				}
				cas, err := f.hostTLS(cfg, name, h, src)
				if cas != nil {
					closers = append(closers, cas)
				}
				if err != nil {
					return nil, closers, err
				}
				h.Policy = strings.Join([]string{
					hc.Certificate.Source, hc.Certificate.Cert, hc.Certificate.Key, hc.Certificate.PFX,
					hc.TLS.Profile, hc.TLS.ClientAuth, hc.TLS.ClientCA, strconv.FormatBool(hc.TLS.ClientCertificateHeaders),
				}, "|")
				if hc.Certificate.Source != "" {
					h.Policy += "|" + name // a certificate of the host's own
				}
				closers = append(closers, f.tickets.Use(h.TLS, name, h.Policy))
			}
		}
		if h.Mail, err = f.buildMail(cfg, name, h.TLS); err != nil {
			return nil, closers, err
		}
		for protocol, m := range h.Mail {
			if m.TLS != nil { // a copy, which has got keys of its own
				closers = append(closers, f.tickets.Use(m.TLS, name, h.Policy, protocol.String()))
			}
		}
		for _, n := range append([]string{name}, hc.Aliases...) {
			table.Hosts[proxy.CanonicalName(n)] = h
		}
		if hc.Default.Everywhere {
			table.Defaults[""] = h
		}
		for _, address := range hc.Default.Listeners {
			table.Defaults[address] = h
		}
	}
	if cfg.Redirects != nil {
		domains, err := directory.OpenDomains(cfg.Path(cfg.Redirects.File), domainsPoll, f.log)
		if err != nil {
			return nil, closers, fmt.Errorf("redirects: %w", err)
		}
		closers = append(closers, domains)
		table.PlainHost = redirectSite(domains, cfg.Redirects.Target)
		f.log.Info().Str("file", cfg.Redirects.File).Int("domains", domains.Len()).Int("bytes", domains.Bytes()).Str("target", cfg.Redirects.Target).Msg("redirect site")
	}
	table.ACMEChallenge = f.acme.forTable()
	return table, closers, nil
}

// hostTLS makes the TLS that the clients of a host meet: profile, certificate, client
// certificates. Without the CAs of client certificates the host alone is refused. What
// it has opened, if anything, is to be closed, also behind an error.
func (f *frontDoor) hostTLS(cfg *config.Config, name string, h *proxy.Host, src tlsconf.Source) (*tlsconf.ClientCAs, error) {
	hc, log := cfg.Hosts[name].TLS, f.log.With().Str("host", name).Logger()
	var cas *tlsconf.ClientCAs
	if hc.ClientCA != "" {
		cas = tlsconf.NewClientCAs(cfg.Path(hc.ClientCA), 0, log)
		ready := h.Ready
		h.ClientCAs, h.Ready = cas.Pool, func() bool { return cas.Pool() != nil && ready() }
	}
	var err error
	if h.TLS, err = tlsconf.ServerConfig(tlsconf.Profile(hc.Profile), src); err != nil {
		return cas, fmt.Errorf("host %s: %w", name, err)
	}
	if err := tlsconf.AskClients(h.TLS, tlsconf.ClientAuth(hc.ClientAuth), cas); err != nil {
		return cas, fmt.Errorf("host %s: %w", name, err)
	}
	h.TLS.KeyLogWriter = f.keyLog
	h.ClientCertificateHeaders = hc.ClientCertificateHeaders
	if leaf := src.Leaf(); tlsconf.Profile(hc.Profile) == tlsconf.Old && leaf != nil && leaf.PublicKeyAlgorithm != x509.RSA {
		log.Warn().Stringer("key", leaf.PublicKeyAlgorithm).Msg("the profile old is for clients that need an RSA key in the certificate: those of before about 2010 cannot connect")
	}
	return cas, nil
}

// buildSite makes a site's backends. Verification is on unless the config says
// otherwise, which is among the warnings that loading it gives. What it has opened,
// if anything, is the closer's.
func (f *frontDoor) buildSite(cfg *config.Config, name string) (_ *proxy.Site, opened io.Closer, err error) {
	sc := cfg.Sites[name]
	site := &proxy.Site{
		Name: name, ConnectTimeout: cfg.Limits.ConnectTimeout, ExtendedProtection: protections[sc.Protection()],
		AllowInternalUntrustedCerts: sc.AllowInternalUntrustedCerts,
	}
	if len(sc.HostMap) > 0 {
		m, err := proxy.NewHostMap(sc.HostMap)
		if err != nil {
			return nil, nil, fmt.Errorf("site %s: %w", name, err)
		}
		site.HostMap = m
	}
	site.HostHeader = sc.HostHeader
	options, err := backendTLS(cfg, trustOfSite(sc))
	if err != nil {
		return nil, nil, fmt.Errorf("site %s: %w", name, err)
	}
	if cc := sc.ClientCertificate; cc != nil {
		files, bad := tlsconf.NewFiles(cfg.Path(cc.Cert), cfg.Path(cc.Key), tlsconf.FilesOptions{Log: f.log.With().Str("site", name).Logger()})
		if bad != nil {
			return nil, nil, fmt.Errorf("site %s: client_certificate: %w", name, bad)
		}
		options.ClientCertificate, opened = files, files
		defer func() {
			if err != nil {
				_ = files.Close()
			}
		}()
	}
	balance(site, sc)
	for _, s := range sc.Servers {
		if s.Scheme() == "http" { // only with offload: true
			site.Backends = append(site.Backends, &proxy.Backend{Name: sc.ServerLabel(s), Address: s.Address(), Drain: s.Drain})
			continue
		}
		o := options
		if o.ServerName = s.Host(); sc.ServerName != "" {
			o.ServerName = sc.ServerName
		}
		if sc.Trust.Mode == "first_use" {
			o.FirstUse = f.storage.FirstUse(name, s.Address(), f.log)
		}
		c, err := tlsconf.BackendConfig(o)
		if err != nil {
			return nil, nil, fmt.Errorf("site %s: %w", name, err)
		}
		c.KeyLogWriter = f.keyLog
		site.Backends = append(site.Backends, &proxy.Backend{Name: sc.ServerLabel(s), Address: s.Address(), Drain: s.Drain, TLS: c})
	}
	return site, opened, nil
}

var protections = map[string]proxy.ExtendedProtection{"off": proxy.ProtectionOff, "auto": proxy.ProtectionAuto, "required": proxy.ProtectionRequired}

// serverTrust is what the config says about TLS with a set of servers.
type serverTrust struct {
	config.Trust
	tls       config.SiteTLS
	untrusted bool
}

func trustOfSite(s *config.Site) serverTrust {
	return serverTrust{s.Trust, s.TLS, s.AllowInternalUntrustedCerts}
}

// affinities are the words of sites.NAME.affinity.
var affinities = map[string]proxy.Affinity{
	"cookie": proxy.ByCookie, "existing_cookie": proxy.ByExistingCookie, "user": proxy.ByUser, "source_ip": proxy.BySourceIP,
}

// balance takes over how a site's servers are chosen between.
func balance(site *proxy.Site, sc *config.Site) {
	site.Exchange, site.SlowStart, site.HandshakesPerSecond = sc.Exchange, sc.SlowStart, sc.HandshakesPerSecond
	if sc.Balance == "least_connections" {
		site.Balance = proxy.LeastConnections
	}
	if h := sc.Health; h.Mode != "off" {
		site.Health = &proxy.Health{
			Interval: h.Interval, Timeout: h.Timeout, Fall: h.Fall, Rise: h.Rise, Host: h.Host, Unauthorized: h.Unauthorized == "up",
		}
	}
	chain := sc.Affinity.Chain
	if one := sc.Affinity.One; one != "" {
		chain = []string{one}
	}
	if len(chain) > 0 {
		site.Affinity = []proxy.Affinity{} // none, unless there are others
	}
	for _, word := range chain {
		if a, ok := affinities[word]; ok {
			site.Affinity = append(site.Affinity, a)
		}
	}
}

// backendTLS is what a set of servers has in common.
func backendTLS(cfg *config.Config, t serverTrust) (o tlsconf.BackendOptions, err error) {
	o.Untrusted = t.untrusted
	if t.CA != "" {
		if o.Roots, err = tlsconf.LoadRoots(cfg.Path(t.CA)); err != nil {
			return o, err
		}
	}
	for _, text := range t.Pin {
		pin, err := tlsconf.ParsePin(text)
		if err != nil {
			return o, err
		}
		o.Pins = append(o.Pins, pin)
	}
	if o.MinVersion, err = tlsconf.ParseVersion(t.tls.MinVersion); err != nil {
		return o, err
	}
	if o.MaxVersion, err = tlsconf.ParseVersion(t.tls.MaxVersion); err != nil {
		return o, err
	}
	o.CipherSuites, err = tlsconf.ParseCipherSuites(t.tls.Ciphers)
	return o, err
}

// passthroughSite makes the nameless site of a passthrough host with backends of
// its own.
func passthroughSite(host string, addresses []string, timeout time.Duration) *proxy.Site {
	site := &proxy.Site{Name: "passthrough of " + host, ConnectTimeout: timeout, Health: &proxy.Health{}}
	for _, a := range addresses {
		site.Backends = append(site.Backends, &proxy.Backend{Name: a, Address: a})
	}
	return site
}

// certificate opens the source of a host's certificate.
func (f *frontDoor) certificate(cfg *config.Config, name string, h *config.Host) (tlsconf.Source, error) {
	c := h.Certificate
	names := append([]string{name}, h.Aliases...)
	log := f.log.With().Str("host", name).Logger()
	switch {
	case c.Source == "acme", c.Source == "autocert":
		return f.acmeSource(cfg, name, h)
	case c.Cert != "":
		return tlsconf.NewFiles(cfg.Path(c.Cert), cfg.Path(c.Key), tlsconf.FilesOptions{Names: names, Log: log, Wait: true})
	case c.PFX != "":
		return tlsconf.NewPFX(cfg.Path(c.PFX), cfg.Path(c.PasswordFile), tlsconf.FilesOptions{Names: names, Log: log, Wait: true})
	case c.Source == "self_signed" && f.storage.Redis() != nil:
		return tlsconf.NewSharedSelfSigned(f.storage.Redis(), shortName(name), name, h.Aliases, tlsconf.SelfSignedOptions{Log: log})
	case c.Source == "self_signed":
		return tlsconf.NewSelfSigned(shortName(name), name, h.Aliases, tlsconf.SelfSignedOptions{Dir: selfSignedDir(f.storage), Log: log})
	}
	return nil, errors.New("this kind of certificate is not in effect yet; use {cert: …, key: …}, {pfx: …} or self_signed")
}

// shortName is the first label, as Exchange set-up puts it in front of the whole name.
func shortName(name string) string {
	short, _, _ := strings.Cut(name, ".")
	return short
}

// selfSignedDir is where self-signed certificates are kept; "" is nowhere.
func selfSignedDir(s *tlsconf.Storage) string {
	if s.Dir() == "" {
		return ""
	}
	return filepath.Join(s.Dir(), "self-signed")
}

// buildAnswer makes the Autodiscover handler and opens the mailboxes.
func (f *frontDoor) buildAnswer(cfg *config.Config) (*autodiscover.Handler, io.Closer, error) {
	o := autodiscover.Options{
		Domains: map[string]autodiscover.Domain{}, InternalNetworks: cfg.InternalNetworks, Logger: f.log, Throttle: f.logins,
	}
	for name, d := range cfg.Domains {
		o.Domains[name] = autodiscover.Domain{
			Action: autodiscover.Action(d.Autodiscover), ExternalURL: d.ExternalURL, InternalURL: d.InternalURL,
			AuthPackage: d.AuthPackage, RedirectAddr: d.RedirectAddr, RedirectURL: d.RedirectURL,
		}
	}
	for _, name := range cfg.HostNames() {
		if h := cfg.Hosts[name]; h.Answer {
			o.Hosts = append(append(o.Hosts, name), h.Aliases...)
		}
	}
	if cfg.Mailboxes == nil {
		return autodiscover.NewHandler(o), nil, nil
	}
	if cfg.Mailboxes.LDAP != nil {
		dir, err := f.openLDAP(cfg)
		if err != nil {
			return nil, nil, err
		}
		o.Directory = dir
		return autodiscover.NewHandler(o), dir, nil
	}
	var options []directory.Option
	if f.lab {
		options = append(options, directory.Lab())
	}
	dir, err := directory.Open(cfg.Path(cfg.Mailboxes.File), f.log, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("mailboxes: %w", err)
	}
	o.Directory = dir
	return autodiscover.NewHandler(o), dir, nil
}

// openLDAP makes the directory of mailboxes.ldap. Nothing is asked yet.
func (f *frontDoor) openLDAP(cfg *config.Config) (*directory.LDAP, error) {
	l := cfg.Mailboxes.LDAP
	o := directory.LDAPOptions{
		Servers: l.URL.List(), BaseDN: l.BaseDN, BindDN: l.BindDN, Filter: l.Filter, SiteAttribute: l.SiteAttribute,
		Timeout: l.Timeout, CacheAge: l.CacheAge, CacheEntries: l.CacheEntries, Dial: f.dial, Logger: f.log,
	}
	if l.PasswordFile != "" {
		o.PasswordFile = cfg.Path(l.PasswordFile)
	}
	if l.CA != "" {
		roots, err := tlsconf.LoadRoots(cfg.Path(l.CA))
		if err != nil {
			return nil, fmt.Errorf("mailboxes.ldap: ca: %w", err)
		}
		o.TLS = &tls.Config{RootCAs: roots}
	}
	dir, err := directory.OpenLDAP(o)
	if err != nil {
		return nil, fmt.Errorf("mailboxes: %w", err)
	}
	return dir, nil
}

// loginLimits are the limits of failed logins.
func loginLimits(cfg *config.Config) throttle.Limits {
	l := cfg.Limits.FailedLogins
	return throttle.Limits{PerUser: noLimit(l.PerUser), PerSource: noLimit(l.PerSource), Window: l.Window}
}

// noLimit translates the config's 0 (no limit) for a package whose 0 is the
// default.
func noLimit(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// listen opens every listener before any is served, so that a port that is taken
// is an error at once and not a front door that is half there.
func (f *frontDoor) listen() (err error) {
	type opened struct {
		ln    net.Listener
		name  string
		serve func(net.Listener, string) error
	}
	var all []opened
	defer func() {
		if err != nil {
			for _, o := range all {
				o.ln.Close()
			}
		}
	}()
	open := func(addresses []string, serve func(net.Listener, string) error, bound *[]string) error {
		for _, a := range addresses {
			ln, err := f.sockets.ListenConfig().Listen(context.Background(), "tcp", a)
			if err != nil {
				hint := ""
				if errors.Is(err, os.ErrPermission) {
					hint = " (ports below 1024 need root, the capability CAP_NET_BIND_SERVICE, or a redirection)"
				}
				return fmt.Errorf("listen on %s: %w%s", a, err, hint)
			}
			all = append(all, opened{ln, a, serve})
			*bound = append(*bound, ln.Addr().String())
		}
		return nil
	}
	if err := open(f.cfg.Listen.HTTPS, f.server.ServeTLS, &f.https); err != nil {
		return err
	}
	if err := open(f.cfg.Listen.HTTP, f.server.ServeHTTP, &f.http); err != nil {
		return err
	}
	for _, key := range config.MailKeys() {
		protocol := mailProtocols[key]
		serve := func(ln net.Listener, name string) error { return f.server.ServeMail(ln, name, protocol) }
		var bound []string
		if err := open(f.cfg.Listen.Mail(key), serve, &bound); err != nil {
			return err
		}
		f.mail[key] = bound
	}
	for _, name := range f.cfg.SiteNames() {
		if err := open(f.cfg.Sites[name].RPCClientAccess, f.server.ServeRPC, new([]string)); err != nil {
			return err
		}
	}
	if f.cfg.Listen.Admin != "" {
		var admin []string
		f.adminServer = &http.Server{
			Handler: f.adminHandler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
			ErrorLog: stdlog.New(f.log.With().Str("listener", "admin").Logger(), "", 0),
		}
		serve := func(ln net.Listener, _ string) error { return f.adminServer.Serve(ln) }
		if err := open([]string{f.cfg.Listen.Admin}, serve, &admin); err != nil {
			return err
		}
		f.admin = admin[0]
	}
	for _, o := range all {
		f.log.Info().Str("address", o.ln.Addr().String()).Str("listener", o.name).Msg("listening")
		f.serving.Go(func() {
			if err := o.serve(o.ln, o.name); err != nil && !errors.Is(err, http.ErrServerClosed) {
				f.log.Error().Err(err).Str("listener", o.name).Msg("listener ended")
			}
		})
	}
	f.acme.start()
	return nil
}

// adminHandler serves the admin listener.
func (f *frontDoor) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(f.server.Status()); err != nil {
			f.log.Debug().Err(err).Msg("status not sent")
		}
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := writeMetrics(w, f.server.Status()); err != nil {
			f.log.Debug().Err(err).Msg("metrics not sent")
		}
	})
	return mux
}

// writeMetrics writes when certificates expire in the text format of Prometheus. Names of hosts are host names: nothing in
// them has to be escaped.
func writeMetrics(w io.Writer, s proxy.Status) error {
	var b strings.Builder
	const name = "autodgate_certificate_not_after_seconds"
	fmt.Fprintf(&b, "# HELP %s When the certificate of a host expires, in seconds since 1970; 0 while there is none.\n# TYPE %s gauge\n", name, name)
	for _, c := range s.Certificates {
		var end int64
		if c.Certificate != nil {
			end = c.Certificate.NotAfter.Unix()
		}
		fmt.Fprintf(&b, "%s{host=%q} %d\n", name, c.Host, end)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// shutdown ends serving: what runs is finished until ctx ends, then cut.
func (f *frontDoor) shutdown(ctx context.Context) error {
	err := f.server.Shutdown(ctx)
	if f.adminServer != nil {
		_ = f.adminServer.Close()
	}
	f.serving.Wait()
	return errors.Join(err, f.close())
}
