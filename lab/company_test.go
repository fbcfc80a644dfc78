package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rs/zerolog"
)

// startCompany brings up the default scenario, changed as the test wants.
func startCompany(t *testing.T, change ...func(*Scenario)) *Company {
	t.Helper()
	s, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(s)
	}
	c, err := Start(t.Context(), s, Options{Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestScenariosLoad(t *testing.T) {
	if len(List()) == 0 || !slices.Contains(List(), DefaultScenario) {
		t.Fatalf("List() = %q, without the default", List())
	}
	for _, name := range List() {
		s, err := Load(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.Name != name || len(s.Expect) == 0 {
			t.Errorf("scenario %s: name %q, %d expectations", name, s.Name, len(s.Expect))
		}
	}
	if _, err := Load("nobody"); err == nil || !strings.Contains(err.Error(), "contoso") {
		t.Errorf("unknown scenario: %v, want the names that exist", err)
	}
}

// Each line of the default scenario that is changed must be missed.
func TestScenarioIsStrict(t *testing.T) {
	text, err := os.ReadFile("../testdata/scenario/contoso.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f := func(old, replacement, want string) {
		t.Helper()
		if !strings.Contains(string(text), old) {
			t.Fatalf("the scenario holds no %q any more", old)
		}
		_, err := Parse([]byte(strings.Replace(string(text), old, replacement, 1)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q for %q: %v, want an error with %q", replacement, old, err, want)
		}
	}
	f("servers:", "server:", `unknown field "server"`)
	f("front_door: true", "front_dor: true", "front_dor")
	f("fqdn: cas01.contoso.local", "fqdn: cas01.contoso.local, extended_protection: some", "none of off, allow, require")
	f("fqdn: cas01.contoso.local", "fqdn: cas01.contoso.local, certificate: mial", `no certificate "mial"`)
	f("prompts: 1", "prompts: one", "cannot unmarshal")
	f("outcome: prompt", "outcome: maybe", "none of silent, prompt, fails")
	f("outcome: silent", "outcome: prompt", "outcome prompt with 0 prompts")
	f("fqdn: cas01.contoso.local", "fqdn: cas09.contoso.local", "does not begin with cas01.")
	f("name: cas02, fqdn: cas02.", "name: cas01, fqdn: cas01.", "two servers are called cas01")
	f("lee@contoso.com, login", "pat@contoso.com, login", "two mailboxes have the address")
	f("password: Lab-Pat-1, ", "", "has no password")
	f("front_door: true, ", "", "exactly one of login")
	f(`'CONTOSO\pat'`, `'OTHER\pat'`, `is not CONTOSO\name`)
	f("external_url: https://mail", "external_url: http://mail", "is not an https URL")
	f("mail: [mail.contoso.com]", "mail: []", "has no names")
	f("mail: [mail.contoso.com]", "../mail: [mail.contoso.com]", "becomes a file name")
	f(`cert: {{cert "mail"}}`, `cert: {{cert "male"}}`, `no certificate "male"`)
	f(`- {{url "cas01"}}`, `- {{url "cas09"}}`, `no server "cas09"`)
	f(`A     {{server "cas01"}}`, `A     {{server "cas01"`, "zones.contoso.local")
	f("A     {{front_door}}", "A     {{back_door}}", "back_door")
	f("@             A     {{front_door}}", "@             A     nonsense", "contoso.com")
	f("autoconfig    CNAME mail", "mail          CNAME eas", "CNAME and something else")
	f("server: cas01}", "server: cas09}", `no server "cas09"`)

	broken := strings.Replace(string(text), "outcome: prompt", "outcome: maybe", 1)
	broken = strings.Replace(broken, "password: Lab-Pat-1, ", "", 1)
	_, err = Parse([]byte(broken))
	if err == nil || !strings.Contains(err.Error(), "maybe") || !strings.Contains(err.Error(), "has no password") {
		t.Errorf("two faults: %v, want both", err)
	}
}

func TestConfigIsFilled(t *testing.T) {
	c := startCompany(t)
	for _, want := range []string{
		"- " + c.Servers()[0].URL, "- " + c.Servers()[1].URL,
		`passthrough: ["` + c.Servers()[0].Address + `"]`,
		"/mail.pem", "/mail.key", "/fabrikam.pem", "/mailboxes.yaml",
		"allow_internal_untrusted_certs: true", "redirect: mail.contoso.com", "default: true", "answer: true",
		`redirect_addr: "@fabrikam.com"`,
	} {
		if !strings.Contains(c.Config(), want) {
			t.Errorf("the config does not hold %q:\n%s", want, c.Config())
		}
	}
	if strings.Contains(c.Config(), "{{") {
		t.Error("a placeholder is left in the config")
	}
	b, err := os.ReadFile(filepath.Join(c.Dir(), "mailboxes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); !strings.Contains(text, "kim@fabrikam.com") || strings.Contains(text, "pat@contoso.com") {
		t.Errorf("mailboxes.yaml holds the wrong people:\n%s", text)
	}
}

func TestAccount(t *testing.T) {
	c := startCompany(t)
	f := func(address, want string) {
		t.Helper()
		if m, _ := c.Account(address); m.Address != want {
			t.Errorf("Account(%s) = %q, want %q", address, m.Address, want)
		}
	}
	f("Pat@Contoso.com", "pat@contoso.com")
	f("kim@hosted.example", "kim@fabrikam.com") // redirect_addr keeps the local part
	f("nobody@contoso.com", "")
}

func TestCertificates(t *testing.T) {
	c := startCompany(t)
	pem, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) || !roots.Equal(c.RootCAs()) {
		t.Error("the file for curl and RootCAs are not the same root")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.Dir(), "mail.pem"), filepath.Join(c.Dir(), "mail.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "mail.contoso.com"}); err != nil {
		t.Error(err)
	}
	if k, ok := pair.Leaf.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("the leaf's key is %T, want ECDSA P-256", pair.Leaf.PublicKey)
	}
	if runtime.GOOS != "windows" {
		for _, f := range []string{"mail.key", "fabrikam.key", "mailboxes.yaml"} {
			if fi, err := os.Stat(filepath.Join(c.Dir(), f)); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v, want mode 0600", f, fi.Mode(), err)
			}
		}
	}

	// The certificate of Exchange set-up: CN = short name, SAN = short name and FQDN, signed by itself.
	for _, s := range c.Servers() {
		conn, err := tls.Dial("tcp", s.Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		state := conn.ConnectionState()
		_ = conn.Close()
		leaf := state.PeerCertificates[0]
		if leaf.Subject.CommonName != s.Name || !slices.Equal(leaf.DNSNames, []string{s.Name, s.FQDN}) {
			t.Errorf("%s: CN %q, SAN %q", s.Name, leaf.Subject.CommonName, leaf.DNSNames)
		}
		if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
			t.Errorf("%s: not self-signed: %v", s.Name, err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
			t.Errorf("%s: the company's CA vouches for it", s.Name)
		}
		if fingerprint(leaf.Raw) != s.Fingerprint {
			t.Errorf("%s: Fingerprint is another certificate's", s.Name)
		}
		if state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("%s: ALPN %q, want http/1.1 even beside h2", s.Name, state.NegotiatedProtocol)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	s, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Start(ctx, s, Options{Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", c.Dir(), err)
	}
	for _, addr := range []string{c.Servers()[0].Address, c.DNSAddr()} {
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("somebody still listens on %s", addr)
		}
	}
}

func TestDNSThroughStdlib(t *testing.T) {
	c := startCompany(t)
	r, ctx := c.Resolver(), t.Context()
	f := func(host string) {
		t.Helper()
		got, err := r.LookupHost(ctx, host)
		if err != nil || !slices.Equal(got, []string{"127.0.0.1"}) {
			t.Errorf("%s = %v, %v, want 127.0.0.1", host, got, err)
		}
	}
	f("mail.contoso.com.")
	f("cas02.contoso.local.")
	f("MAIL.Contoso.COM.")
	f("autodiscover.hosted.example.") // CNAME into another zone
	if _, err := r.LookupHost(ctx, "nobody.contoso.com."); !isNotFound(err) {
		t.Errorf("nobody.contoso.com: %v, want not found", err)
	}
	if _, err := r.LookupHost(ctx, "fabrikam.com."); !isNotFound(err) {
		t.Errorf("fabrikam.com has only an MX: %v, want not found", err)
	}
	_, srv, err := r.LookupSRV(ctx, "autodiscover", "tcp", "tailspin.example.")
	if err != nil || len(srv) != 1 || srv[0].Target != "autodiscover.fabrikam.com." || srv[0].Port != 443 {
		t.Errorf("SRV of tailspin.example = %v, %v", srv, err)
	}
	mx, err := r.LookupMX(ctx, "contoso.com.")
	if err != nil || len(mx) != 1 || mx[0].Host != "mail.contoso.com." {
		t.Errorf("MX of contoso.com = %v, %v", mx, err)
	}
	txt, err := r.LookupTXT(ctx, "contoso.com.")
	if err != nil || !slices.Equal(txt, []string{"v=spf1 mx -all"}) {
		t.Errorf("TXT of contoso.com = %v, %v", txt, err)
	}
	if !slices.Contains(c.Queries(), Query{"_autodiscover._tcp.tailspin.example.", "SRV", "NOERROR"}) {
		t.Errorf("the log of queries misses the SRV question: %v", c.Queries())
	}
}

func isNotFound(err error) bool {
	e, ok := err.(*net.DNSError)
	return ok && e.IsNotFound
}

// RFC 2308 for the negative answers, RFC 8020 for names that only exist because of what is below them.
func TestDNSAnswers(t *testing.T) {
	c := startCompany(t)
	f := func(name string, qtype uint16, rcode int, answer string, soa bool) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			q := new(dns.Msg)
			q.SetQuestion(name, qtype)
			m, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(q, c.DNSAddr())
			if err != nil {
				t.Errorf("%s over %s: %v", name, network, err)
				continue
			}
			var got []string
			for _, rr := range m.Answer {
				got = append(got, strings.Join(strings.Fields(rr.String())[3:], " "))
			}
			if m.Rcode != rcode || strings.Join(got, "; ") != answer {
				t.Errorf("%s %s over %s: %s %q, want %s %q", name, dns.TypeToString[qtype], network,
					dns.RcodeToString[m.Rcode], got, dns.RcodeToString[rcode], answer)
			}
			if has := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA; has != soa {
				t.Errorf("%s over %s: SOA in authority: %v, want %v", name, network, has, soa)
			}
			if m.Authoritative != (rcode != dns.RcodeRefused) {
				t.Errorf("%s over %s: authoritative = %v", name, network, m.Authoritative)
			}
		}
	}
	f("mail.contoso.com.", dns.TypeA, dns.RcodeSuccess, "A 127.0.0.1", false)
	f("mail.contoso.com.", dns.TypeAAAA, dns.RcodeSuccess, "", true)
	f("autoconfig.contoso.com.", dns.TypeA, dns.RcodeSuccess, "CNAME mail.contoso.com.; A 127.0.0.1", false)
	f("autoconfig.contoso.com.", dns.TypeAAAA, dns.RcodeSuccess, "CNAME mail.contoso.com.", true)
	f("nobody.contoso.com.", dns.TypeA, dns.RcodeNameError, "", true)
	f("_tcp.tailspin.example.", dns.TypeA, dns.RcodeSuccess, "", true) // empty non-terminal
	f("_autodiscover._tcp.contoso.com.", dns.TypeSRV, dns.RcodeNameError, "", true)
	f("outlook.com.", dns.TypeA, dns.RcodeRefused, "", false)
	f("com.", dns.TypeA, dns.RcodeRefused, "", false)

	q := new(dns.Msg)
	q.SetQuestion("mail.contoso.com.", dns.TypeA)
	q.Question[0].Qclass = dns.ClassCHAOS
	if m, err := dns.Exchange(q, c.DNSAddr()); err != nil || m.Rcode != dns.RcodeRefused {
		t.Errorf("class CH: %v, %v, want REFUSED", m, err)
	}
}

func TestRecorder(t *testing.T) {
	f := func(name string, violations int, requests ...Request) {
		t.Helper()
		r := new(Recorder)
		c := r.open("cas01.contoso.local")
		for _, q := range requests {
			r.add(c, q)
		}
		if got := r.Violations(); len(got) != violations {
			t.Errorf("%s: %q, want %d violations", name, got, violations)
		}
	}
	pat, lee := `CONTOSO\pat`, `CONTOSO\lee`
	f("one user", 0, Request{}, Request{User: pat}, Request{User: pat})
	f("two users", 1, Request{User: pat}, Request{User: lee}, Request{User: pat})
	f("two clients, nobody logged in", 1, Request{Client: "a"}, Request{Client: "b"})
	f("a client rides on another's login", 1, Request{Client: "a", User: pat}, Request{Client: "b", User: pat})
	f("one client logs in twice", 0, Request{Client: "a", User: pat}, Request{Client: "a", User: lee})

	r := new(Recorder)
	one, two := r.open("cas01.contoso.local"), r.open("cas02.contoso.local")
	r.add(one, Request{Method: "GET", Target: "/owa/", User: pat, Status: 200})
	r.closed(one)
	r.add(two, Request{Method: "POST", Target: "/EWS/Exchange.asmx", Client: "b", Status: 401})
	want := []Connection{
		{
			Server: "cas01.contoso.local", Number: 1, Count: 1, Users: []string{pat},
			Requests: []Request{{Method: "GET", Target: "/owa/", User: pat, Status: 200}},
		},
		{
			Server: "cas02.contoso.local", Number: 2, Open: true, Count: 1, Clients: []string{"b"},
			Requests: []Request{{Method: "POST", Target: "/EWS/Exchange.asmx", Client: "b", Status: 401}},
		},
	}
	if diff := cmp.Diff(want, r.Connections()); diff != "" {
		t.Error(diff)
	}
	for range keepConnections + 10 {
		r.closed(r.open("cas01.contoso.local"))
	}
	if n := len(r.Connections()); n > keepConnections {
		t.Errorf("%d connections are kept, more than %d", n, keepConnections)
	}
}
