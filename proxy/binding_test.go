package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// bound is a backend that does what Exchange does with Extended Protection: a
// request whose binding is not that of the server's own certificate is 401.
type bound struct {
	*httptest.Server
	current     atomic.Pointer[tls.Certificate]
	handshakes  atomic.Int32
	resumptions atomic.Int32
}

func newBound(t testing.TB, cert tls.Certificate) *bound {
	t.Helper()
	b := &bound{}
	b.current.Store(&cert)
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Binding") != ChannelBinding(b.current.Load().Leaf) {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	b.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.TLS = &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return b.current.Load(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			b.handshakes.Add(1)
			if cs.DidResume {
				b.resumptions.Add(1)
			}
			return nil
		},
	}
	b.StartTLS()
	t.Cleanup(b.Close)
	return b
}

// backend is how the front door is told of it. What it is trusted for is not the
// matter here.
func (b *bound) backend(name string) *Backend {
	return &Backend{Name: name, Address: b.Listener.Addr().String(), TLS: &tls.Config{
		ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}}
}

// boundFront is a front door whose certificate can be exchanged.
type boundFront struct {
	*front
	own atomic.Pointer[tls.Certificate]
}

func newBoundFront(t testing.TB, own tls.Certificate, ep ExtendedProtection, interval time.Duration, backends ...*Backend) *boundFront {
	t.Helper()
	f := &boundFront{}
	f.own.Store(&own)
	newFront(t, func(fr *front, o *Options, table *Table) {
		f.front = fr
		o.BindingInterval = interval
		fr.site.ExtendedProtection = ep
		for _, h := range table.Hosts {
			if h.Mode == Bridge {
				h.TLS = &tls.Config{
					GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.own.Load(), nil },
					NextProtos:     []string{"http/1.1"},
				}
				h.Leaf = func() *x509.Certificate { return f.own.Load().Leaf }
			}
		}
	}, backends...)
	return f
}

// ask makes a connection and a request that is bound to the certificate which the
// connection's session began with, as Windows does it.
func (f *boundFront) ask(t testing.TB, change func(*tls.Config)) (status int, cs tls.ConnectionState) {
	t.Helper()
	conf := &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true}
	if change != nil {
		change(conf)
	}
	conn, err := tls.Dial("tcp", f.https, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	status, err = askOn(conn)
	if err != nil {
		t.Fatal(err)
	}
	return status, conn.ConnectionState()
}

func askOn(conn *tls.Conn) (int, error) {
	binding := ChannelBinding(conn.ConnectionState().PeerCertificates[0])
	fmt.Fprintf(conn, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Binding: %s\r\n\r\n", binding)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

const warning = "THE SERVER'S CERTIFICATE IS NOT THE ONE THAT CLIENTS SEE"

func (f *boundFront) state(server string) BindingState {
	for _, s := range f.Bindings() {
		if s.Server == server && s.Host == "mail.contoso.com" {
			return s.State
		}
	}
	return ""
}

func (f *boundFront) becomes(server string, want BindingState) {
	f.t.Helper()
	eventually(f.t, server+" "+string(want), func() bool { return f.state(server) == want })
}

const never = time.Hour

// what a client binds its login to, seen through the front door, is what the
// server compares it with, if and only if both have the same certificate.
func TestBindingSeenThroughTheBridgeR7_4(t *testing.T) {
	t.Parallel()
	same, other := newCertificate(t, "mail.contoso.com"), newCertificate(t, "mail.contoso.com")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, ep := range []ExtendedProtection{ProtectionOff, ProtectionAuto, ProtectionRequired} {
			f := func(name string, own tls.Certificate, want int) {
				t.Helper()
				server := newBound(t, same)
				front := newBoundFront(t, own, ep, never, server.backend("cas01"))
				cache := tls.NewLRUClientSessionCache(0)
				for i := range 2 { // the second one resumes the session
					status, cs := front.ask(t, func(c *tls.Config) { c.ClientSessionCache, c.MaxVersion = cache, version })
					if status != want {
						t.Errorf("%s, %s, %s: connection %d: %d, want %d", name, ep, tls.VersionName(version), i, status, want)
					}
					if status == 200 && (sha256.Sum256(cs.PeerCertificates[0].Raw) != sha256.Sum256(server.current.Load().Leaf.Raw) || cs.DidResume != (i == 1)) {
						t.Errorf("%s, %s, %s: connection %d: resumed %t with another certificate than the server's", name, ep, tls.VersionName(version), i, cs.DidResume)
					}
				}
			}
			f("same", same, 200)
			if ep != ProtectionRequired {
				f("other", other, 401)
			} else {
				f("other", other, 502)
			}
		}
	}
}

// auto lets traffic through and says once what is wrong, naming both
// certificates and the fix, not once for every connection; again when it changes.
func TestExtendedProtectionAutoR7_1(t *testing.T) {
	t.Parallel()
	own, theirs := newCertificate(t, "mail.contoso.com"), newCertificate(t, "cas01.contoso.local")
	server := newBound(t, theirs)
	f := newBoundFront(t, own, ProtectionAuto, 20*time.Millisecond, server.backend("cas01"))
	f.becomes("cas01", BindingMismatch) // at the start, without a client
	f.waitForLog(warning)
	for range 5 {
		if status, _ := f.ask(t, nil); status != 401 {
			t.Errorf("%d, want the server's own 401", status)
		}
	}
	a, b := DescribeCertificate(own.Leaf), DescribeCertificate(theirs.Leaf)
	for _, text := range []string{
		warning, a.Serial, a.SHA256, a.ChannelBinding, b.Serial, b.SHA256, b.ChannelBinding, "CN=mail.contoso.com", "CN=cas01.contoso.local",
		"export the one of Exchange", "passthrough", "0xC000035B", `"site":"hq"`, `"host":"mail.contoso.com"`, `"backend":"cas01"`, `"extended_protection":"auto"`, `"level":"warn"`,
	} {
		if !strings.Contains(f.log.String(), text) {
			t.Errorf("%q is not in the log", text)
		}
	}
	if n := strings.Count(f.log.String(), warning); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
	status, err := json.Marshal(f.Status())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`"bindings":[{"host":"mail.contoso.com","state":"mismatch",`, a.Serial, b.Serial} {
		if !strings.Contains(string(status), text) {
			t.Errorf("%q is not in the status %s", text, status)
		}
	}
	// The server gets another one, still not ours: again.
	third := newCertificate(t, "cas01.contoso.local")
	server.current.Store(&third)
	eventually(t, "a second warning", func() bool { return strings.Count(f.log.String(), warning) == 2 })
	// Here the certificate is put right.
	f.own.Store(&third)
	f.becomes("cas01", BindingMatch)
	f.waitForLog("clients see the server's certificate again")
	if status, _ := f.ask(t, nil); status != 200 {
		t.Errorf("%d after the certificates are the same", status)
	}
	// A new table for the same is no news.
	f.SetTable(&Table{Hosts: f.table.Load().Hosts})
	f.becomes("cas01", BindingMatch)
	if n := strings.Count(f.log.String(), warning); n != 2 {
		t.Errorf("%d warnings, want 2", n)
	}
}

// required does not use a server with another certificate, but the next one;
// if none is left the answer is 502 and the log has the cause.
func TestExtendedProtectionRequiredR7_1(t *testing.T) {
	t.Parallel()
	own, other := newCertificate(t, "mail.contoso.com"), newCertificate(t, "mail.contoso.com")
	wrong, right := newBound(t, other), newBound(t, own)
	f := newBoundFront(t, own, ProtectionRequired, never, wrong.backend("cas01"), right.backend("cas02"))
	f.becomes("cas01", BindingMismatch)
	handshakes := wrong.handshakes.Load()
	defer func() {
		// Clients do not pay for a server that is known to differ, until there is no other.
		if n := wrong.handshakes.Load() - handshakes; n != 1 {
			t.Errorf("%d connections to the server that differs, want that of the last request", n)
		}
	}()
	for range 4 {
		if status, _ := f.ask(t, nil); status != 200 {
			t.Errorf("%d, want 200 from the server with the same certificate", status)
		}
	}
	right.current.Store(&other)
	f.site.Backends[1].forgetSession() // a session that began before would show the old one
	if status, _ := f.ask(t, nil); status != http.StatusBadGateway {
		t.Errorf("%d, want 502: no server has the certificate", status)
	}
	a, b := DescribeCertificate(own.Leaf), DescribeCertificate(other.Leaf)
	for _, text := range []string{"cas02", "is not used, extended_protection: required", a.Serial, a.SHA256, b.Serial, b.SHA256, "the server is not used", `"level":"error"`} {
		f.waitForLog(text)
	}
	if f.state("cas02") != BindingMismatch { // seen when the connection was made
		t.Errorf("state %q", f.state("cas02"))
	}
}

// required refuses what cannot be compared.
func TestExtendedProtectionRequiredUnknown(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request in clear") }))
	t.Cleanup(plain.Close)
	f := newBoundFront(t, newCertificate(t, "mail.contoso.com"), ProtectionRequired, never, &Backend{Name: "cas01", Address: plain.Listener.Addr().String()})
	if status, _ := f.ask(t, nil); status != http.StatusBadGateway || !strings.Contains(f.log.String(), "it shows no certificate") {
		t.Errorf("%d", status)
	}
	if f.state("cas01") != BindingUnknown {
		t.Errorf("state %q", f.state("cas01"))
	}
	// Which certificate a client saw is not known.
	cert := newCertificate(t, "mail.contoso.com")
	s := newBound(t, cert)
	dial := dialFunc((&net.Dialer{}).DialContext)
	site := &Site{Name: "hq", ExtendedProtection: ProtectionRequired}
	back := s.backend("cas01")
	_, err := f.bindings.connect(t.Context(), site, nil, back, func() (*upstream, error) { return dial.connect(t.Context(), nil, &attempt{backend: back}, time.Minute) })
	if err == nil || !strings.Contains(err.Error(), "not known which certificate") {
		t.Error(err)
	}
}

// A client that resumes a session is bound to the certificate it began with. So no
// session outlives the certificate: after a renewal here every client makes a full
// handshake and sees the new one.
func TestBindingOfResumedClients(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		first, second := newCertificate(t, "mail.contoso.com"), newCertificate(t, "mail.contoso.com")
		server := newBound(t, first)
		f := newBoundFront(t, first, ProtectionRequired, never, server.backend("cas01"))
		cache := tls.NewLRUClientSessionCache(0)
		ask := func(want *x509.Certificate, resumed bool) {
			t.Helper()
			status, cs := f.ask(t, func(c *tls.Config) { c.ClientSessionCache, c.MaxVersion = cache, version })
			if status != 200 || !cs.PeerCertificates[0].Equal(want) || cs.DidResume != resumed {
				t.Errorf("%s: %d, resumed %t (want %t), certificate as wanted: %t", tls.VersionName(version), status, cs.DidResume, resumed, cs.PeerCertificates[0].Equal(want))
			}
		}
		ask(first.Leaf, false)
		ask(first.Leaf, true)
		server.current.Store(&second)
		f.own.Store(&second)
		ask(second.Leaf, false)
		ask(second.Leaf, true)
	}
}

// A session towards a server that is resumed shows the certificate it began with.
// When that is not the one wanted, or the server is known to have another by now, a
// full handshake decides.
func TestBindingOfResumedServers(t *testing.T) {
	t.Parallel()
	first, second := newCertificate(t, "mail.contoso.com"), newCertificate(t, "mail.contoso.com")
	server := newBound(t, first)
	f := newBoundFront(t, first, ProtectionRequired, never, server.backend("cas01"))
	f.becomes("cas01", BindingMatch)
	for range 2 {
		if status, _ := f.ask(t, nil); status != 200 {
			t.Fatal(status)
		}
	}
	if server.resumptions.Load() != 1 {
		t.Fatalf("%d sessions resumed towards the server, want 1", server.resumptions.Load())
	}
	// Both get a new certificate. The session at hand shows the old one.
	server.current.Store(&second)
	f.own.Store(&second)
	if status, _ := f.ask(t, nil); status != 200 {
		t.Errorf("%d: a session of the old certificate counted against the server", status)
	}
	// The server alone gets another one, and is seen to have it.
	third := newCertificate(t, "mail.contoso.com")
	server.current.Store(&third)
	f.SetTable(f.table.Load()) // as a reload: looks at the servers
	f.becomes("cas01", BindingMismatch)
	if status, _ := f.ask(t, nil); status != http.StatusBadGateway {
		t.Errorf("%d: a session of the old certificate spoke for the server", status)
	}
}

// With required, a connection on which logins are bound to a certificate that its
// host no longer has is closed at its next request; otherwise it goes on.
func TestBindingOfOpenConnections(t *testing.T) {
	t.Parallel()
	for _, ep := range []ExtendedProtection{ProtectionAuto, ProtectionRequired} {
		first, second := newCertificate(t, "mail.contoso.com"), newCertificate(t, "mail.contoso.com")
		server := newBound(t, first)
		f := newBoundFront(t, first, ep, never, server.backend("cas01"))
		conn, err := tls.Dial("tcp", f.https, &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		for range 2 {
			if status, err := askOn(conn); status != 200 || err != nil {
				t.Fatal(status, err)
			}
		}
		f.own.Store(&second)
		status, err := askOn(conn)
		if ep == ProtectionAuto && (status != 200 || err != nil) {
			t.Errorf("auto: %d %v", status, err)
		}
		if ep == ProtectionRequired {
			if err == nil {
				t.Errorf("required: answered with %d", status)
			}
			f.waitForLog("has been replaced since")
		}
	}
}

// while certificates are renewed, one after another, the differing ones are
// reported as a renewal under way, and with required the servers that agree carry on.
func TestRotationR7_3(t *testing.T) {
	t.Parallel()
	old := newCertificate(t, "mail.contoso.com")
	one, two := newBound(t, old), newBound(t, old)
	f := newBoundFront(t, old, ProtectionRequired, 20*time.Millisecond, one.backend("cas01"), two.backend("cas02"))
	fine := func(step string) {
		t.Helper()
		for range 3 {
			if status, _ := f.ask(t, nil); status != 200 {
				t.Errorf("%s: %d", step, status)
			}
		}
	}
	rotation := func(server string) string {
		for _, s := range f.Bindings() {
			if s.Server == server {
				return s.Rotation
			}
		}
		return "?"
	}
	f.becomes("cas01", BindingMatch)
	f.becomes("cas02", BindingMatch)
	fine("before")
	renewed := newCertificateFrom(t, time.Now(), "mail.contoso.com")
	one.current.Store(&renewed)
	f.becomes("cas01", BindingMismatch)
	fine("the first server renewed")
	if rotation("cas01") != "server_newer" || rotation("cas02") != "" {
		t.Errorf("%q %q", rotation("cas01"), rotation("cas02"))
	}
	f.waitForLog("the one here has not yet")
	f.own.Store(&renewed)
	f.becomes("cas02", BindingMismatch)
	f.becomes("cas01", BindingMatch)
	fine("here renewed")
	if rotation("cas02") != "own_newer" {
		t.Errorf("%q", rotation("cas02"))
	}
	f.waitForLog("the server's has not yet")
	two.current.Store(&renewed)
	f.becomes("cas02", BindingMatch)
	fine("all renewed")
}

// Without Extended Protection no server is asked for its certificate.
func TestExtendedProtectionOff(t *testing.T) {
	t.Parallel()
	server := newBound(t, newCertificate(t, "cas01.contoso.local"))
	f := newBoundFront(t, newCertificate(t, "mail.contoso.com"), ProtectionOff, 5*time.Millisecond, server.backend("cas01"))
	f.ask(t, nil)
	if n := server.handshakes.Load(); n != 1 {
		t.Errorf("%d handshakes, want that of the client's connection alone", n)
	}
	if len(f.Bindings()) != 0 || strings.Contains(f.log.String(), "Extended") || f.table.Load().protects {
		t.Errorf("%v", f.Bindings())
	}
}

// A server that cannot be looked at is unknown, not a match, and what was known of it
// is kept; the log says so once.
func TestBindingUnknown(t *testing.T) {
	t.Parallel()
	cert := newCertificate(t, "mail.contoso.com")
	server := newBound(t, cert)
	back := server.backend("cas01")
	back.TLS.InsecureSkipVerify, back.TLS.RootCAs = false, x509.NewCertPool()
	f := newBoundFront(t, cert, ProtectionAuto, 10*time.Millisecond, back)
	f.waitForLog("is not known yet")
	var before time.Time
	eventually(t, "two looks", func() bool {
		s := f.Bindings()[0]
		if before.IsZero() {
			before = s.Checked
		}
		return s.Checked.After(before)
	})
	s := f.Bindings()[0]
	sites := f.Status().Sites
	if len(sites) != 1 || sites[0].ExtendedProtection != "auto" || sites[0].AllowInternalUntrustedCerts || len(sites[0].Servers) != 1 || len(sites[0].Servers[0].Bindings) != 1 || sites[0].Servers[0].Bindings[0].State != BindingUnknown {
		t.Errorf("status: %+v", sites)
	}
	if s.State != BindingUnknown || !strings.Contains(s.Error, "TLS with backend cas01") || s.ServerCertificate != nil || s.OwnCertificate == nil {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(f.log.String(), "not known yet"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// RFC 5929 section 4.1: the hash is that of the signature, SHA-256 for MD5 and SHA-1.
func TestChannelBinding(t *testing.T) {
	der := []byte("a certificate")
	s256, s384, s512 := sha256.Sum256(der), sha512.Sum384(der), sha512.Sum512(der)
	f := func(a x509.SignatureAlgorithm, name string, sum []byte) {
		t.Helper()
		want := ""
		if name != "" {
			want = name + ":" + hex.EncodeToString(sum)
		}
		if got := ChannelBinding(&x509.Certificate{Raw: der, SignatureAlgorithm: a}); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
	for _, a := range []x509.SignatureAlgorithm{x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256} {
		f(a, "sha256", s256[:])
	}
	for _, a := range []x509.SignatureAlgorithm{x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384} {
		f(a, "sha384", s384[:])
	}
	for _, a := range []x509.SignatureAlgorithm{x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512} {
		f(a, "sha512", s512[:])
	}
	f(x509.PureEd25519, "", nil)
	f(x509.UnknownSignatureAlgorithm, "", nil)
}

// The watch ends with the server, also when a server does not answer it.
func TestBindingWatchEnds(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	f := newBoundFront(t, newCertificate(t, "mail.contoso.com"), ProtectionAuto, never,
		&Backend{Name: "cas01", Address: silent.Addr().String(), TLS: &tls.Config{ServerName: "cas01", InsecureSkipVerify: true}})
	start := time.Now()
	f.SetTable(&Table{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.Shutdown(ctx); err != nil || time.Since(start) > patience {
		t.Error(err, time.Since(start))
	}
}

// A host may show different certificates for its names, as those that are issued for
// one name each: what counts is the one that this very client was shown.
func TestBindingByName(t *testing.T) {
	t.Parallel()
	own, alias := newCertificate(t, "mail.contoso.com"), newCertificate(t, "legacy.contoso.com")
	server := newBound(t, own)
	f := newBoundFront(t, own, ProtectionRequired, never, server.backend("cas01"))
	f.mail.TLS.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "legacy.contoso.com" {
			return &alias, nil
		}
		return &own, nil
	}
	for name, want := range map[string]int{"mail.contoso.com": 200, "legacy.contoso.com": http.StatusBadGateway} {
		cache := tls.NewLRUClientSessionCache(0)
		for i := range 2 {
			status, cs := f.ask(t, func(c *tls.Config) { c.ServerName, c.ClientSessionCache = name, cache })
			if status != want || cs.DidResume != (i == 1) {
				t.Errorf("%s: connection %d: %d, want %d; resumed %t", name, i, status, want, cs.DidResume)
			}
		}
	}
}
