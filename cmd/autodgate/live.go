package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

// liveOptions are with what check --live looks.
type liveOptions struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // to servers inside and outside
	Lookup func(ctx context.Context, host string) ([]string, error)             // addresses of a public name
	// LookupSRV returns the target of an SRV record and its port; nil: nobody is asked.
	LookupSRV func(ctx context.Context, name string) (string, error)
	Roots     *x509.CertPool // what certificates outside are held against; nil: the system's
	Timeout   time.Duration  // of everything together
}

// severity is how bad a finding is.
type severity string

const (
	fine    severity = "fine"
	doubt   severity = "warning"
	failure severity = "error"
)

// finding is one line of check --live: what, where, what to do.
type finding struct {
	severity severity
	text     string
}

// findings are those of one thing that is looked at.
type findings struct {
	where string
	list  []finding
}

func (f *findings) add(s severity, format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ") // joined errors
	f.list = append(f.list, finding{s, f.where + ": " + text})
}

// live looks at what a configuration leads to: servers, public names, servers
// outside.
type live struct {
	cfg     *config.Config
	o       liveOptions
	now     time.Time
	timeout time.Duration // of one connection
	leaves  map[string]*x509.Certificate
	storage *tlsconf.Storage
}

// checkLive looks at everything the configuration leads to, a few things at a time,
// and writes a line for each finding, in the order of the configuration.
func checkLive(ctx context.Context, w io.Writer, cfg *config.Config, o liveOptions) (problems, warnings int) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	l := &live{cfg: cfg, o: o, now: time.Now(), timeout: cfg.Limits.ConnectTimeout, leaves: map[string]*x509.Certificate{}}
	var err error
	if l.storage, err = openStorage(cfg, zerolog.Nop()); err != nil {
		return 0, 0 // a file, which has been looked at before
	}
	defer l.storage.Close()
	var jobs []func(context.Context) findings
	if l.storage.Redis() != nil {
		jobs = append(jobs, l.shared)
	}
	for _, name := range cfg.HostNames() {
		jobs = append(jobs, l.certificate(name)...)
		for _, n := range append([]string{name}, cfg.Hosts[name].Aliases...) {
			jobs = append(jobs, func(ctx context.Context) findings { return l.dns(ctx, n) })
		}
	}
	jobs = append(jobs, l.autodiscover()...)
	for _, name := range cfg.SiteNames() {
		jobs = append(jobs, l.site(name)...)
	}
	for _, t := range l.outside() {
		jobs = append(jobs, func(ctx context.Context) findings { return l.target(ctx, t) })
	}
	if cfg.Mailboxes != nil && cfg.Mailboxes.LDAP != nil {
		jobs = append(jobs, l.directory)
	}
	for _, f := range runSome(ctx, jobs) {
		for _, found := range f.list {
			switch found.severity {
			case failure:
				problems++
			case doubt:
				warnings++
			}
			fmt.Fprintf(w, "%s: %s\n", found.severity, found.text)
		}
	}
	return problems, warnings
}

// runSome runs the jobs, eight at a time, and returns what they found in their order.
func runSome(ctx context.Context, jobs []func(context.Context) findings) []findings {
	out := make([]findings, len(jobs))
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for i, job := range jobs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = job(ctx)
		})
	}
	wg.Wait()
	return out
}

// directory looks at the servers that know the mailboxes.
func (l *live) directory(ctx context.Context) findings {
	f := findings{where: "mailboxes.ldap"}
	dir, err := (&frontDoor{log: zerolog.Nop(), dial: l.o.Dial}).openLDAP(l.cfg)
	if err != nil {
		return f // a file, which has been looked at before
	}
	defer dir.Close()
	for _, r := range dir.Look(ctx) {
		switch {
		case r.Err != nil:
			f.add(failure, "%s: %v", r.Server, r.Err)
		case r.Mailboxes == 0:
			f.add(doubt, "%s answers, and has no mailboxes below base_dn; look at base_dn, at filter, and at what bind_dn may read", r.Server)
		default:
			f.add(fine, "%s answers; mailboxes: %d", r.Server, r.Mailboxes)
		}
	}
	return f
}

// shared looks at the storage that several nodes share.
func (l *live) shared(ctx context.Context) findings {
	f := findings{where: "storage"}
	if err := l.storage.Ping(ctx); err != nil {
		f.add(failure, "%v; without it no certificate is ordered or renewed, and nodes do not resume each other's sessions", err)
		return f
	}
	f.add(fine, "%s answers", l.storage.Redis())
	return f
}

// certificate looks at the certificate that a host shows.
func (l *live) certificate(name string) []func(context.Context) findings {
	h := l.cfg.Hosts[name]
	c := h.Certificate
	if c == nil || c.Source != "" {
		return nil
	}
	f := findings{where: "host " + name}
	names := append([]string{name}, h.Aliases...)
	cert, doubts, err := loadCertificate(l.cfg, c, names)
	if err != nil {
		return nil // one of the files, which have been looked at before
	}
	leaf := cert.Leaf
	l.leaves[name] = leaf
	valid := l.now.After(leaf.NotBefore) && l.now.Before(leaf.NotAfter)
	if !valid {
		f.add(failure, "the certificate is valid from %s to %s, and clients refuse it now; renew it", leaf.NotBefore.UTC().Format(time.DateOnly), leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	uncovered := slices.DeleteFunc(names, func(n string) bool { return tlsconf.Covers(leaf, n) })
	if len(uncovered) > 0 {
		f.add(failure, "the certificate is not for %s; get one with every name of the host", strings.Join(uncovered, ", "))
	}
	if valid && len(uncovered) == 0 {
		for _, text := range doubts { // of the chain; where it ends is looked at below, with the CAs of clients
			if !strings.HasPrefix(text, "the chain ends at") {
				f.add(doubt, "%s", text)
			}
		}
	}
	if left := leaf.NotAfter.Sub(l.now); left > 0 && left < tlsconf.ExpirySoon(leaf) {
		f.add(doubt, "the certificate expires on %s; renew it, on the servers too where Extended Protection is on", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if len(f.list) == 0 {
		f.add(fine, "certificate %s, until %s", proxy.DescribeCertificate(leaf), leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	l.carried(&f, name, leaf)
	chain := parsedChain(cert)
	return []func(context.Context) findings{func(ctx context.Context) findings {
		for _, found := range tlsconf.Examine(ctx, chain, tlsconf.ExamineOptions{
			Names: names, Roots: l.o.Roots, Now: l.now, Revocations: &tlsconf.Revocations{Timeout: l.timeout},
		}) {
			switch found.Reason {
			case tlsconf.ReasonExpiry, tlsconf.ReasonName: // said above
				continue
			case tlsconf.ReasonIssuer:
				if found.Severity == tlsconf.Failure { // clients may know a CA that this machine does not
					found.Severity = tlsconf.Warning
				}
			}
			if found.Severity != tlsconf.Fine || found.Reason == tlsconf.ReasonRevocation {
				f.add(severity(found.Severity), "the certificate: %s", found)
			}
		}
		return f
	}}
}

// carried says by which of its names a certificate is good for those of its host, and which nobody needs.
func (l *live) carried(f *findings, name string, leaf *x509.Certificate) {
	needs := deployment(l.cfg).Needs()
	var servers []tlsconf.Need // that may show the same certificate
	for _, site := range l.cfg.Sites {
		for _, s := range append(site.Servers, config.Server{URL: "https://" + site.ServerName}) {
			servers = append(servers, tlsconf.Need{Name: s.Host()})
		}
	}
	have := tlsconf.Hold(leaf, append(needs, servers...))
	var names []string
	for _, c := range have.Carried {
		if c.Host == name && c.By != tlsconf.MatchExact && c.By != tlsconf.MatchCommonName {
			names = append(names, fmt.Sprintf("%s by %s", c.Name, c.San))
		}
	}
	if len(names) > 0 {
		f.add(fine, "the certificate is good for %s; Windows Mobile 5.0 and some Palm devices accept no wildcard", strings.Join(names, ", "))
	}
	if len(have.Superfluous) > 0 {
		f.add(fine, "the certificate also carries names that nobody needs here: %s", strings.Join(have.Superfluous, ", "))
	}
}

// parsedChain is a certificate with what is sent along.
func parsedChain(cert *tls.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{cert.Leaf}
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil { // it was parsed when it was loaded
			chain = append(chain, c)
		}
	}
	return chain
}

// autodiscover looks for the way to Autodiscover of the mail domains that no host has the name for.
func (l *live) autodiscover() (jobs []func(context.Context) findings) {
	for _, n := range deployment(l.cfg).Needs() {
		domain, ok := strings.CutPrefix(n.Name, "autodiscover.")
		if !ok || n.Host != "" || n.Place != tlsconf.Nowhere || l.o.LookupSRV == nil {
			continue
		}
		jobs = append(jobs, func(ctx context.Context) findings {
			f := findings{where: "domain " + domain}
			if addresses, err := l.o.Lookup(ctx, n.Name); err == nil {
				f.add(doubt, "%s leads to %s, and is no host here; clients stop there", n.Name, strings.Join(addresses, ", "))
				return f
			}
			target, err := l.o.LookupSRV(ctx, "_autodiscover._tcp."+domain)
			var de *net.DNSError
			switch {
			case errors.As(err, &de) && de.IsNotFound:
				f.add(doubt, "clients find no Autodiscover: there is neither a host %s nor an SRV record _autodiscover._tcp.%s; add one of them (cert plan says what they need)", n.Name, domain)
			case err != nil:
				f.add(doubt, "DNS could not be asked for _autodiscover._tcp.%s: %v", domain, err)
			default:
				f.add(fine, "Autodiscover is found by SRV, at %s", target)
			}
			return f
		})
	}
	return jobs
}

// lookupSRV returns the first server of an SRV record.
func lookupSRV(ctx context.Context, name string) (string, error) {
	_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
	switch {
	case err != nil:
		return "", err
	case len(records) == 0:
		return "", &net.DNSError{Err: "no such record", Name: name, IsNotFound: true}
	}
	return net.JoinHostPort(proxy.CanonicalName(records[0].Target), strconv.Itoa(int(records[0].Port))), nil
}

// dns looks for a public name. That it is not found may be meant, inside.
func (l *live) dns(ctx context.Context, name string) findings {
	f := findings{where: "host " + name}
	addresses, err := l.o.Lookup(ctx, name)
	var de *net.DNSError
	switch {
	case errors.As(err, &de) && de.IsNotFound:
		f.add(doubt, "DNS knows no address, so clients do not find it; add an A or AAAA record that leads here")
	case err != nil:
		f.add(doubt, "DNS could not be asked: %v", err)
	default:
		slices.Sort(addresses)
		f.add(fine, "DNS leads to %s", strings.Join(addresses, ", "))
	}
	return f
}

// site looks at each server of a site.
func (l *live) site(name string) []func(context.Context) findings {
	silent := &frontDoor{log: zerolog.Nop(), storage: l.storage}
	site, opened, err := silent.buildSite(l.cfg, name)
	if opened != nil {
		defer opened.Close() // the certificate at hand is shown on
	}
	if err != nil {
		return nil // a file, which has been looked at before
	}
	var jobs []func(context.Context) findings
	for i, b := range site.Backends {
		server := l.cfg.Sites[name].Servers[i]
		jobs = append(jobs, func(ctx context.Context) findings { return l.server(ctx, name, server, b) })
	}
	return jobs
}

// server connects to a server as the front door does, and asks it a few questions
// that need no login.
func (l *live) server(ctx context.Context, name string, s config.Server, b *proxy.Backend) (f findings) {
	f = findings{where: "site " + name + ": server " + s.Address()}
	sc := l.cfg.Sites[name]
	unknown := false
	if sc.Trust.Mode == "first_use" && b.TLS != nil {
		// A look is no first use: it must not decide whom to trust from now on.
		first := l.storage.FirstUse(name, s.Address(), zerolog.Nop())
		known, err := first.Known()
		if err != nil {
			f.add(failure, "trust: first_use: %v", err)
			return f
		}
		if !known {
			unknown, b.TLS.VerifyConnection = true, nil
			defer func() {
				f.add(doubt, "trust: first_use has remembered no key yet (%s): the next connection trusts what it is shown; compare that key with the server's own first", first.Place())
			}()
		}
	}
	conn, err := proxy.Connect(ctx, l.o.Dial, b, l.timeout)
	if err != nil {
		f.add(failure, "%v", err)
		return f
	}
	var leaf *x509.Certificate
	if tc, ok := conn.(*tls.Conn); ok {
		cs := tc.ConnectionState()
		leaf = cs.PeerCertificates[0]
		how := "verified"
		switch {
		case sc.AllowInternalUntrustedCerts:
			how = "NOT AUTHENTICATED (allow_internal_untrusted_certs)"
		case unknown:
			how = "not remembered yet:"
		case sc.Trust.Mode == "first_use", len(sc.Trust.Pin) > 0:
			how = "pinned"
		}
		f.add(fine, "%s, certificate %s %s, key %s, until %s", tls.VersionName(cs.Version), how, proxy.DescribeCertificate(leaf), tlsconf.KeyPin(leaf), leaf.NotAfter.UTC().Format(time.DateOnly))
		switch left := leaf.NotAfter.Sub(l.now); {
		case left <= 0:
			f.add(doubt, "the certificate expired on %s; renew it on the server", leaf.NotAfter.UTC().Format(time.DateOnly))
		case left < tlsconf.ExpirySoon(leaf):
			f.add(doubt, "the certificate expires on %s; renew it on the server, and here too where Extended Protection is on", leaf.NotAfter.UTC().Format(time.DateOnly))
		}
	}
	if leaf == nil {
		f.add(fine, "connected, in clear")
	}
	conn.Close()
	l.binding(&f, name, leaf)
	l.questions(ctx, &f, name, s, b)
	return f
}

// binding compares the server's certificate with that of each host that is bridged
// to it, as Extended Protection does.
func (l *live) binding(f *findings, site string, theirs *x509.Certificate) {
	mode := l.cfg.Sites[site].Protection()
	if mode == "off" {
		return
	}
	for _, name := range l.siteHosts(site) {
		own := l.leaves[name]
		switch proxy.CompareCertificates(own, theirs) {
		case proxy.BindingMatch:
			f.add(fine, "Extended Protection: the same certificate as host %s (channel binding %s)", name, proxy.ChannelBinding(own))
		case proxy.BindingUnknown:
			f.add(doubt, "Extended Protection: not compared with host %s, whose certificate is not in files; serve it from files that Exchange delivers", name)
		case proxy.BindingMismatch:
			s, consequence := doubt, "clients that bind their logins to it get 401 again and again (event 4625, status 0xC000035B)"
			if mode == "required" {
				s, consequence = failure, "the server is not used"
			}
			f.add(s, "Extended Protection: another certificate than host %s shows, so %s: the server has %s (channel binding %s), the host %s (channel binding %s); %s",
				name, consequence, proxy.DescribeCertificate(theirs), proxy.ChannelBinding(theirs), proxy.DescribeCertificate(own), proxy.ChannelBinding(own), proxy.BindingAdvice(own, theirs))
		}
	}
}

// siteHosts are the hosts that are bridged to a site.
func (l *live) siteHosts(site string) []string {
	return slices.DeleteFunc(l.cfg.HostNames(), func(n string) bool {
		h := l.cfg.Hosts[n]
		return h.Mode() != config.ModeSite || h.Site != site
	})
}

// questions asks for the version and the health pages, without a login.
func (l *live) questions(ctx context.Context, f *findings, site string, s config.Server, b *proxy.Backend) {
	connect := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return proxy.Connect(ctx, l.o.Dial, b, l.timeout)
	}
	transport := &http.Transport{DialContext: connect, DialTLSContext: connect, MaxConnsPerHost: 1, ResponseHeaderTimeout: 4 * l.timeout, DisableCompression: true}
	defer transport.CloseIdleConnections()
	sc := l.cfg.Sites[site]
	base, host := s.Scheme()+"://"+s.Address(), cmp.Or(sc.Health.Host, sc.ServerName, s.Host())
	logon, err := fetch(ctx, transport, base+"/owa/auth/logon.aspx", host)
	if err != nil {
		f.add(failure, "no answer over HTTP: %v; is it a Client Access server, and does the port belong to IIS?", err)
		return
	}
	version := exchangeVersion(logon.version, logon.body)
	l.version(f, site, version)
	if word := version.word(); word == "2007" || word == "2010" || word == "" && !slices.Contains([]string{"2013", "2016", "2019", "SE"}, sc.Exchange) {
		return // health pages came with 2013
	}
	if sc.Health.Mode == "off" {
		return
	}
	var healthy []string
	for _, path := range l.healthPages(site) {
		page, err := fetch(ctx, transport, base+path, host)
		switch {
		case err != nil:
			f.add(doubt, "%s: %v", path, err)
		case page.status == http.StatusUnauthorized && sc.Health.Unauthorized == "up":
			healthy = append(healthy, strings.TrimSuffix(path, "/healthcheck.htm"))
		case page.status != http.StatusOK:
			f.add(doubt, "%s says %d %s: the server takes itself out for this directory; Get-HealthReport on it says why", path, page.status, http.StatusText(page.status))
		case !strings.Contains(string(page.body), "200 OK"): // as the running front door has it
			f.add(doubt, "%s does not say 200 OK; is it a health page of Exchange?", path)
		default:
			healthy = append(healthy, strings.TrimSuffix(path, "/healthcheck.htm"))
		}
	}
	if len(healthy) > 0 {
		f.add(fine, "healthy: %s", strings.Join(healthy, ", "))
	}
}

// page is what a server says without a login.
type page struct {
	status  int
	version string // X-OWA-Version
	body    []byte // the beginning
}

// fetch asks for a page; it follows nothing.
func fetch(ctx context.Context, transport *http.Transport, address, host string) (page, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return page{}, err
	}
	r.Host = host
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return page{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return page{resp.StatusCode, resp.Header.Get("X-Owa-Version"), body}, err
}

// healthPages are those of the directories that some host publishes from the site.
func (l *live) healthPages(site string) []string {
	var pages []string
	for _, name := range l.siteHosts(site) {
		for _, d := range virtualDirectories(l.cfg.Hosts[name]) {
			for _, prefix := range d.Prefixes {
				page := prefix + "/healthcheck.htm"
				if d.HealthPage && d.Access != proxy.Deny && prefix != "/rpcwithcert" && !slices.Contains(pages, page) {
					pages = append(pages, page)
				}
			}
		}
	}
	return pages
}

// version says which Exchange answers, and what follows from that.
func (l *live) version(f *findings, site string, v build) {
	sc := l.cfg.Sites[site]
	word := v.word()
	if word == "" {
		return
	}
	switch {
	case sc.Exchange != "" && sc.Exchange != word:
		f.add(doubt, "it is Exchange %s (%s), and the site has exchange: %s; set exchange: %s", word, v, sc.Exchange, word)
	default:
		f.add(fine, "Exchange %s (%s)", word, v)
	}
	// 2019 CU14 (15.2.1544) and everything after it turn it on at set-up.
	if v.atLeast(15, 2, 1544) && sc.Protection() == "off" && sc.ExtendedProtection == "" && !sc.Offload {
		f.add(doubt, "this version has Extended Protection on by default; set extended_protection: auto, or off if the servers have it off")
	}
}

// build is the version number of an Exchange server; zero is not known.
type build struct{ major, minor, build int }

func (v build) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.build) }

func (v build) atLeast(major, minor, number int) bool {
	return slices.Compare([]int{v.major, v.minor, v.build}, []int{major, minor, number}) >= 0
}

// word is the version as the config has it; "" if it is none of them.
func (v build) word() string {
	switch {
	case v.major == 8:
		return "2007"
	case v.major == 14:
		return "2010"
	case v.major == 15 && v.minor == 0:
		return "2013"
	case v.major == 15 && v.minor == 1:
		return "2016"
	case v.major == 15 && v.minor == 2 && v.build < 2562: // SE RTM is 15.2.2562
		return "2019"
	case v.major == 15 && v.minor == 2:
		return "SE"
	}
	return ""
}

var logonPath = regexp.MustCompile(`(?i)/owa/(?:auth/)?(\d+\.\d+\.\d+)`)

// exchangeVersion takes the version from the header that OWA puts on its answers, or
// from the directory of the logon page's pictures.
func exchangeVersion(header string, page []byte) (v build) {
	if header == "" {
		if m := logonPath.FindSubmatch(page); m != nil {
			header = string(m[1])
		}
	}
	parts := strings.SplitN(header, ".", 4)
	if len(parts) < 3 {
		return build{}
	}
	var numbers [3]int
	for i := range numbers {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 {
			return build{}
		}
		numbers[i] = n
	}
	return build{numbers[0], numbers[1], numbers[2]}
}

// target is a server outside that clients are sent to.
type target struct {
	where         string // the key of the config
	host, address string
}

// outside lists the servers that clients are sent to and that are none of our own
// names, each once.
func (l *live) outside() []target {
	own := map[string]bool{}
	for name, h := range l.cfg.Hosts {
		own[name] = true
		for _, alias := range h.Aliases {
			own[alias] = true
		}
	}
	var all []target
	add := func(where, host, port string) {
		address := net.JoinHostPort(host, port)
		seen := slices.ContainsFunc(all, func(t target) bool { return t.address == address })
		if host != "" && !own[host] && !seen {
			all = append(all, target{where, host, address})
		}
	}
	addURL := func(where, text string) {
		u, err := url.Parse(text)
		if err != nil || text == "" || u.Scheme != "https" {
			return
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		add(where, proxy.CanonicalName(u.Hostname()), port)
	}
	for _, name := range l.cfg.HostNames() {
		add("host "+name+": redirect", l.cfg.Hosts[name].Redirect, "443")
	}
	for _, name := range l.cfg.SiteNames() {
		addURL("site "+name+": external_url", l.cfg.Sites[name].ExternalURL)
	}
	for _, name := range l.cfg.DomainNames() {
		addURL("domain "+name+": external_url", l.cfg.Domains[name].ExternalURL)
		addURL("domain "+name+": redirect_url", l.cfg.Domains[name].RedirectURL)
	}
	if r := l.cfg.Redirects; r != nil {
		add("redirects: target", r.Target, "443")
	}
	return all
}

// target verifies the certificate of a server outside as clients do.
func (l *live) target(ctx context.Context, t target) findings {
	f := findings{where: t.where + " " + t.address}
	ctx, cancel := context.WithTimeout(ctx, 2*l.timeout)
	defer cancel()
	raw, err := l.o.Dial(ctx, "tcp", t.address)
	if err != nil {
		f.add(failure, "cannot be reached: %v; clients are sent there", err)
		return f
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{ServerName: t.host, RootCAs: l.o.Roots})
	err = conn.HandshakeContext(ctx)
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &verify) && l.cfg.AllowExternalUntrustedCerts:
		f.add(doubt, "THE CERTIFICATE IS NOT TRUSTED, which allow_external_untrusted_certs lets pass: %v; clients are not that generous", err)
	case errors.As(err, &verify):
		f.add(failure, "the certificate is not trusted: %v; have it replaced, or send clients elsewhere (allow_external_untrusted_certs: true makes this a warning)", err)
	case err != nil:
		f.add(failure, "TLS: %v; clients are sent there", err)
	default:
		leaf := conn.ConnectionState().PeerCertificates[0]
		f.add(fine, "certificate trusted, until %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	return f
}
