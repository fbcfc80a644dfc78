package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/goccy/go-yaml"
	"github.com/miekg/dns"
	"github.com/rs/zerolog"
)

const loopback = "127.0.0.1"

// Options are what a company needs from its caller.
type Options struct {
	Logger zerolog.Logger
	// Kerberos lets the servers accept Kerberos. Without it, Negotiate is NTLM.
	Kerberos KerberosAcceptor
}

// Company is a running scenario, all but its front door. Close ends it.
type Company struct {
	scenario *Scenario
	dir      string
	ca       *certificateAuthority
	dns      *dnsServer
	servers  []*casServer
	recorder *Recorder
	streams  subscriptions
	rpc      rpcProxy
	sessions formsSessions
	config   string
	stop     func() bool
}

// Start brings a scenario up: its CA in a directory of its own, its DNS, its servers, each on a free port of 127.0.0.1. Cancelling
// ctx closes the company as Close does. After an error nothing is left behind.
func Start(ctx context.Context, s *Scenario, opt Options) (_ *Company, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &Company{scenario: s, recorder: new(Recorder)}
	if c.dir, err = os.MkdirTemp("", "autodgate-lab-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	if c.ca, err = newCertificateAuthority(c.dir); err != nil {
		return nil, err
	}
	v := values{address: map[string]string{}, cert: map[string]string{}, key: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(s.Certificates)) {
		if v.cert[name], v.key[name], err = c.ca.issue(name, s.Certificates[name]); err != nil {
			return nil, err
		}
	}
	if v.mailboxes, err = c.writeMailboxes(); err != nil {
		return nil, err
	}
	pox, err := newPOX(s, opt.Logger)
	if err != nil {
		return nil, err
	}
	for _, srv := range s.Servers {
		cas, err := c.startServer(srv, v, pox, opt)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", srv.Name, err)
		}
		c.servers = append(c.servers, cas)
		v.address[srv.Name] = cas.addr
	}
	text, err := s.fill(v)
	if err != nil {
		return nil, err
	}
	c.config = text.config
	if c.dns, err = startDNS(text.zones, opt.Logger); err != nil {
		return nil, fmt.Errorf("start DNS: %w", err)
	}
	c.stop = context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

func (c *Company) startServer(srv Server, v values, pox http.Handler, opt Options) (*casServer, error) {
	own := func() (tls.Certificate, error) { return exchangeCertificate(srv.FQDN) }
	if name := srv.Certificate; name != "" {
		own = func() (tls.Certificate, error) { return tls.LoadX509KeyPair(v.cert[name], v.key[name]) }
	}
	cert, err := own()
	if err != nil {
		return nil, err
	}
	binding, err := endpointData(cert.Leaf)
	if err != nil {
		return nil, err
	}
	ad := c.scenario.ActiveDirectory
	cas := &casServer{
		name: srv.Name, fqdn: srv.FQDN, certificate: cert, protection: srv.ExtendedProtection, binding: binding,
		identity: ntlmIdentity{
			NetBIOSDomain: ad.NetBIOS, DNSDomain: ad.DNS,
			NetBIOSComputer: strings.ToUpper(srv.Name), DNSComputer: srv.FQDN,
		},
		kerberos:     opt.Kerberos,
		streams:      &c.streams,
		rpc:          &c.rpc,
		sessions:     &c.sessions,
		closing:      make(chan struct{}),
		accounts:     newAccounts(ad.NetBIOS, ad.DNS, c.scenario.Mailboxes),
		exchange:     c.scenario.Exchange,
		recorder:     c.recorder,
		autodiscover: pox,
		log:          opt.Logger,
	}
	if c.scenario.legacy() {
		cas.rpc, cas.streams, cas.sessions = new(rpcProxy), new(subscriptions), new(formsSessions)
	}
	return cas, cas.start()
}

// writeMailboxes writes the mailboxes that the front door keeps itself, in the format of its `mailboxes` file.
func (c *Company) writeMailboxes() (string, error) {
	type entry struct {
		Address     string `yaml:"address"`
		DisplayName string `yaml:"display_name,omitempty"`
		Password    string `yaml:"password"`
	}
	file := struct {
		Mailboxes []entry `yaml:"mailboxes"`
	}{[]entry{}}
	for _, m := range c.scenario.Mailboxes {
		if m.FrontDoor {
			file.Mailboxes = append(file.Mailboxes, entry{m.Address, m.DisplayName, m.Password})
		}
	}
	b, err := yaml.Marshal(file)
	if err != nil {
		return "", err
	}
	name := filepath.Join(c.dir, "mailboxes.yaml")
	return name, os.WriteFile(name, b, 0o600)
}

// values are what placeholders become.
type values struct {
	address   map[string]string // host:port by server
	cert, key map[string]string // file names by certificate
	mailboxes string
}

// filled is the scenario's text with the placeholders gone.
type filled struct {
	config string
	zones  map[string]*zone
}

// dummies stand for values that only a running company has.
func (s *Scenario) dummies() values {
	v := values{address: map[string]string{}, cert: map[string]string{}, key: map[string]string{}, mailboxes: "mailboxes.yaml"}
	for _, srv := range s.Servers {
		v.address[srv.Name] = loopback + ":443"
	}
	for name := range s.Certificates {
		v.cert[name], v.key[name] = name+".pem", name+".key"
	}
	return v
}

// fill puts values in place of the placeholders and parses the zones.
func (s *Scenario) fill(v values) (filled, error) {
	get := func(kind string, m map[string]string) func(string) (string, error) {
		return func(name string) (string, error) {
			if got, ok := m[name]; ok {
				return got, nil
			}
			return "", fmt.Errorf("there is no %s %q", kind, name)
		}
	}
	quoted := func(f func(string) (string, error)) func(string) (string, error) {
		return func(name string) (string, error) {
			got, err := f(name)
			return quote(got), err
		}
	}
	endpoint := get("server", v.address)
	funcs := template.FuncMap{
		"front_door": func() string { return loopback },
		"server":     func(name string) (string, error) { _, err := endpoint(name); return loopback, err },
		"endpoint":   endpoint,
		"url":        func(name string) (string, error) { a, err := endpoint(name); return "https://" + a, err },
		"cert":       quoted(get("certificate", v.cert)),
		"key":        quoted(get("certificate", v.key)),
		"mailboxes":  func() string { return quote(v.mailboxes) },
	}
	expand := func(name, text string) (string, error) {
		t, err := template.New(name).Funcs(funcs).Parse(text)
		if err != nil {
			return "", err
		}
		var b strings.Builder
		err = t.Execute(&b, nil)
		return b.String(), err
	}

	out := filled{zones: map[string]*zone{}}
	var errs []error
	var err error
	if out.config, err = expand("config", s.Config); err != nil {
		errs = append(errs, err)
	}
	for _, origin := range slices.Sorted(maps.Keys(s.Zones)) {
		text, err := expand("zones."+origin, s.Zones[origin])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		z, err := parseZone(origin, text)
		if err != nil {
			errs = append(errs, fmt.Errorf("zones.%s: %w", origin, err))
			continue
		}
		out.zones[dns.CanonicalName(origin)] = z
	}
	return out, errors.Join(errs...)
}

// quote makes a YAML string; JSON's quoting is a part of YAML's. Windows takes slashes as well.
func quote(s string) string {
	b, err := json.Marshal(filepath.ToSlash(s))
	if err != nil { // a string
		panic(err)
	}
	return string(b)
}

// Close ends the servers and removes the directory with the keys. It may be called more than once.
func (c *Company) Close() error {
	if c.stop != nil {
		c.stop()
	}
	if c.dns != nil {
		c.dns.close()
	}
	for _, s := range c.servers {
		s.close()
	}
	return os.RemoveAll(c.dir)
}

// Scenario returns what was started. The caller must not change it.
func (c *Company) Scenario() *Scenario { return c.scenario }

// Config returns the YAML of the front door, with the ports and file names of this company in it.
func (c *Company) Config() string { return c.config }

// Dir returns the directory of certificates, keys and the mailboxes file; Close removes it.
func (c *Company) Dir() string { return c.dir }

// CAFile returns the name of the PEM file with the root certificate, for curl --cacert.
func (c *Company) CAFile() string { return c.ca.rootFile() }

// RootCAs returns a new pool that holds the root certificate alone.
func (c *Company) RootCAs() *x509.CertPool { return c.ca.pool() }

// DNSAddr returns host:port of the DNS server, the same for UDP and TCP.
func (c *Company) DNSAddr() string { return c.dns.addr }

// Resolver returns a resolver that asks the lab's DNS server alone. End names with a dot: without one, the search list of the
// machine is tried as well.
func (c *Company) Resolver() *net.Resolver { return c.dns.resolver() }

// Queries returns what the DNS server was asked so far, oldest first.
func (c *Company) Queries() []Query { return c.dns.seen() }

// Recorder returns the record of every connection to the servers.
func (c *Company) Recorder() *Recorder { return c.recorder }

// Servers returns the servers with the addresses they got, in the order of the scenario.
func (c *Company) Servers() []Server {
	var out []Server
	for _, s := range c.servers {
		out = append(out, Server{
			Name: s.name, FQDN: s.fqdn, URL: "https://" + s.addr, Address: s.addr,
			Fingerprint: fingerprint(s.certificate.Certificate[0]),
		})
	}
	return out
}

// Accounts returns everybody who can log in, with passwords, in the order of the scenario. They are the lab's, and printed by it.
func (c *Company) Accounts() []Mailbox { return slices.Clone(c.scenario.Mailboxes) }

// Account finds the mailbox that a user of this address logs in as. An address whose domain has no mailbox of its own is looked up by
// its local part alone: a hosted domain whose users live in another one.
func (c *Company) Account(address string) (Mailbox, bool) {
	local, _, _ := strings.Cut(address, "@")
	var byLocal []Mailbox
	for _, m := range c.scenario.Mailboxes {
		if strings.EqualFold(m.Address, address) {
			return m, true
		}
		if l, _, _ := strings.Cut(m.Address, "@"); strings.EqualFold(l, local) {
			byLocal = append(byLocal, m)
		}
	}
	if len(byLocal) == 1 {
		return byLocal[0], true
	}
	return Mailbox{}, false
}

// Expectations returns what each client's discovery should come to, in the order of the scenario.
func (c *Company) Expectations() []Expectation { return slices.Clone(c.scenario.Expect) }
