package tlsconf

import (
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestMatchName(t *testing.T) {
	t.Parallel()
	leaf := issue(t, "mail.contoso.com", nil, func(c *x509.Certificate) {
		c.DNSNames = []string{"mail.contoso.com", "*.branch.contoso.com", "xn--bcher-kva.example"}
		c.IPAddresses = []net.IP{net.ParseIP("192.0.2.1")}
	}).Certificate
	common := issue(t, "mail.contoso.com", nil, nil).Certificate
	star := issue(t, "*.contoso.com", nil, nil).Certificate
	f := func(c *x509.Certificate, name string, by Match, carried string) {
		t.Helper()
		if gotBy, got := MatchName(c, name); gotBy != by || got != carried {
			t.Errorf("%s: %q by %q, want %q by %q", name, got, gotBy, carried, by)
		}
	}
	f(leaf, "MAIL.contoso.com.", MatchExact, "mail.contoso.com")
	f(leaf, "a.branch.contoso.com", MatchWildcard, "*.branch.contoso.com")
	f(leaf, "branch.contoso.com", NoMatch, "")
	f(leaf, "a.b.branch.contoso.com", NoMatch, "")
	f(leaf, "bücher.example", MatchExact, "xn--bcher-kva.example")
	f(leaf, "192.0.2.1", MatchAddress, "192.0.2.1")
	f(leaf, "192.0.2.2", NoMatch, "")
	f(leaf, "", NoMatch, "")
	f(common, "mail.contoso.com", MatchCommonName, "mail.contoso.com")
	f(common, "owa.contoso.com", NoMatch, "")
	f(star, "mail.contoso.com", MatchCommonName, "*.contoso.com")
	f(star, "a.mail.contoso.com", NoMatch, "")
	f(nil, "mail.contoso.com", NoMatch, "")
}

func TestHold(t *testing.T) {
	t.Parallel()
	leaf := issue(t, "mail.contoso.com", nil, dns("mail.contoso.com", "*.branch.contoso.com", "old.contoso.com", "*.lab.contoso.com")).Certificate
	c := Hold(leaf, []Need{{Name: "mail.contoso.com"}, {Name: "owa.branch.contoso.com"}, {Name: "legacy.contoso.com"}})
	var carried, missing []string
	for _, n := range c.Carried {
		carried = append(carried, n.Name+" "+string(n.By)+" "+n.San)
	}
	for _, n := range c.Missing {
		missing = append(missing, n.Name)
	}
	for got, want := range map[string]string{
		strings.Join(carried, "|"):       "mail.contoso.com exact mail.contoso.com|owa.branch.contoso.com wildcard *.branch.contoso.com",
		strings.Join(missing, "|"):       "legacy.contoso.com",
		strings.Join(c.Superfluous, "|"): "old.contoso.com|*.lab.contoso.com",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// The limits of clients, each where it matters and not beside it.
func TestClientLimits(t *testing.T) {
	t.Parallel()
	f := func(c Circumstances, want ...string) {
		t.Helper()
		var got []string
		for _, l := range c.Limits() {
			got = append(got, l.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
	mail := []string{"mail.contoso.com", "pop.contoso.com"}
	f(Circumstances{Names: mail, Principal: "mail.contoso.com", Mail: mail[:1], Exchange: []string{"2019"}})
	f(Circumstances{Names: []string{"*.contoso.com"}, Principal: "mail.contoso.com"}, "wildcard", "wildcard-principal")
	f(Circumstances{Names: append([]string{"mail.contoso.com"}, "*.contoso.com"), Principal: "mail.contoso.com"}, "wildcard")
	f(Circumstances{Names: mail, Principal: "pop.contoso.com"}, "principal")
	f(Circumstances{Names: mail, SelfSigned: true, PrivateCA: true}, "self-signed")
	f(Circumstances{Names: mail, Mail: []string{"pop.contoso.com"}}, "mail-san")
	f(Circumstances{Names: mail, PrivateCA: true}, "own-root")
	f(Circumstances{Names: mail, ECDSA: true}, "cng")
	f(Circumstances{Names: mail, ECDSA: true, Exchange: []string{"2016", "2010"}}, "cng")
	f(Circumstances{Names: mail, ECDSA: true, Exchange: []string{"2016"}})
	f(Circumstances{Names: mail, Redirected: true, Exchange: []string{"2007"}}, "redirect")
	f(Circumstances{Names: mail, Redirected: true, Exchange: []string{"2016"}})
	c := CircumstancesOf(issue(t, "mail.contoso.com", nil, dns(mail...)).Certificate)
	if !c.ECDSA || !c.SelfSigned || !slices.Equal(c.Names, mail) {
		t.Errorf("%+v", c)
	}
}

// Namespaces of the scenarios.
func bridged(host, site string, aliases ...string) Namespace {
	return Namespace{Host: host, Aliases: aliases, Mode: "site", Site: site, Certificate: "files", Services: []string{"owa", "ews", "rpc", "activesync"}}
}

func answering(host string) Namespace {
	return Namespace{Host: host, Mode: "answer", Certificate: "files", Services: []string{"autodiscover"}}
}

func redirecting(host, to string) Namespace {
	return Namespace{Host: host, Mode: "redirect", Redirect: to}
}

// planned is a plan in few words: model, then what is recommended, the names of each certificate, and the records.
func planned(p Plan) string {
	var models, certificates, records []string
	for _, m := range p.Models {
		models = append(models, m.ID)
	}
	for _, c := range p.Recommended.Certificates {
		certificates = append(certificates, strings.Join(c, " "))
	}
	for _, r := range p.Records {
		records = append(records, fmt.Sprintf("%s %s %s", r.Name, r.Type, strings.NewReplacer("the public address of the front door", "front", "the servers", "servers").Replace(r.Value)))
	}
	return strings.Join(models, " ") + "\n" + p.Recommended.Kind + ": " + strings.Join(certificates, " | ") + "\n" + strings.Join(records, "\n")
}

// What is recommended for the namespace models and certificate options of the documents.
func TestPlan(t *testing.T) {
	t.Parallel()
	hq := ServerSite{Name: "hq", Servers: []string{"cas01.contoso.local"}, Exchange: "2016"}
	site := func(name, external string, more ...string) ServerSite {
		return ServerSite{Name: name, Servers: append([]string{"cas." + name + ".contoso.local"}, more...), ExternalHost: external}
	}
	contoso := MailDomain{Name: "contoso.com", ExternalHost: "mail.contoso.com"}
	mail, auto := bridged("mail.contoso.com", "hq"), answering("autodiscover.contoso.com")
	f := func(scenario string, d Deployment, want string) {
		t.Helper()
		if got := planned(d.Plan()); got != strings.TrimSpace(want) {
			t.Errorf("%s:\n%s\nwant\n%s", scenario, got, strings.TrimSpace(want))
		}
	}
	const a1 = `
mail.contoso.com A/AAAA front
autodiscover.contoso.com CNAME mail.contoso.com`
	f("A1, B2", Deployment{Namespaces: []Namespace{auto, mail}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq}},
		"consolidated\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1)
	f("A2", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq, site("branch", "")}},
		"proxy-sites\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1)
	f("A3", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq, site("branch", "mail.contoso.com")}},
		"several-facing\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1)
	f("A4", Deployment{
		Namespaces: []Namespace{bridged("mail.usa.contoso.com", "usa"), bridged("mail.canada.contoso.com", "canada"), bridged("mail.europe.contoso.com", "europe"), auto},
		Domains:    []MailDomain{{Name: "contoso.com", ExternalHost: "mail.usa.contoso.com"}}, Sites: []ServerSite{site("usa", ""), site("canada", ""), site("europe", ""), site("asia", "")},
	}, `regional
one for each region: mail.canada.contoso.com autodiscover.contoso.com | mail.europe.contoso.com | mail.usa.contoso.com
mail.canada.contoso.com A/AAAA front
mail.europe.contoso.com A/AAAA front
mail.usa.contoso.com A/AAAA front
autodiscover.contoso.com CNAME mail.usa.contoso.com`)
	f("A4, other regions have front doors of their own", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq, site("branch", "mail.branch.contoso.com")}},
		"regional\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1)
	f("A5", Deployment{
		Namespaces: []Namespace{bridged("mail.usa.contoso.com", "usa"), bridged("mail.europe.contoso.com", "europe"), bridged("mail.asia.contosoonline.com", "asia"), auto, answering("autodiscover.contosoonline.com")},
		Domains:    []MailDomain{{Name: "contoso.com"}, {Name: "contosoonline.com"}}, Sites: []ServerSite{site("usa", ""), site("europe", ""), site("asia", "")},
	}, `forests
one for each region: mail.asia.contosoonline.com autodiscover.contosoonline.com | mail.europe.contoso.com autodiscover.contoso.com | mail.usa.contoso.com
mail.asia.contosoonline.com A/AAAA front
mail.europe.contoso.com A/AAAA front
mail.usa.contoso.com A/AAAA front
autodiscover.contoso.com CNAME mail.europe.contoso.com
autodiscover.contosoonline.com CNAME mail.asia.contosoonline.com`)
	f("A6", Deployment{Namespaces: []Namespace{mail, auto, bridged("legacy.contoso.com", "old")}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq, site("old", "")}}, `consolidated coexistence
several names (SAN): mail.contoso.com legacy.contoso.com autodiscover.contoso.com
mail.contoso.com A/AAAA front
legacy.contoso.com A/AAAA front
autodiscover.contoso.com CNAME mail.contoso.com`)
	f("A7", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{{Name: "contoso.com", ExternalHost: "mail.contoso.com", InternalHost: "internal.contoso.com"}}, Sites: []ServerSite{hq}}, `consolidated split-dns
several names (SAN): mail.contoso.com autodiscover.contoso.com
mail.contoso.com A/AAAA front
internal.contoso.com A/AAAA, inside servers
autodiscover.contoso.com CNAME mail.contoso.com`)
	f("A7, the same name inside", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{{Name: "contoso.com", ExternalHost: "mail.contoso.com", InternalHost: "mail.contoso.com"}}, Sites: []ServerSite{hq}},
		"consolidated split-dns\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1+"\nmail.contoso.com A/AAAA, inside servers, or the inside address of the front door")
	f("A8", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{contoso}, Sites: []ServerSite{site("hq", "", "cas02.contoso.local")}},
		"consolidated array\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1)
	protected := ServerSite{Name: "hq", Servers: []string{"server01.proexchange.global"}, Protection: true}
	a9 := Deployment{
		Namespaces: []Namespace{bridged("webmail.proexchange.global", "hq", "autodiscover.proexchange.global", "autodiscover.belgianbeers.rock")},
		Domains:    []MailDomain{{Name: "proexchange.global", InternalHost: "server01.proexchange.global"}, {Name: "belgianbeers.rock"}}, Sites: []ServerSite{protected},
	}
	f("A9", a9, `consolidated split-dns mail-domains
several names (SAN): webmail.proexchange.global autodiscover.proexchange.global autodiscover.belgianbeers.rock server01.proexchange.global
webmail.proexchange.global A/AAAA front
server01.proexchange.global A/AAAA, inside servers
autodiscover.proexchange.global CNAME webmail.proexchange.global
autodiscover.belgianbeers.rock CNAME webmail.proexchange.global`)
	if why := a9.Plan().Recommended.Why; !strings.Contains(why, "the same certificate, exported with its key, is on the servers too") {
		t.Error(why)
	}
	f("B3", Deployment{Namespaces: []Namespace{mail}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq}}, `consolidated
single name and SRV records: mail.contoso.com
mail.contoso.com A/AAAA front
_autodiscover._tcp.contoso.com SRV 0 0 443 mail.contoso.com`)
	f("B5", Deployment{Namespaces: []Namespace{mail, redirecting("autodiscover.contoso.com", "mail.contoso.com")}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq}},
		"consolidated\nsingle name and redirect site: mail.contoso.com"+a1)
	f("B8", Deployment{Namespaces: []Namespace{mail, auto}, Domains: []MailDomain{contoso}, Sites: []ServerSite{hq}, Redirected: "autodiscover.contoso.com"},
		"consolidated hosted\nseveral names (SAN): mail.contoso.com autodiscover.contoso.com"+a1+"\nautodiscover.DOMAIN of each hosted domain CNAME mail.contoso.com")
	f("B9", Deployment{Namespaces: []Namespace{{Host: "eas.contoso.com", Mode: "passthrough", Site: "hq"}}, Sites: []ServerSite{hq}}, "consolidated\nnone: \neas.contoso.com A/AAAA front")
	self := mail
	self.Certificate = "self_signed"
	b1 := Deployment{Namespaces: []Namespace{self}, Sites: []ServerSite{hq}}
	f("B1", b1, "consolidated\nsingle name: mail.contoso.com\nmail.contoso.com A/AAAA front")
	if p := b1.Plan(); len(p.Recommended.Limits) > 0 || !slices.ContainsFunc(p.Others, func(o Option) bool {
		return o.Kind == KindSelfSigned && len(o.Limits) == 1 && o.Limits[0].ID == "self-signed"
	}) {
		t.Errorf("B1: %+v", p)
	}
	f("one name", Deployment{Namespaces: []Namespace{mail}, Sites: []ServerSite{hq}}, "consolidated\nsingle name: mail.contoso.com\nmail.contoso.com A/AAAA front")
	acme := mail
	acme.Certificate = "acme"
	f("ACME", Deployment{Namespaces: []Namespace{acme, redirecting("autodiscover.contoso.com", "mail.contoso.com")}, Sites: []ServerSite{hq}}, "consolidated\nACME: mail.contoso.com"+a1)
	f("IDN, letter case and dots", Deployment{Namespaces: []Namespace{bridged("Post.Bücher.example.", "hq")}, Domains: []MailDomain{{Name: "bücher.example", ExternalHost: "post.xn--bcher-kva.example"}}, Sites: []ServerSite{hq}}, `consolidated
single name and SRV records: post.xn--bcher-kva.example
post.xn--bcher-kva.example A/AAAA front
_autodiscover._tcp.xn--bcher-kva.example SRV 0 0 443 post.xn--bcher-kva.example`)
}

// The other ways, B3 to B7, with what they cost and whom they do not suit.
func TestPlanOthers(t *testing.T) {
	t.Parallel()
	mail := bridged("mail.contoso.com", "hq")
	mail.Services = append(mail.Services, "imaps")
	p := Deployment{
		Namespaces: []Namespace{mail, answering("autodiscover.contoso.com"), bridged("pop.contoso.com", "hq")},
		Domains:    []MailDomain{{Name: "contoso.com", InternalHost: "server01.contoso.local"}}, Sites: []ServerSite{{Name: "hq", Exchange: "2010"}},
	}.Plan()
	var got []string
	for _, o := range p.Others {
		line := o.Kind
		for _, c := range o.Certificates {
			line += " | " + strings.Join(c, " ")
		}
		for _, l := range o.Limits {
			line += " !" + l.ID
		}
		if o.Why == "" {
			t.Errorf("%s costs nothing?", o.Kind)
		}
		got = append(got, line)
	}
	want := []string{
		"on the servers | server01.contoso.local",
		"wildcard | *.contoso.com !wildcard !wildcard-principal !mail-san",
		"several with a single name | mail.contoso.com | pop.contoso.com | autodiscover.contoso.com",
		"fewer names and redirect site | mail.contoso.com pop.contoso.com",
		"fewer names and SRV records | mail.contoso.com pop.contoso.com",
		"ACME",
		"own CA !own-root",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if hint := p.Hints[len(p.Hints)-1]; !strings.HasPrefix(hint, "server01.contoso.local is no name of the public DNS") {
		t.Error(hint)
	}
	for names, want := range map[string]string{
		"a.contoso.com b.contoso.com contoso.com":       "*.contoso.com contoso.com",
		"a.contoso.com a.b.contoso.com c.b.contoso.com": "a.contoso.com *.b.contoso.com",
		"contoso.com fabrikam.com":                      "contoso.com fabrikam.com",
		"contoso.co.uk fabrikam.co.uk":                  "contoso.co.uk fabrikam.co.uk",
		"a.local b.local":                               "a.local b.local",
	} {
		if got := strings.Join(wildcards(strings.Fields(names)), " "); got != want {
			t.Errorf("%s: %s, want %s", names, got, want)
		}
	}
}

// Where a certificate is needed, and for what.
func TestNeeds(t *testing.T) {
	t.Parallel()
	mail := bridged("mail.contoso.com", "hq", "legacy.contoso.com")
	mail.Passed = []string{"imaps"}
	redirect := redirecting("autodiscover.fabrikam.com", "mail.contoso.com")
	shown := redirecting("autodiscover.contoso.com", "mail.contoso.com")
	shown.Certificate = "files"
	d := Deployment{
		Namespaces: []Namespace{mail, redirect, shown, {Host: "eas.contoso.com", Mode: "passthrough"}, answering("contoso.com")},
		Domains: []MailDomain{
			{Name: "contoso.com", ExternalHost: "mail.contoso.com", InternalHost: "mail.contoso.local"},
			{Name: "fabrikam.com"},
			{Name: "moved.example", RedirectHost: "autodiscover.elsewhere.example"},
		},
		Sites: []ServerSite{{Name: "branch", ExternalHost: "mail.branch.contoso.com"}},
	}
	got := map[string]Need{}
	for _, n := range d.Needs() {
		if _, twice := got[n.Name]; twice {
			t.Errorf("%s is there twice", n.Name)
		}
		got[n.Name] = n
	}
	for name, want := range map[string]struct {
		place  Place
		reason string
	}{
		"mail.contoso.com":               {Here, "imaps are passed through, so that the mail servers need a certificate for it as well"},
		"legacy.contoso.com":             {Here, "during coexistence"},
		"contoso.com":                    {Here, "clients try the mail domain itself first"},
		"autodiscover.contoso.com":       {Here, "redirects to mail.contoso.com, on 443 too"},
		"autodiscover.fabrikam.com":      {Nowhere, "the redirect site"},
		"autodiscover.moved.example":     {Nowhere, "the SRV record alone"},
		"autodiscover.elsewhere.example": {Elsewhere, "leads the users of moved.example there"},
		"eas.contoso.com":                {OnServers, "passed through"},
		"mail.contoso.local":             {OnServers, "clients inside use it"},
		"mail.branch.contoso.com":        {Elsewhere, "users of site branch are redirected there"},
	} {
		n := got[name]
		if n.Place != want.place || !strings.Contains(strings.Join(n.Reasons, "; "), want.reason) {
			t.Errorf("%s: %+v, want %+v", name, n, want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("more: %v", got)
	}
}
