package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// issuer is a CA of client certificates.
type issuer struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	up   *issuer // nil for a root
}

func newIssuer(t testing.TB, name string, up *issuer) *issuer {
	t.Helper()
	i := &issuer{t: t, up: up}
	signer := up
	if up == nil {
		signer = i
	}
	i.cert, i.key = signer.sign(name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	})
	return i
}

// sign makes a certificate; a CA that has none of its own yet signs itself.
func (i *issuer) sign(name string, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(tmpl)
	}
	parent, signer := i.cert, i.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return cert, key
}

// client issues a client certificate, with the intermediates behind it.
func (i *issuer) client(change func(*x509.Certificate)) *tls.Certificate {
	i.t.Helper()
	leaf, key := i.sign("pat", change)
	c := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for up := i; up.up != nil; up = up.up {
		c.Certificate = append(c.Certificate, up.cert.Raw)
	}
	return c
}

func (i *issuer) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return pool
}

// asks makes the front's host ask for certificates of the CAs, which may be replaced.
func (f *front) asks(auth tls.ClientAuthType, cas *issuer) *atomic.Pointer[x509.CertPool] {
	pool := new(atomic.Pointer[x509.CertPool])
	pool.Store(cas.pool())
	f.mail.TLS.ClientAuth = auth
	f.mail.TLS.ClientCAs = pool.Load()
	f.mail.ClientCAs, f.mail.ClientCertificateHeaders = pool.Load, true
	return pool
}

// as is the configuration of a client with a certificate, nil for none.
func (f *front) as(cert *tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"}
	if cert != nil {
		// Shown whatever CAs the server names.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// ask makes one request and returns what the backend was told in it. The error is that
// of the handshake, or of the request: with TLS 1.3 the refusal comes with its answer.
func (f *front) ask(c *tls.Config, lines ...string) (body string, state tls.ConnectionState, err error) {
	f.t.Helper()
	conn, err := tls.Dial("tcp", f.https, c)
	if err != nil {
		return "", state, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: close\r\n"+strings.Join(lines, "")+"\r\n"); err != nil {
		return "", state, err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", state, err
	}
	_, body, _ = strings.Cut(string(answer), "\r\n\r\n")
	return body, conn.ConnectionState(), nil
}

var bothVersions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

// What each kind of certificate leads to: what the client is told in its alert, and the
// log in words.
func TestClientCertificateRequired(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	f := newFront(t, func(f *front, _ *Options, _ *Table) { f.asks(tls.RequireAndVerifyClientCert, ca) }, newRecorder(t, echo).backend())
	check := func(what string, cert *tls.Certificate, alert12, alert13, hint string) {
		t.Helper()
		for _, version := range bothVersions {
			conf := f.as(cert)
			conf.MaxVersion = version
			_, _, err := f.ask(conf)
			want := alert12
			if version == tls.VersionTLS13 {
				want = alert13
			}
			if want == "" && err == nil {
				continue
			}
			if want == "" || err == nil || !strings.Contains(err.Error(), "remote error: tls: "+want) {
				t.Errorf("%s, %s: %v, want %q", what, tls.VersionName(version), err, want)
			}
		}
		if hint != "" {
			f.waitForLog(hint)
		}
	}
	check("good", ca.client(nil), "", "", "")
	check("behind an intermediate", newIssuer(t, "issuing", ca).client(nil), "", "", "")
	check("none", nil, "handshake failure", "certificate required", "client_auth: require, and the client has none")
	check("of another CA", newIssuer(t, "ca", nil).client(nil), "unknown certificate authority", "unknown certificate authority", "no CA in client_ca has issued")
	check("expired", ca.client(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired certificate", "expired certificate", "has expired or is not valid yet")
	check("of a server", ca.client(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"bad certificate", "bad certificate", "not for client authentication")
}

// With request who has no certificate comes in, and who has a bad one does not.
func TestClientCertificateRequested(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	f := newFront(t, func(f *front, _ *Options, _ *Table) { f.asks(tls.VerifyClientCertIfGiven, ca) }, newRecorder(t, echo).backend())
	for _, version := range bothVersions {
		as := func(cert *tls.Certificate) *tls.Config {
			conf := f.as(cert)
			conf.MaxVersion = version
			return conf
		}
		if body, _, err := f.ask(as(nil)); err != nil || strings.Contains(body, "Client-Cert") {
			t.Errorf("without: %v, %q", err, body)
		}
		if body, _, err := f.ask(as(ca.client(nil))); err != nil || !strings.Contains(body, "Client-Cert: :") {
			t.Errorf("with: %v, %q", err, body)
		}
		if _, _, err := f.ask(as(newIssuer(t, "other", nil).client(nil))); err == nil {
			t.Error("a certificate of another CA got in")
		}
	}
}

// The lines of RFC 9440 are what the client has shown and nothing that it says, in
// whatever spelling. The log names the certificate by its fingerprint and not
// by its subject.
func TestClientCertificateHeaders(t *testing.T) {
	t.Parallel()
	root := newIssuer(t, "root", nil)
	middle := newIssuer(t, "middle", root)
	var host *Host
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		f.asks(tls.VerifyClientCertIfGiven, root)
		host = f.mail
	}, newRecorder(t, echo).backend())
	sequence := func(c *x509.Certificate) string { return ":" + base64.StdEncoding.EncodeToString(c.Raw) + ":" }
	forged := []string{
		"Client-Cert: :Zm9yZ2Vk:\r\n", "client_cert: :Zm9yZ2Vk:\r\n", "CLIENT-CERT-CHAIN: :Zm9yZ2Vk:\r\n",
		"Client_Cert_Chain: :Zm9yZ2Vk:\r\n", "Connection: Client-Cert\r\n",
	}
	certificates := func(body string) (lines []string) {
		for line := range strings.SplitSeq(body, "\r\n") {
			if strings.HasPrefix(strings.ReplaceAll(strings.ToLower(line), "_", "-"), "client-cert") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	check := func(what string, cert *tls.Certificate, want ...string) {
		t.Helper()
		conf := f.as(cert)
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for _, resumed := range []bool{false, true} {
			body, state, err := f.ask(conf, forged...)
			if err != nil || state.DidResume != resumed {
				t.Fatalf("%s: %v, resumed %v", what, err, state.DidResume)
			}
			if got := certificates(body); strings.Join(got, "\n") != strings.Join(want, "\n") || strings.Contains(body, "Zm9yZ2Vk") {
				t.Errorf("%s: the backend got %q, want %q", what, got, want)
			}
		}
	}
	check("none", nil)
	cert := middle.client(nil)
	check("a chain", cert, "Client-Cert: "+sequence(cert.Leaf), "Client-Cert-Chain: "+sequence(middle.cert)+", "+sequence(root.cert))
	f.waitForLog(`"client_certificate":"` + fingerprint(cert.Leaf) + `"`)
	if strings.Contains(f.log.String(), `"pat"`) {
		t.Error("the log names the subject")
	}
	cert = root.client(nil)
	// What the client sends besides is no part of the chain.
	cert.Certificate = append(cert.Certificate, newIssuer(t, "unasked", nil).cert.Raw)
	check("directly below the root", cert, "Client-Cert: "+sequence(cert.Leaf), "Client-Cert-Chain: "+sequence(root.cert))

	silent := *host
	silent.ClientCertificateHeaders = false
	f.SetTable(&Table{Hosts: map[string]*Host{"mail.contoso.com": &silent}})
	check("not asked for", cert)
	// Any certificate will do where none is held against CAs: it is no proof to pass on.
	any := *host
	any.TLS, any.ClientCAs = any.TLS.Clone(), nil
	any.TLS.ClientAuth = tls.RequestClientCert
	f.SetTable(&Table{Hosts: map[string]*Host{"mail.contoso.com": &any}})
	check("not verified", newIssuer(t, "other", nil).client(nil))
}

// A session spares the client the proof, so it must not outlive what was proven: its CA
// may be gone, or its time over. With Extended Protection tickets go another way.
func TestClientCertificateOfResumedSessions(t *testing.T) {
	t.Parallel()
	for _, protected := range []bool{false, true} {
		for _, version := range bothVersions {
			t.Run(fmt.Sprintf("%s, protected %v", tls.VersionName(version), protected), func(t *testing.T) {
				ca, other := newIssuer(t, "ca", nil), newIssuer(t, "other", nil)
				var pool *atomic.Pointer[x509.CertPool]
				var later atomic.Int64
				f := newFront(t, func(f *front, _ *Options, _ *Table) {
					pool = f.asks(tls.RequireAndVerifyClientCert, ca)
					f.mail.TLS.Time = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
					if protected {
						f.site.ExtendedProtection = ProtectionAuto
					}
				}, newRecorder(t, echo).backend())
				begin := func(cert *tls.Certificate) *tls.Config {
					t.Helper()
					conf := f.as(cert)
					conf.MaxVersion, conf.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
					for _, resumed := range []bool{false, true} {
						if _, state, err := f.ask(conf); err != nil || state.DidResume != resumed {
							t.Fatalf("%v, resumed %v, want %v", err, state.DidResume, resumed)
						}
					}
					return conf
				}
				refused := func(what string, conf *tls.Config) {
					t.Helper()
					if _, state, err := f.ask(conf); err == nil {
						t.Errorf("%s: let in, resumed %v", what, state.DidResume)
					}
				}

				conf := begin(ca.client(nil))
				pool.Store(other.pool())
				refused("its CA is gone", conf)
				pool.Store(nil)
				refused("there is no CA", conf)
				refused("there is no CA, afresh", f.as(ca.client(nil)))
				pool.Store(ca.pool())
				if _, _, err := f.ask(conf); err != nil {
					t.Errorf("its CA is back: %v", err)
				}

				conf = begin(ca.client(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) }))
				later.Store(int64(3 * time.Hour))
				refused("it has expired", conf)
			})
		}
	}
}

// A host that begins to ask does not take sessions from before.
func TestSessionsFromBeforeClientAuth(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	f := newFront(t, nil, newRecorder(t, echo).backend())
	for _, version := range bothVersions {
		conf := f.as(nil)
		conf.MaxVersion, conf.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
		f.SetTable(&Table{Hosts: map[string]*Host{"mail.contoso.com": f.mail}})
		if _, _, err := f.ask(conf); err != nil {
			t.Fatal(err)
		}
		// The worst case: the ticket keys are the same as before.
		asks := *f.mail
		asks.TLS = f.mail.TLS.Clone()
		asks.TLS.ClientAuth, asks.TLS.ClientCAs, asks.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool(), ca.pool
		f.SetTable(&Table{Hosts: map[string]*Host{"mail.contoso.com": &asks}})
		if _, state, err := f.ask(conf); err == nil {
			t.Errorf("%s: let in without a certificate, resumed %v", tls.VersionName(version), state.DidResume)
		}
	}
}

// A client of TLS 1.3 sends its first request before it can know that it is refused. It
// still gets the alert, and not a reset that takes the alert with it.
func TestMissingClientCertificateIsToldBehindARequest(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	f := newFront(t, func(f *front, _ *Options, _ *Table) { f.asks(tls.RequireAndVerifyClientCert, ca) }, newRecorder(t, echo).backend())
	for range 20 {
		conn, err := tls.Dial("tcp", f.https, f.as(nil))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Write([]byte("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 20000))); err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(conn)
		conn.Close()
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "remote error" || !strings.Contains(err.Error(), "certificate required") {
			t.Fatalf("%v, want the alert", err)
		}
	}
}

// SNI that disagrees with Host gets 421 where the two differ in what they ask of
// clients, also by way of the default host: neither a weaker profile nor a connection
// without a certificate leads to the other name.
func TestMisdirectedBetweenPolicies(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		f.mail.TLS.MinVersion = tls.VersionTLS10
		tb.Defaults[""] = f.mail
		for name, change := range map[string]func(*Host){
			"other.contoso.com": func(h *Host) { h.Policy, h.TLS.MinVersion = "modern", tls.VersionTLS13 },
			"autodiscover.contoso.com": func(h *Host) {
				h.Policy, h.TLS.ClientAuth, h.ClientCAs = "require", tls.RequireAndVerifyClientCert, ca.pool
			},
			"legacy.contoso.com": func(*Host) {},
		} {
			h := *f.mail
			h.Name, h.TLS = name, f.mail.TLS.Clone()
			change(&h)
			tb.Hosts[name] = &h
		}
	}, newRecorder(t, echo).backend())
	check := func(sni, host string, version uint16, want int) {
		t.Helper()
		conf := f.as(ca.client(nil))
		conf.ServerName, conf.MinVersion, conf.MaxVersion = sni, version, version
		if sni == "" {
			conf.InsecureSkipVerify = true // crypto/tls wants a name or this
		}
		conn, err := tls.Dial("tcp", f.https, conf)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, conn)
		c.send("GET /owa/ HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != want {
			t.Errorf("SNI %q, Host %s, %s: %s, want %d", sni, host, tls.VersionName(version), r.Status, want)
		}
		c.Close()
	}
	for _, sni := range []string{"mail.contoso.com", ""} { // without a name: the default host
		check(sni, "mail.contoso.com", tls.VersionTLS10, http.StatusOK)
		check(sni, "legacy.contoso.com", tls.VersionTLS10, http.StatusOK)
		check(sni, "other.contoso.com", tls.VersionTLS10, http.StatusMisdirectedRequest)
		check(sni, "autodiscover.contoso.com", tls.VersionTLS12, http.StatusMisdirectedRequest)
	}
	check("other.contoso.com", "other.contoso.com", tls.VersionTLS13, http.StatusOK)
	check("other.contoso.com", "mail.contoso.com", tls.VersionTLS13, http.StatusMisdirectedRequest)
	check("other.contoso.com", "autodiscover.contoso.com", tls.VersionTLS13, http.StatusMisdirectedRequest)
	check("autodiscover.contoso.com", "autodiscover.contoso.com", tls.VersionTLS12, http.StatusOK)
	check("autodiscover.contoso.com", "mail.contoso.com", tls.VersionTLS12, http.StatusMisdirectedRequest)
}

// Each host's versions hold on one port, also where Extended Protection derives the
// configuration of each handshake.
func TestVersionsPerHost(t *testing.T) {
	t.Parallel()
	for _, protection := range []ExtendedProtection{ProtectionOff, ProtectionAuto} {
		f := newFront(t, func(f *front, _ *Options, tb *Table) {
			f.site.ExtendedProtection = protection
			f.mail.TLS.MinVersion = tls.VersionTLS10
			modern := *f.mail
			modern.Name, modern.TLS = "other.contoso.com", f.mail.TLS.Clone()
			modern.TLS.MinVersion = tls.VersionTLS13
			tb.Hosts["other.contoso.com"] = &modern
		}, newRecorder(t, echo).backend())
		for version := uint16(tls.VersionTLS10); version <= tls.VersionTLS13; version++ {
			for name, want := range map[string]bool{"mail.contoso.com": true, "other.contoso.com": version == tls.VersionTLS13} {
				c, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: name, MinVersion: version, MaxVersion: version})
				if (err == nil) != want {
					t.Errorf("%s, %s, protection %s: %v", name, tls.VersionName(version), protection, err)
				}
				if err == nil {
					c.Close()
				}
			}
		}
		f.waitForLog("has only versions older than the host's TLS profile takes")
		suites := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA} // the front door's key is for ECDSA
		if c, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com", MaxVersion: tls.VersionTLS12, CipherSuites: suites}); err == nil {
			t.Error("RSA key exchange with an ECDSA key")
			c.Close()
		}
		f.waitForLog("Windows XP the profile old and an RSA key")
	}
}

// While there are no CAs to hold certificates against, the host is refused, and the log
// does not blame the certificate of the host.
func TestNoClientCAs(t *testing.T) {
	t.Parallel()
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		pool := f.asks(tls.RequireAndVerifyClientCert, newIssuer(t, "ca", nil))
		pool.Store(nil)
		f.mail.Ready = func() bool { return pool.Load() != nil }
	}, newRecorder(t, echo).backend())
	if _, _, err := f.ask(f.as(nil)); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Error(err)
	}
	f.waitForLog("client_ca has not been read")
}

// Mail protocols ask for certificates as the host does, and follow its CAs.
func TestMailClientCertificates(t *testing.T) {
	t.Parallel()
	ca := newIssuer(t, "ca", nil)
	var pool *atomic.Pointer[x509.CertPool]
	backend := newRecorder(t, func(c *recorded) { io.WriteString(c, "* OK ready\r\n"); io.Copy(io.Discard, c) })
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		pool = f.asks(tls.RequireAndVerifyClientCert, ca)
		conf := f.mail.TLS.Clone()
		conf.NextProtos = IMAPS.ALPN()
		b := backend.backend()
		b.TLS.NextProtos = nil
		f.mail.Mail = map[MailProtocol]*Mail{IMAPS: {Mode: Bridge, TLS: conf, Site: &Site{Name: "imap", Backends: []*Backend{b}, ConnectTimeout: time.Minute}}}
	})
	address := f.listen(func(ln net.Listener, name string) error { return f.ServeMail(ln, name, IMAPS) }, ":993")
	greeted := func(cert *tls.Certificate) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conn, err := (&tls.Dialer{Config: f.as(cert)}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = io.ReadFull(conn, make([]byte, len("* OK")))
		return err
	}
	if err := greeted(ca.client(nil)); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if err := greeted(nil); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without: %v", err)
	}
	f.waitForLog("client_auth: require, and the client has none")
	pool.Store(newIssuer(t, "ca", nil).pool())
	if err := greeted(ca.client(nil)); err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		t.Errorf("of a CA that is gone: %v", err)
	}
}
