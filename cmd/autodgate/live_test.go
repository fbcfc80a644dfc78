package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

// liveWorld is what check --live finds instead of a network: servers by the address
// that is dialed, and names that DNS knows.
type liveWorld struct {
	t       *testing.T
	dir     string
	servers map[string]string // dialed address → listener's
	dns     map[string][]string
	srv     map[string]string
	roots   *x509.CertPool

	dialing, most atomic.Int32
}

func newLiveWorld(t *testing.T) *liveWorld {
	return &liveWorld{t: t, dir: t.TempDir(), servers: map[string]string{}, dns: map[string][]string{}, roots: x509.NewCertPool()}
}

// certificate makes a self-signed certificate and keeps it as NAME.pem and NAME.key.
func (w *liveWorld) certificate(name string, change func(*x509.Certificate), names ...string) tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	if name == "mail" {
		w.roots.AddCert(leaf)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.file(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	w.file(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (w *liveWorld) file(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// serve puts a server at an address that is dialed.
func (w *liveWorld) serve(address string, cert tls.Certificate, handler http.HandlerFunc) {
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	w.servers[address] = s.Listener.Addr().String()
}

// exchange answers as a server of the given version does, but for the directories
// that are down.
func exchange(version string, down ...string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		switch path := strings.ToLower(r.URL.Path); {
		case r.Header.Get("Authorization") != "" || r.Method != "GET":
			rw.WriteHeader(http.StatusTeapot)
		case strings.HasSuffix(path, "/healthcheck.htm"):
			for _, d := range down {
				if strings.HasPrefix(path, "/"+d+"/") {
					rw.WriteHeader(http.StatusServiceUnavailable)
					return
				}
			}
			fmt.Fprint(rw, "200 OK<br/>CAS01.contoso.local")
		case path == "/owa/auth/logon.aspx":
			fmt.Fprintf(rw, `<link href="/owa/auth/%s/themes/resources/favicon.ico">`, version)
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	}
}

// check runs check --live over a configuration and compares what it finds.
func (w *liveWorld) check(text string, problems, warnings int, lines ...string) string {
	w.t.Helper()
	w.file("front.yaml", text)
	cfg, report, err := config.Load(filepath.Join(w.dir, "front.yaml"))
	if err != nil || !report.OK() {
		w.t.Fatalf("%v\n%s", err, report)
	}
	var out bytes.Buffer
	p, n := checkLive(w.t.Context(), &out, cfg, liveOptions{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			now := w.dialing.Add(1)
			defer w.dialing.Add(-1)
			for most := w.most.Load(); now > most && !w.most.CompareAndSwap(most, now); most = w.most.Load() {
			}
			real, ok := w.servers[address]
			if !ok {
				return nil, fmt.Errorf("nobody is at %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, real)
		},
		Lookup: func(_ context.Context, host string) ([]string, error) {
			if a, ok := w.dns[host]; ok {
				return a, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
		LookupSRV: func(_ context.Context, name string) (string, error) {
			if target, ok := w.srv[name]; ok {
				return target, nil
			}
			return "", &net.DNSError{Err: "no such record", Name: name, IsNotFound: true}
		},
		Roots: w.roots, Timeout: time.Minute,
	})
	if p != problems || n != warnings {
		w.t.Errorf("%d errors and %d warnings, want %d and %d", p, n, problems, warnings)
	}
	for _, want := range lines {
		found := false
		for line := range strings.Lines(out.String()) {
			all := true
			for _, part := range strings.Split(want, " … ") {
				i := strings.Index(line, part)
				if all = i >= 0; !all {
					break
				}
				line = line[i+len(part):]
			}
			if found = all; found {
				break
			}
		}
		if !found {
			w.t.Errorf("no line like %q", want)
		}
	}
	if w.t.Failed() {
		w.t.Log("\n" + out.String())
	}
	return out.String()
}

const liveConfig = `
hosts:
  mail.contoso.com:
    certificate: {cert: mail.pem, key: mail.key}
    site: hq
  autodiscover.fabrikam.com: {redirect: mail.fabrikam.com}
  autodiscover.contoso.com: {redirect: mail.contoso.com}
sites:
  hq:
    servers: [https://cas01.contoso.local]
`

func liveFine(t *testing.T) *liveWorld {
	w := newLiveWorld(t)
	cert := w.certificate("mail", nil, "mail.contoso.com", "cas01.contoso.local")
	w.serve("cas01.contoso.local:443", cert, exchange("15.2.1544"))
	outside := w.certificate("outside", nil, "mail.fabrikam.com")
	w.serve("mail.fabrikam.com:443", outside, exchange("15.1.2507"))
	w.roots.AddCert(outside.Leaf)
	for _, name := range []string{"mail.contoso.com", "autodiscover.contoso.com", "autodiscover.fabrikam.com"} {
		w.dns[name] = []string{"192.0.2.1"}
	}
	return w
}

func TestLiveFine(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	out := w.check(liveConfig+`
    exchange: 2019
    trust: {ca: mail.pem}
`, 0, 0,
		"fine: host mail.contoso.com: certificate … serial … until",
		"fine: host mail.contoso.com: DNS leads to 192.0.2.1",
		"fine: site hq: server cas01.contoso.local:443: TLS 1.3, certificate verified … key sha256/",
		"fine: site hq: server cas01.contoso.local:443: Extended Protection: the same certificate as host mail.contoso.com (channel binding sha256:",
		"fine: site hq: server cas01.contoso.local:443: Exchange 2019 (15.2.1544)",
		"healthy: /owa, /ecp, /ews, /mapi, /rpc, /oab, /autodiscover, /microsoft-server-activesync",
		"fine: host autodiscover.fabrikam.com: redirect mail.fabrikam.com:443: certificate trusted",
	)
	if strings.Contains(out, "redirect mail.contoso.com") {
		t.Error("a name of our own was looked for outside")
	}
}

// Trust towards servers, with the way out.
func TestLiveServers(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	w.check(liveConfig, 1, 0, "error: site hq: server cas01.contoso.local:443: TLS with backend … trust: {pin: [sha256/")
	w.check(liveConfig+"    allow_internal_untrusted_certs: true\n", 0, 1, "NOT AUTHENTICATED (allow_internal_untrusted_certs)", "warning: … set extended_protection: auto, or off")
	w.check(liveConfig+"    trust: {ca: mail.pem}\n    server_name: cas02.contoso.local\n", 1, 0, "error: site hq: … not cas02.contoso.local")
	w.check(strings.ReplaceAll(liveConfig, "cas01", "cas09"), 1, 0, "error: site hq: server cas09.contoso.local:443: dial backend … nobody is at")
	w.check(liveConfig+"    trust: {ca: mail.pem}\n    exchange: 2016\n", 0, 2, "warning: … Exchange 2019 (15.2.1544), and the site has exchange: 2016; set exchange: 2019")
	w.serve("cas01.contoso.local:443", w.certificate("mail", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -80), time.Now().Add(48*time.Hour)
	}, "mail.contoso.com", "cas01.contoso.local"), exchange("15.1.2507", "ews", "oab"))
	w.check(liveConfig+"    trust: {ca: mail.pem}\n    exchange: 2016\n", 0, 4,
		"warning: host mail.contoso.com: the certificate expires on", "warning: site hq: … the certificate expires on",
		"/ews/healthcheck.htm says 503", "/oab/healthcheck.htm says 503", "fine: … healthy: /owa, /ecp, /mapi, /rpc, /autodiscover, /microsoft-server-activesync")
	out := w.check(liveConfig+"    trust: {ca: mail.pem}\n    exchange: 2016\n    health: off\n", 0, 2)
	if strings.Contains(out, "healthcheck.htm") {
		t.Error("health pages were asked for")
	}
	// What the running front door takes for no health page is none here.
	w.serve("cas01.contoso.local:443", w.certificate("mail", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -80), time.Now().Add(48*time.Hour)
	}, "mail.contoso.com", "cas01.contoso.local"), func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/ews/") {
			fmt.Fprint(rw, "200 ok")
			return
		}
		exchange("15.1.2507")(rw, r)
	})
	w.check(liveConfig+"    trust: {ca: mail.pem}\n    exchange: 2016\n", 0, 3, "warning: site hq: … /ews/healthcheck.htm does not say 200 OK")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	w.servers["cas01.contoso.local:443"] = silent.Addr().String()
	start := time.Now()
	w.check("limits: {connect_timeout: 200ms}\n"+liveConfig, 1, 1, "error: site hq: … deadline exceeded")
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("a silent server took %v", d)
	}
}

// what Extended Protection will find.
func TestLiveExtendedProtection(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	cas := w.certificate("cas", nil, "cas01.contoso.local")
	w.serve("cas01.contoso.local:443", cas, exchange("15.2.2562"))
	trust := "    trust: {ca: cas.pem}\n"
	serial, binding := proxy.DescribeCertificate(cas.Leaf).Serial, proxy.ChannelBinding(cas.Leaf)
	w.check(liveConfig+trust+"    extended_protection: required\n", 1, 0, "error: … Extended Protection: another certificate than host mail.contoso.com … the server is not used … serial "+serial+" … "+binding+" … export the one of Exchange")
	w.check(liveConfig+trust+"    extended_protection: auto\n", 0, 1, "warning: … Extended Protection: another certificate than host mail.contoso.com … 0xC000035B")
	w.check(liveConfig+trust+"    exchange: SE\n", 0, 1, "fine: … Exchange SE (15.2.2562)", "warning: … Extended Protection: another certificate")
	if out := w.check(liveConfig+trust+"    exchange: SE\n    extended_protection: off\n", 0, 0); strings.Contains(out, "Extended Protection") {
		t.Error(out)
	}
	w.check(strings.Replace(liveConfig, "{cert: mail.pem, key: mail.key}", "self_signed", 1)+trust+"    extended_protection: auto\n", 0, 1, "warning: … not compared with host mail.contoso.com")
}

// A host's own certificate and its name in DNS.
func TestLiveHosts(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	trust := "    trust: {ca: cas.pem}\n    exchange: 2016\n"
	w.serve("cas01.contoso.local:443", w.certificate("cas", nil, "cas01.contoso.local"), exchange("15.1.2507"))
	w.certificate("mail", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "mail.contoso.com")
	w.check(liveConfig+trust, 1, 0, "error: host mail.contoso.com: the certificate is valid from … renew it")
	w.certificate("mail", nil, "owa.contoso.com")
	w.check(liveConfig+trust, 1, 0, "error: host mail.contoso.com: the certificate is not for mail.contoso.com")
	w.certificate("mail", nil, "mail.contoso.com")
	delete(w.dns, "mail.contoso.com")
	w.check(liveConfig+trust, 0, 1, "warning: host mail.contoso.com: DNS knows no address … A or AAAA record")
}

// What clients may dislike about a host's certificate, and whether it is revoked: certificates, list and responder are
// OpenSSL's.
func TestLiveCertificate(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	ca := peer.NewCA(t)
	var err error
	if w.roots, err = tlsconf.LoadRoots(ca.Root); err != nil {
		t.Fatal(err)
	}
	use := func(name string, l peer.Leaf) {
		t.Helper()
		l.Names = []string{"mail.contoso.com", "cas01.contoso.local"}
		chain, err := os.ReadFile(ca.Issue(name, l))
		if err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile(ca.File(name + ".key"))
		if err != nil {
			t.Fatal(err)
		}
		w.file("mail.pem", string(chain))
		w.file("mail.key", string(key))
	}
	text := "limits: {connect_timeout: 20s}\n" + strings.Replace(liveConfig, "  autodiscover.fabrikam.com: {redirect: mail.fabrikam.com}\n", "", 1) + "    trust: {ca: cas.pem}\n    exchange: 2016\n"
	w.serve("cas01.contoso.local:443", w.certificate("cas", nil, "cas01.contoso.local"), exchange("15.1.2507"))
	use("revoked", peer.Leaf{})
	ca.Revoke("revoked", "superseded")
	ca.Publish()
	w.check(text, 1, 0, "error: host mail.contoso.com: the certificate: revocation: REVOKED on … (superseded), says CRL http")
	use("good", peer.Leaf{})
	w.check(text, 0, 0, "fine: host mail.contoso.com: the certificate: revocation: not revoked, says CRL http", "fine: host mail.contoso.com: certificate … until")
	ca.Unpublish()
	w.check(text, 0, 1, "warning: host mail.contoso.com: the certificate: revocation: unknown: OCSP … answers 503")
	use("weak", peer.Leaf{Silent: true, Key: []string{"rsa:1024"}})
	w.check(text, 1, 0, "error: host mail.contoso.com: the certificate: key: RSA with 1024 bits")
	use("client", peer.Leaf{Silent: true, Extensions: "keyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n"})
	w.check(text, 1, 0, "error: host mail.contoso.com: the certificate: usage: not for servers")
	use("wide", peer.Leaf{Silent: true, Extensions: "keyUsage = digitalSignature\nextendedKeyUsage = serverAuth\n"})
	if out := w.check(text, 0, 0); strings.Contains(out, "nobody needs") || strings.Contains(out, "no wildcard") {
		t.Error(out)
	}
	wide := ca.Issue("star", peer.Leaf{Silent: true, Names: []string{"*.contoso.com", "old.fabrikam.com"}})
	for from, to := range map[string]string{wide: "mail.pem", ca.File("star.key"): "mail.key"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		w.file(to, string(b))
	}
	w.check(text, 0, 0, "fine: host mail.contoso.com: the certificate is good for mail.contoso.com by *.contoso.com; Windows Mobile 5.0",
		"fine: host mail.contoso.com: the certificate also carries names that nobody needs here: old.fabrikam.com")
	use("unknown", peer.Leaf{Silent: true})
	w.roots = x509.NewCertPool()
	w.check(text, 0, 1, `warning: host mail.contoso.com: the certificate: issuer: the chain ends at "Contoso Issuing"`)
}

// The way to Autodiscover of a domain that no host has the name for.
func TestLiveAutodiscover(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	text := liveConfig + `    trust: {ca: mail.pem}
    exchange: 2019
domains:
  adatum.com: {autodiscover: redirect, redirect_addr: "@contoso.com"}
  contoso.com: {autodiscover: redirect, redirect_addr: "@fabrikam.com"}
`
	w.srv = map[string]string{"_autodiscover._tcp.adatum.com": "mail.contoso.com:443"}
	w.check(text, 0, 0, "fine: domain adatum.com: Autodiscover is found by SRV, at mail.contoso.com:443")
	w.srv = map[string]string{}
	w.check(text, 0, 1, "warning: domain adatum.com: clients find no Autodiscover: there is neither a host autodiscover.adatum.com nor an SRV record _autodiscover._tcp.adatum.com")
	w.dns["autodiscover.adatum.com"] = []string{"198.51.100.1"}
	w.check(text, 0, 1, "warning: domain adatum.com: autodiscover.adatum.com leads to 198.51.100.1, and is no host here")
}

// Servers outside are verified; allow_external_untrusted_certs makes it a warning.
func TestLiveOutside(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	var err error
	if w.roots, err = tlsconf.LoadRoots(filepath.Join(w.dir, "mail.pem")); err != nil {
		t.Fatal(err)
	}
	base := liveConfig + `    trust: {ca: mail.pem}
    exchange: 2019
    external_url: https://mail.branch.contoso.com
domains:
  fabrikam.com: {autodiscover: redirect, redirect_url: "https://autodiscover.hosted.example:8443/autodiscover/autodiscover.xml"}
  contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}
`
	w.serve("mail.branch.contoso.com:443", w.certificate("branch", nil, "mail.branch.contoso.com"), exchange("15.1.1"))
	w.serve("autodiscover.hosted.example:8443", w.certificate("hosted", nil, "autodiscover.hosted.example"), exchange("15.1.1"))
	w.check(base, 3, 0,
		"error: host autodiscover.fabrikam.com: redirect mail.fabrikam.com:443: the certificate is not trusted",
		"error: site hq: external_url mail.branch.contoso.com:443: the certificate is not trusted",
		"error: domain fabrikam.com: redirect_url autodiscover.hosted.example:8443: the certificate is not trusted")
	w.check(base+"allow_external_untrusted_certs: true\n", 0, 3, "warning: host autodiscover.fabrikam.com: … THE CERTIFICATE IS NOT TRUSTED", "warning: site hq: external_url", "warning: domain fabrikam.com: redirect_url")
	// What it lets pass is a certificate, not a server that is not there.
	delete(w.servers, "mail.fabrikam.com:443")
	w.check(base+"allow_external_untrusted_certs: true\n", 1, 2, "error: host autodiscover.fabrikam.com: redirect mail.fabrikam.com:443: cannot be reached")
}

// A look remembers no key: trust by first use begins with the first connection of
// the front door.
func TestLiveFirstUse(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	text := "certificates: {storage: state}\n" + liveConfig + "    trust: first_use\n    exchange: 2019\n"
	w.check(text, 0, 1, "warning: … first_use has remembered no key yet")
	w.check(text, 0, 1, "fine: site hq: server cas01.contoso.local:443: … certificate not remembered yet: ")
	dir := filepath.Join(w.dir, "state", "first-use")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the look has left something in %s: %v", dir, err)
	}
	other := w.certificate("other", nil, "other.contoso.com")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.file(filepath.Join("state", "first-use", "hq@cas01.contoso.local_443.pin"), tlsconf.KeyPin(other.Leaf).String()+"\n")
	w.check(text, 1, 0, "error: site hq: … not the one of the first use")
}

// Many servers are looked at a few at a time.
func TestLiveManyServers(t *testing.T) {
	t.Parallel()
	w := liveFine(t)
	var servers []string
	for i := range 40 {
		servers = append(servers, fmt.Sprintf("https://cas%02d.contoso.local", i))
	}
	out := w.check(strings.Replace(liveConfig, "[https://cas01.contoso.local]", "["+strings.Join(servers, ", ")+"]", 1)+"    allow_internal_untrusted_certs: true\n    exchange: 2016\n", 39, 2)
	if n := w.most.Load(); n > 8 {
		t.Errorf("%d connections were made at once", n)
	}
	if strings.Index(out, "cas03") > strings.Index(out, "cas30") {
		t.Error("not in the order of the file")
	}
}

func TestExchangeVersion(t *testing.T) {
	f := func(header, page, want, word string) {
		t.Helper()
		v := exchangeVersion(header, []byte(page))
		if v.word() != word || word != "" && v.String() != want {
			t.Errorf("%q %q: %s %q, want %s %q", header, page, v, v.word(), want, word)
		}
	}
	f("8.3.485.1", "", "8.3.485", "2007")
	f("14.3.513.0", "", "14.3.513", "2010")
	f("15.0.1497.48", "", "15.0.1497", "2013")
	f("", `src="/owa/auth/15.1.2507/scripts/x.js"`, "15.1.2507", "2016")
	f("", `src="/OWA/15.2.1748.10/x.js"`, "15.2.1748", "2019")
	f("15.2.2562.17", "", "15.2.2562", "SE")
	f("", "nothing", "", "")
	f("x.y.z", "", "", "")
	f("15", "", "", "")
}

// through a configuration: a certificate that is renewed in its files here alone
// takes the server out of use when it is required, and the renewal there brings it back.
func TestExtendedProtectionRenewal(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	var theirs atomic.Pointer[tls.Certificate]
	first := w.certificate("mail", nil, "mail.contoso.com")
	theirs.Store(&first)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return theirs.Load(), nil }}
	server.StartTLS()
	t.Cleanup(server.Close)
	w.file("front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, site: hq}
sites:
  hq: {servers: ["`+server.URL+`"], allow_internal_untrusted_certs: true, server_name: mail.contoso.com, extended_protection: required}
`)
	cfg, report, err := config.Load(filepath.Join(w.dir, "front.yaml"))
	if err != nil || !report.OK() {
		t.Fatalf("%v\n%s", err, report)
	}
	front, err := newFrontDoor(cfg, zerolog.Nop(), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := front.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = front.shutdown(context.WithoutCancel(t.Context())) })
	status := func() int {
		t.Helper()
		tr := frontTransport(t, front)
		defer tr.CloseIdleConnections()
		return published{front, tr}.status(t, "GET", "/owa/")
	}
	is := func(want proxy.BindingState) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			all := front.server.Bindings()
			if len(all) == 1 && all[0].State == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%+v, want %s", all, want)
			}
		}
	}
	is(proxy.BindingMatch)
	if got := status(); got != 200 {
		t.Errorf("the same certificate: %d", got)
	}
	second := w.certificate("mail", nil, "mail.contoso.com")
	is(proxy.BindingMismatch)
	if got := status(); got != 502 {
		t.Errorf("renewed here alone: %d", got)
	}
	theirs.Store(&second)
	if got := status(); got != 200 {
		t.Errorf("renewed there too: %d", got)
	}
	is(proxy.BindingMatch)
}
