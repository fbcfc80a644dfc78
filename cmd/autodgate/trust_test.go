package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/tlsconf"
)

// trustedServer is a server with a new self-signed certificate that has expired
// and no subject alternative name: nothing but its key speaks for it.
func trustedServer(t *testing.T, change func(*tls.Config)) (server *httptest.Server, certificate *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cas01"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	if change != nil {
		change(server.TLS)
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, certificate
}

// through the front door: what is not trusted is 502 and the log
// says the way out, which works when it is taken.
func TestTrustLadder(t *testing.T) {
	server, certificate := trustedServer(t, nil)
	_, other := trustedServer(t, nil)
	storage := t.TempDir()
	f := func(name, url, site string, want int, said ...string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "front.yaml")
		text := `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: ` + storage + `}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
sites:
  hq: {servers: ["` + url + `"]` + site + `}
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, report, err := config.Load(file)
		if err != nil || cfg == nil {
			t.Fatalf("%s: %v\n%s", name, err, report)
		}
		var log bytes.Buffer
		front, err := newFrontDoor(cfg, zerolog.New(zerolog.SyncWriter(&log)), frontDoorOptions{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := front.listen(); err != nil {
			t.Fatal(err)
		}
		tr := frontTransport(t, front)
		status := published{front, tr}.status(t, "GET", "/owa/")
		tr.CloseIdleConnections()
		if err := front.shutdown(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if status != want {
			t.Errorf("%s: %d, want %d\n%s", name, status, want, log.String())
		}
		for _, text := range said {
			if !strings.Contains(log.String(), text) {
				t.Errorf("%s: %q is not in the log:\n%s", name, text, log.String())
			}
		}
	}
	pin := func(c *x509.Certificate) string { return tlsconf.KeyPin(c).String() }
	f("default", server.URL, "", 502, "TLS with backend", "trust: {pin: ["+pin(certificate)+"]}", "allow_internal_untrusted_certs: true gives up")
	f("pin of the key", server.URL, ", trust: {pin: ["+pin(certificate)+"]}", 200)
	f("pin of the certificate", server.URL, ", trust: {pin: ["+pin(other)+", "+tlsconf.CertificatePin(certificate).String()+"]}", 200)
	f("wrong pin", server.URL, ", trust: {pin: ["+pin(other)+"]}", 502, "none of the keys pinned", pin(certificate))
	f("untrusted", server.URL, ", allow_internal_untrusted_certs: true", 200)

	// First use: a restart each time.
	f("first use", server.URL, ", trust: first_use", 200, "first use: the server's key is remembered", pin(certificate))
	f("second use", server.URL, ", trust: first_use", 200)
	files, err := filepath.Glob(filepath.Join(storage, "first-use", "*.pin"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], []byte(pin(other)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f("another key", server.URL, ", trust: first_use", 502, "not the one of the first use", "remove what is remembered", files[0])
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	f("the file removed", server.URL, ", trust: first_use", 200, "remembered")

	//
	old, certificate := trustedServer(t, func(c *tls.Config) {
		c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS10, tls.VersionTLS10, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	})
	trust := ", trust: {pin: [" + pin(certificate) + "]}"
	f("TLS 1.0 by default", old.URL, trust, 502, "min_version")
	f("TLS 1.0 when set", old.URL, trust+`, tls: {min_version: 1.0}`, 200)
	noSuite, certificate := trustedServer(t, func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	})
	trust = ", trust: {pin: [" + pin(certificate) + "]}"
	f("RSA key exchange by default", noSuite.URL, trust, 502, "no cipher suite in common?")
	// What is no TLS at all.
	clear := httptest.NewServer(http.NotFoundHandler())
	defer clear.Close()
	f("a server in clear", strings.Replace(clear.URL, "http:", "https:", 1), "", 502, "something else than TLS answers")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections are made by the kernel, and nobody accepts them
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	f("a server that hangs", "https://"+silent.Addr().String(), "}\nlimits: {connect_timeout: 100ms", 502, "nothing answers in TLS")
	// the site's client certificate, for a server that requires one.
	dir := t.TempDir()
	certPEM, keyPEM, err := tlsconf.SelfSignedPEM("autodgate", "autodgate.contoso.local", nil, tlsconf.SelfSignedOptions{Key: tlsconf.ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"client.pem": certPEM, "client.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	strict, certificate := trustedServer(t, func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert })
	strictTrust := ", trust: {pin: [" + pin(certificate) + "]}"
	f("client certificate required, none configured", strict.URL, strictTrust, 502)
	f("client certificate", strict.URL, strictTrust+", client_certificate: {cert: "+filepath.Join(dir, "client.pem")+", key: "+filepath.Join(dir, "client.key")+"}", 200)
	f("RSA key exchange when set", noSuite.URL, trust+`, tls: {ciphers: [TLS_RSA_WITH_AES_128_CBC_SHA]}`, 200)
}
