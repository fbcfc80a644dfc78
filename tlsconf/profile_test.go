package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// fixed is a Source with one certificate.
type fixed struct{ cert *tls.Certificate }

func (f fixed) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cert, nil }
func (f fixed) Leaf() *x509.Certificate                                       { return f.cert.Leaf }
func (f fixed) Close() error                                                  { return nil }

func fixedSource(t *testing.T) fixed {
	c := issue(t, "a.example", nil, dns("a.example"))
	return fixed{&tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: c.key, Leaf: c.Certificate}}
}

func serverConfig(t *testing.T, p Profile, src Source) *tls.Config {
	t.Helper()
	c, err := ServerConfig(p, src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// rsaSource has an RSA key, as the certificates of Exchange have.
func rsaSource(t *testing.T) fixed {
	t.Helper()
	src, err := NewSelfSigned("a", "a.example", nil, SelfSignedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	cert, err := src.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return fixed{cert}
}

// each profile takes what it should and no more, with both kinds of keys; what is not said is intermediate. Go's
// switches for its defaults make no difference.
func TestProfiles(t *testing.T) {
	for _, value := range []string{"0", "1"} {
		t.Run(value, func(t *testing.T) {
			t.Setenv("GODEBUG", fmt.Sprintf("tls10server=%[1]s,tlsrsakex=%[1]s,tls3des=%[1]s", value))
			testProfiles(t)
		})
	}
}

func testProfiles(t *testing.T) {
	type server struct {
		profile Profile
		rsa     bool
	}
	addrs := map[server]string{}
	for isRSA, src := range map[bool]fixed{false: fixedSource(t), true: rsaSource(t)} {
		for _, p := range append(Profiles(), "") {
			addrs[server{p, isRSA}] = listenTLS(t, serverConfig(t, p, src))
		}
	}
	f := func(s server, name string, want bool, change func(*tls.Config)) {
		t.Helper()
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
		change(config)
		c, err := tls.Dial("tcp", addrs[s], config)
		if (err == nil) != want {
			t.Errorf("%+v, %s: %v, want success %v", s, name, err, want)
		}
		if err == nil {
			if len(config.NextProtos) > 0 && c.ConnectionState().NegotiatedProtocol != "http/1.1" {
				t.Errorf("%+v, %s: protocol %q", s, name, c.ConnectionState().NegotiatedProtocol)
			}
			c.Close()
		}
	}
	suites := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
	for s := range addrs {
		pol := s.profile.Policy()
		if s.profile == "" {
			pol = Intermediate.Policy()
		}
		for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
			f(s, tls.VersionName(v), v >= pol.MinVersion, func(c *tls.Config) { c.MinVersion, c.MaxVersion = v, v })
		}
		for _, id := range []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521, tls.X25519, tls.X25519MLKEM768, tls.SecP256r1MLKEM768} {
			f(s, id.String(), slices.Contains(pol.Curves, id), func(c *tls.Config) { c.MinVersion, c.CurvePreferences = tls.VersionTLS13, []tls.CurveID{id} })
		}
		for _, suite := range suites {
			if suite.SupportedVersions[0] == tls.VersionTLS13 {
				continue
			}
			ours := strings.Contains(suite.Name, "ECDSA") != s.rsa // goes with the key
			f(s, suite.Name, ours && slices.Contains(pol.Suites, suite.ID), func(c *tls.Config) {
				c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{suite.ID}
			})
		}
		f(s, "h2 and http/1.1", true, func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} })
		f(s, "acme-tls/1", false, func(c *tls.Config) { c.NextProtos = []string{"acme-tls/1"} })
	}
	if _, err := ServerConfig("ancient", fixedSource(t)); err == nil || !strings.Contains(err.Error(), `unknown TLS profile "ancient", there are modern, intermediate, old`) {
		t.Errorf("ancient: %v", err)
	}
}

// The data agrees with itself: each profile takes all that a stricter one does, and what is called missing is missing.
func TestPolicies(t *testing.T) {
	var before Policy
	for _, p := range Profiles() {
		pol := p.Policy()
		if pol.MinVersion == 0 || len(pol.Curves) == 0 || before.MinVersion != 0 && pol.MinVersion >= before.MinVersion {
			t.Errorf("%s: %+v", p, pol)
		}
		for _, id := range before.Suites {
			if !slices.Contains(pol.Suites, id) {
				t.Errorf("%s lacks %s", p, tls.CipherSuiteName(id))
			}
		}
		for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if slices.Contains(pol.Missing, suite.Name) {
				t.Errorf("%s: crypto/tls has %s by now", p, suite.Name)
			}
			if slices.Contains(pol.Suites, suite.ID) && strings.Contains(suite.Name, "RC4") {
				t.Errorf("%s has %s", p, suite.Name)
			}
		}
		pol.Curves[0] = 0
		if p.Policy().Curves[0] == 0 {
			t.Errorf("%s can be changed", p)
		}
		before = pol
	}
}

// A ticket resumes under the host that gave it and under no other, even where both show one certificate.
func TestTicketsStayWithTheirHost(t *testing.T) {
	src := fixedSource(t)
	a, b := listenTLS(t, serverConfig(t, Intermediate, src)), listenTLS(t, serverConfig(t, Intermediate, src))
	roots := x509.NewCertPool()
	roots.AddCert(src.Leaf())
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		f := func(addr string, want bool) {
			t.Helper()
			c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "a.example", RootCAs: roots, ClientSessionCache: cache, MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().DidResume; got != want {
				t.Errorf("%s: resumed %v, want %v", tls.VersionName(version), got, want)
			}
		}
		f(a, false)
		f(a, true)
		f(b, false)
		f(b, true)
		f(a, false)
	}
}
