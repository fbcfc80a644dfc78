package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
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

// each profile takes what it should and no more.
func TestProfiles(t *testing.T) {
	src := fixedSource(t)
	addrs := map[Profile]string{}
	for _, p := range []Profile{Modern, Intermediate, ""} {
		addrs[p] = listenTLS(t, serverConfig(t, p, src))
	}
	f := func(p Profile, name string, want bool, change func(*tls.Config)) {
		t.Helper()
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
		change(config)
		c, err := tls.Dial("tcp", addrs[p], config)
		if (err == nil) != want {
			t.Errorf("%q, %s: %v, want success %v", p, name, err, want)
		}
		if err == nil {
			if len(config.NextProtos) > 0 && c.ConnectionState().NegotiatedProtocol != "http/1.1" {
				t.Errorf("%q, %s: protocol %q", p, name, c.ConnectionState().NegotiatedProtocol)
			}
			c.Close()
		}
	}
	for p := range addrs {
		old := p != Modern
		f(p, "TLS 1.0", false, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS10 })
		f(p, "TLS 1.1", false, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 })
		f(p, "TLS 1.2", old, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
		f(p, "TLS 1.3", true, func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 })
		f(p, "P-256", true, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} })
		f(p, "P-521", false, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} })
		f(p, "CBC", false, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		})
		f(p, "GCM", old, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		})
		f(p, "h2 and http/1.1", true, func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} })
		f(p, "acme-tls/1", false, func(c *tls.Config) { c.NextProtos = []string{"acme-tls/1"} })
	}
	if _, err := ServerConfig("old", src); err == nil || !strings.Contains(err.Error(), `unknown TLS profile "old"`) {
		t.Errorf("old: %v", err)
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
