package tlsconf

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// casServer is a TLS server that greets; it notes what it was asked for, and its
// certificate can be exchanged.
type casServer struct {
	address string
	current atomic.Pointer[tls.Certificate]
	mu      sync.Mutex
	sni     []string
}

func (s *casServer) show(chain ...*issued) {
	c := &tls.Certificate{PrivateKey: chain[0].key, Leaf: chain[0].Certificate}
	for _, i := range chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	s.current.Store(c)
}

func newCAS(t *testing.T, change func(*tls.Config), chain ...*issued) *casServer {
	t.Helper()
	s := &casServer{}
	s.show(chain...)
	cfg := &tls.Config{
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.sni = append(s.sni, h.ServerName)
			return s.current.Load(), nil
		},
	}
	if change != nil {
		change(cfg)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s.address = ln.Addr().String()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				io.WriteString(c, "hello")
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return s
}

func (s *casServer) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sni[len(s.sni)-1]
}

// greet connects and reads the greeting, and with it the session tickets.
func greet(address string, cfg *tls.Config) (tls.ConnectionState, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(c, make([]byte, 5))
	return c.ConnectionState(), err
}

func backendConfig(t *testing.T, o BackendOptions) *tls.Config {
	t.Helper()
	cfg, err := BackendConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func pool(certs ...*issued) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c.Certificate)
	}
	return p
}

const casName = "cas01.contoso.local"

func expired(c *x509.Certificate) {
	c.DNSNames = []string{casName}
	c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
}

// each kind of certificate against each kind of trust.
func TestBackendTrustR8_4(t *testing.T) {
	root := issue(t, "Contoso Root", nil, isCA)
	middle := issue(t, "Contoso Issuing", root, isCA)
	stranger := issue(t, "Fabrikam Root", nil, isCA)
	certs := map[string][]*issued{
		"leaf":        {issue(t, casName, root, dns(casName))},
		"chain":       func() []*issued { return []*issued{issue(t, casName, middle, dns(casName)), middle} }(),
		"no chain":    {issue(t, casName, middle, dns(casName))},
		"other name":  {issue(t, "cas02", root, dns("cas02.contoso.local"))},
		"expired":     {issue(t, casName, root, expired)},
		"unknown CA":  {issue(t, casName, stranger, dns(casName)), stranger},
		"self-signed": {issue(t, casName, nil, dns(casName))},
		"CN only":     {issue(t, casName, root, nil)},
	}
	const fine = ""
	f := func(cert string, trust func(o *BackendOptions, leaf *x509.Certificate), want string) {
		t.Helper()
		chain := certs[cert]
		s := newCAS(t, nil, chain...)
		o := BackendOptions{ServerName: casName}
		trust(&o, chain[0].Certificate)
		cs, err := greet(s.address, backendConfig(t, o))
		switch {
		case want == fine && err != nil:
			t.Errorf("%s: %v", cert, err)
		case want == fine && (cs.NegotiatedProtocol != "http/1.1" || s.asked() != casName):
			t.Errorf("%s: protocol %q, SNI %q", cert, cs.NegotiatedProtocol, s.asked())
		case want != fine && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", cert, err, want)
		}
	}
	system := func(*BackendOptions, *x509.Certificate) {}
	ca := func(o *BackendOptions, _ *x509.Certificate) { o.Roots = pool(root) }
	f("leaf", system, "unknown authority") // without a word about trust, certificates are verified
	f("leaf", ca, fine)
	f("chain", ca, fine)
	f("no chain", ca, "unknown authority")
	f("other name", ca, "valid for cas02.contoso.local, not "+casName)
	f("expired", ca, "expired")
	f("unknown CA", ca, "unknown authority")
	f("self-signed", ca, "unknown authority")
	f("CN only", ca, "legacy Common Name")
	f("self-signed", func(o *BackendOptions, leaf *x509.Certificate) { o.Roots = pool(&issued{Certificate: leaf}) }, fine)

	// A pin is the whole of it: name, dates and issuer do not matter, only the key does.
	other := KeyPin(stranger.Certificate)
	for cert := range certs {
		f(cert, func(o *BackendOptions, leaf *x509.Certificate) { o.Pins = []Pin{other, KeyPin(leaf)} }, fine)
		f(cert, func(o *BackendOptions, leaf *x509.Certificate) { o.Pins = []Pin{CertificatePin(leaf)} }, fine)
		f(cert, func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{KeyPin(root.Certificate)} }, "none of the keys pinned")
		f(cert, func(o *BackendOptions, _ *x509.Certificate) { o.Untrusted = true }, fine)
	}
	// What is sent along proves nothing: the pin of an issuer is not satisfied by its certificate.
	f("chain", func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{KeyPin(middle.Certificate)} }, "none of the keys pinned")
	f("unknown CA", func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{CertificatePin(stranger.Certificate)} }, "none of the keys pinned")
	// The message holds what to compare and to set.
	leaf := certs["leaf"][0].Certificate
	f("leaf", func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{other} }, KeyPin(leaf).String()+" and "+CertificatePin(leaf).String())
	// A certificate renewed with the same key keeps its key's pin, but not its own.
	again := &issued{key: certs["leaf"][0].key}
	renewed := reissue(t, again, root)
	certs["renewed"] = []*issued{renewed}
	f("renewed", func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{KeyPin(leaf)} }, fine)
	f("renewed", func(o *BackendOptions, _ *x509.Certificate) { o.Pins = []Pin{CertificatePin(leaf)} }, "none of the keys pinned")
}

// reissue makes another certificate for a key.
func reissue(t *testing.T, old, issuer *issued) *issued {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(77), DNSNames: []string{casName}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}, issuer.Certificate, old.key.Public(), issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{c, old.key}
}

// an address has no SNI, and is looked for in the certificate all the same.
func TestBackendServerNameIsAddress(t *testing.T) {
	s := newCAS(t, nil, issue(t, "cas", nil, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }))
	o := BackendOptions{ServerName: "127.0.0.1", Roots: x509.NewCertPool()}
	o.Roots.AddCert(s.current.Load().Leaf)
	if _, err := greet(s.address, backendConfig(t, o)); err != nil || s.asked() != "" {
		t.Errorf("%v, SNI %q", err, s.asked())
	}
}

func TestBackendConfigRefuses(t *testing.T) {
	f := func(o BackendOptions, want string) {
		t.Helper()
		if _, err := BackendConfig(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f(BackendOptions{}, "no server name")
	f(BackendOptions{ServerName: "x", Untrusted: true, Pins: []Pin{{}}}, "pins and untrusted")
	f(BackendOptions{ServerName: "x", MaxVersion: tls.VersionTLS11}, "at least TLS 1.2 and at most TLS 1.1")
}

// what was trusted when a session began has to be trusted when it is resumed.
func TestBackendResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		leaf := issue(t, casName, nil, dns(casName))
		s := newCAS(t, func(c *tls.Config) { c.MaxVersion = version }, leaf)
		pins := []Pin{KeyPin(leaf.Certificate)}
		cfg := backendConfig(t, BackendOptions{ServerName: casName, Pins: pins})
		for i := range 2 {
			cs, err := greet(s.address, cfg)
			if err != nil || cs.DidResume != (i == 1) {
				t.Fatalf("connection %d: %v, resumed %t", i, err, cs.DidResume)
			}
		}
		pins[0] = Pin{} // the configuration reads this very list
		if cs, err := greet(s.address, cfg); err == nil || !strings.Contains(err.Error(), "none of the keys") {
			t.Errorf("%s: another pin: %v, resumed %t", tls.VersionName(version), err, cs.DidResume)
		}

		dir := t.TempDir()
		first := NewFirstUse(dir, "hq", s.address, zerolog.Nop())
		cfg = backendConfig(t, BackendOptions{ServerName: casName, FirstUse: first})
		for i := range 2 {
			if cs, err := greet(s.address, cfg); err != nil || cs.DidResume != (i == 1) {
				t.Fatalf("connection %d: %v, resumed %t", i, err, cs.DidResume)
			}
		}
		writeFile(t, first.Place(), []byte(Pin{}.String()+"\n"))
		if _, err := greet(s.address, cfg); err == nil || !strings.Contains(err.Error(), first.Place()) {
			t.Errorf("%s: another key in the file: %v", tls.VersionName(version), err)
		}
	}
}

// trust by first use, from the first connection over a restart to another key and back.
func TestBackendFirstUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "first-use")
	leaf := issue(t, casName, nil, expired)
	s := newCAS(t, nil, leaf)
	var log safeBuffer
	connect := func() error {
		// Made anew each time, as after a restart.
		_, err := greet(s.address, backendConfig(t, BackendOptions{ServerName: casName, FirstUse: NewFirstUse(dir, "hq", s.address, zerolog.New(&log))}))
		return err
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	file := NewFirstUse(dir, "hq", s.address, zerolog.Nop()).Place()
	for path, want := range map[string]os.FileMode{file: 0o600, dir: 0o700 | os.ModeDir} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "\n"+KeyPin(leaf.Certificate).String()+"\n") || !strings.Contains(string(text), s.address) {
		t.Errorf("%s %v", text, err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, KeyPin(leaf.Certificate).String()) || !strings.Contains(got, `"level":"warn"`) {
		t.Errorf("log: %s", got)
	}
	if err := connect(); err != nil {
		t.Errorf("the same key: %v", err)
	}
	changed := issue(t, casName, nil, dns(casName))
	s.show(changed)
	for range 2 {
		err := connect()
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "remove what is remembered") || !strings.Contains(err.Error(), KeyPin(changed.Certificate).String()) {
			t.Errorf("another key: %v", err)
		}
	}
	if again, err := os.ReadFile(file); err != nil || string(again) != string(text) {
		t.Errorf("the file changed: %s %v", again, err)
	}
	// The next key can be written into the file beforehand.
	writeFile(t, file, append(text, KeyPin(changed.Certificate).String()...))
	if err := connect(); err != nil {
		t.Errorf("with both keys: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := connect(); err != nil {
		t.Errorf("after the file was removed: %v", err)
	}
	s.show(leaf)
	if err := connect(); err == nil {
		t.Error("the old key is accepted although another has been remembered")
	}
}

// what cannot be remembered or read is not accepted.
func TestBackendFirstUseStoreBroken(t *testing.T) {
	leaf := issue(t, casName, nil, dns(casName))
	s := newCAS(t, nil, leaf)
	f := func(name, dir, want string) {
		t.Helper()
		_, err := greet(s.address, backendConfig(t, BackendOptions{ServerName: casName, FirstUse: NewFirstUse(dir, "hq", s.address, zerolog.Nop())}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	dir := t.TempDir()
	f("a file where the directory should be", writeFile(t, filepath.Join(dir, "file"), nil), "first use")
	f("no directory can be made", filepath.Join(dir, "file", "x"), "first use")
	file := NewFirstUse(dir, "hq", s.address, zerolog.Nop()).Place()
	for _, text := range []string{"", "# only words\n", "sha256/abc\n", KeyPin(leaf.Certificate).String() + "\nbroken\n"} {
		writeFile(t, file, []byte(text))
		f(fmt.Sprintf("%q in the file", text), dir, file)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	f("a directory where the file should be", dir, file)
	if os.Getuid() != 0 { // root writes everywhere
		closed := t.TempDir()
		if err := os.Chmod(closed, 0o500); err != nil {
			t.Fatal(err)
		}
		f("not writable", closed, "cannot be remembered")
	}
	if _, err := os.Stat("/proc/self"); err == nil {
		f("not writable, even for root", "/proc/self", "cannot be remembered")
	}
}

// Many first uses at once, by several processes as it were: one key wins, and those who saw another are refused.
func TestBackendFirstUseConcurrent(t *testing.T) {
	dir := t.TempDir()
	leaves := []*issued{issue(t, casName, nil, dns(casName)), issue(t, casName, nil, dns(casName))}
	var accepted [2]atomic.Int32
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			leaf := leaves[i%2].Certificate
			err := NewFirstUse(dir, "hq", "cas01:443", zerolog.Nop()).check(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
			if err == nil {
				accepted[i%2].Add(1)
			} else if !strings.Contains(err.Error(), "not the one of the first use") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	a, b := accepted[0].Load(), accepted[1].Load()
	if (a != 20 || b != 0) && (a != 0 || b != 20) {
		t.Errorf("accepted %d and %d", a, b)
	}
}

// A name in a certificate is what somebody else wrote; it must not become a pin.
func TestFirstUseNameIsNoPin(t *testing.T) {
	evil := issue(t, "evil", nil, nil)
	cert := issue(t, "x\n"+KeyPin(evil.Certificate).String()+"\n", nil, nil)
	first := NewFirstUse(t.TempDir(), "hq", "cas01:443", zerolog.Nop())
	if err := first.check(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Certificate}}); err != nil {
		t.Fatal(err)
	}
	if pins, err := first.read(true); err != nil || len(pins) != 1 || pins[0] != KeyPin(cert.Certificate) {
		t.Errorf("%v %v", pins, err)
	}
}

func TestPinFiles(t *testing.T) {
	seen := map[string]bool{}
	for _, x := range [][2]string{
		{"hq", "cas01:443"}, {"hq", "cas01:444"}, {"hq", "cas01_443"}, {"hq@cas01", ":443"}, {"hq", "[::1]:443"}, {"../hq", "cas01:443"}, {"..", "x/../y:1"}, {"HQ%", "cas01:443"},
	} {
		file := NewFirstUse("/dir", x[0], x[1], zerolog.Nop()).Place()
		if filepath.Dir(file) != "/dir" || seen[file] || strings.ContainsAny(file, ": ") {
			t.Errorf("%q: %s", x, file)
		}
		seen[file] = true
	}
	if got := NewFirstUse("/dir", "hq", "cas01.contoso.local:443", zerolog.Nop()).Place(); got != "/dir/hq@cas01.contoso.local_443.pin" {
		t.Error(got)
	}
}

func TestParsePin(t *testing.T) {
	c := issue(t, casName, nil, nil)
	for _, p := range []Pin{KeyPin(c.Certificate), CertificatePin(c.Certificate)} {
		if got, err := ParsePin(p.String()); err != nil || got != p {
			t.Errorf("%s: %v %v", p, got, err)
		}
	}
	// As OpenSSL computes them, with the commands that docs/bridging.md gives.
	pemFile := writeFile(t, tempFile(t, "cas.pem"), certPEM(c))
	key := openssl(t, nil, "x509", "-in", pemFile, "-noout", "-pubkey")
	der := openssl(t, []byte(key), "pkey", "-pubin", "-outform", "der")
	sum := openssl(t, []byte(der), "dgst", "-sha256", "-binary")
	if got := "sha256/" + strings.TrimSpace(openssl(t, []byte(sum), "base64")); got != KeyPin(c.Certificate).String() {
		t.Errorf("OpenSSL says %s, we say %s", got, KeyPin(c.Certificate))
	}
	for _, s := range []string{"", "sha256/", "sha256/abc", "sha1/AAAA", KeyPin(c.Certificate).String()[7:], KeyPin(c.Certificate).String() + "\n", "SHA256" + KeyPin(c.Certificate).String()[6:]} {
		if p, err := ParsePin(s); err == nil {
			t.Errorf("%q is read as %s", s, p)
		}
	}
}

// rsaCert makes a self-signed certificate with the kind of key that old servers have.
func rsaCert(t *testing.T) *issued {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{casName}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{leaf, key}
}

// a server of TLS 1.0 with RSA key exchange and 3DES is out of reach by default, and reached where that is asked for.
func TestOldServerR8_5(t *testing.T) {
	cert := rsaCert(t)
	leaf := cert.Certificate
	f := func(name, address string, o BackendOptions, want uint16) {
		t.Helper()
		o.ServerName, o.Pins = casName, []Pin{KeyPin(leaf)}
		cs, err := greet(address, backendConfig(t, o))
		if (err == nil) != (want != 0) || err == nil && (cs.CipherSuite != want || cs.Version > tls.VersionTLS12) {
			t.Errorf("%s: %v, %s %s", name, err, tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite))
		}
	}
	old := BackendOptions{MinVersion: tls.VersionTLS10}
	with := func(version, suite uint16) string {
		return newCAS(t, func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS10, version, []uint16{suite}
		}, cert).address
	}
	tripleDES := with(tls.VersionTLS10, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA)
	f("3DES by default", tripleDES, BackendOptions{}, 0)
	f("3DES", tripleDES, old, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA)
	rc4 := with(tls.VersionTLS10, tls.TLS_RSA_WITH_RC4_128_SHA)
	f("RC4 unasked", rc4, old, 0)
	suites, err := ParseCipherSuites([]string{"TLS_RSA_WITH_RC4_128_SHA"})
	if err != nil {
		t.Fatal(err)
	}
	f("RC4", rc4, BackendOptions{MinVersion: tls.VersionTLS10, CipherSuites: suites}, tls.TLS_RSA_WITH_RC4_128_SHA)
	// TLS 1.2 without forward secrecy: the version is no obstacle, the suite is.
	rsa12 := with(tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_CBC_SHA)
	f("RSA key exchange by default", rsa12, BackendOptions{}, 0)
	f("RSA key exchange by name", rsa12, BackendOptions{CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}}, tls.TLS_RSA_WITH_AES_128_CBC_SHA)
	f("capped", newCAS(t, nil, cert).address, BackendOptions{MaxVersion: tls.VersionTLS12}, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)

	// And a server that is not crypto/tls. Debian's OpenSSL has no 3DES.
	files := []string{
		"-cert", writeFile(t, tempFile(t, "cas.pem"), certPEM(cert)), "-key", writeFile(t, tempFile(t, "cas.key"), keyPEM(t, cert.key)),
	}
	s := startSServer(t, append(files, "-tls1", "-cipher", "AES128-SHA:@SECLEVEL=0")...)
	if _, err := greet(s.address, backendConfig(t, BackendOptions{ServerName: casName, Pins: []Pin{KeyPin(leaf)}})); err == nil {
		t.Error("TLS 1.0 of OpenSSL by default")
	}
	c, err := tls.Dial("tcp", s.address, backendConfig(t, BackendOptions{ServerName: casName, Pins: []Pin{KeyPin(leaf)}, MinVersion: tls.VersionTLS10}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if cs := c.ConnectionState(); cs.Version != tls.VersionTLS10 || cs.CipherSuite != tls.TLS_RSA_WITH_AES_128_CBC_SHA {
		t.Errorf("%s %s", tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite))
	}
	s.say(t, "hello from TLS 1.0")
	if got := readLine(t, c); got != "hello from TLS 1.0" {
		t.Errorf("%q", got)
	}
}

// a server asks for a client certificate in a renegotiation, as IIS does, gets an empty answer, and goes on.
func TestRenegotiationR8_6(t *testing.T) {
	cert := rsaCert(t)
	leaf := cert.Certificate
	files := []string{
		"-cert", writeFile(t, tempFile(t, "cas.pem"), certPEM(cert)), "-key", writeFile(t, tempFile(t, "cas.key"), keyPEM(t, cert.key)),
	}
	for _, version := range []string{"-tls1_2", "-tls1_1"} {
		args := append(files, version)
		o := BackendOptions{ServerName: casName, Pins: []Pin{KeyPin(leaf)}, MaxVersion: tls.VersionTLS12}
		if version == "-tls1_1" {
			args = append(args, "-cipher", "ALL:@SECLEVEL=0")
			o.MinVersion = tls.VersionTLS11
		}
		s := startSServer(t, args...)
		c, err := tls.Dial("tcp", s.address, backendConfig(t, o))
		if err != nil {
			t.Fatal(err)
		}
		s.say(t, "before")
		if got := readLine(t, c); got != "before" {
			t.Fatalf("%q", got)
		}
		s.say(t, "R") // renegotiate, and ask for a certificate
		time.AfterFunc(300*time.Millisecond, func() { s.say(t, "after") })
		if got := readLine(t, c); got != "after" {
			t.Fatalf("%s: after the renegotiation: %q\n%s", version, got, s.out.String())
		}
		fmt.Fprintln(c, "from the client")
		s.until(t, "from the client")
		if !strings.Contains(s.out.String(), "SSL_do_handshake -> 1") {
			t.Errorf("%s: no renegotiation:\n%s", version, s.out.String())
		}
		c.Close()
	}
}

// a server that requires a client certificate, in the handshake or in a renegotiation as IIS does, gets the one that
// is configured; and the next one when the files have changed.
func TestClientCertificateR8_6(t *testing.T) {
	t.Parallel()
	cert := rsaCert(t)
	ca := issue(t, "Contoso Clients", nil, isCA)
	client := func(name string) *issued {
		return issue(t, name, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	}
	first, second := client("autodgate-one"), client("autodgate-two")
	files := []string{
		"-cert", writeFile(t, tempFile(t, "cas.pem"), certPEM(cert)), "-key", writeFile(t, tempFile(t, "cas.key"), keyPEM(t, cert.key)),
		"-CAfile", writeFile(t, tempFile(t, "ca.pem"), certPEM(ca)), "-verify_return_error",
	}
	for _, how := range [][]string{{"-tls1_3", "-Verify", "1"}, {"-tls1_2", "-Verify", "1"}, {"-tls1_2"}, {"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}} {
		renegotiate := how[len(how)-1] != "1"
		s := startSServer(t, append(append([]string{}, files...), how...)...)
		w := watch(t, first)
		o := BackendOptions{ServerName: casName, Pins: []Pin{KeyPin(cert.Certificate)}, ClientCertificate: w.Files}
		if how[0] == "-tls1_1" {
			o.MinVersion = tls.VersionTLS11
		}
		conf := backendConfig(t, o)
		for _, name := range []string{"autodgate-one", "autodgate-two"} {
			if name == "autodgate-two" {
				writeFile(t, w.cert, certPEM(second))
				writeFile(t, w.key, keyPEM(t, second.key))
				w.shows(second)
			}
			c, err := tls.Dial("tcp", s.address, conf)
			if err != nil {
				t.Fatalf("%v: %v", how, err)
			}
			if renegotiate {
				s.say(t, "before")
				if got := readLine(t, c); got != "before" {
					t.Fatalf("%v: %q", how, got)
				}
				s.say(t, "R") // renegotiate, and require a certificate
			}
			time.AfterFunc(200*time.Millisecond, func() { s.say(t, "after") })
			if got := readLine(t, c); got != "after" {
				t.Fatalf("%v: %q\n%s", how, got, s.out.String())
			}
			fmt.Fprintln(c, "from "+name)
			s.until(t, "from "+name)
			s.until(t, "CN = "+name)
			c.Close()
			s.until(t, "DONE")
		}
		if n := strings.Count(s.out.String(), "Reused, "); n > 0 {
			t.Errorf("%v: %d sessions resumed: whoever they began with they would go on as", how, n)
		}
	}
	// Without one, a server that requires it ends the connection.
	s := startSServer(t, append(files, "-tls1_2", "-Verify", "1")...)
	if _, err := greet(s.address, backendConfig(t, BackendOptions{ServerName: casName, Pins: []Pin{KeyPin(cert.Certificate)}})); err == nil {
		t.Error("a server that requires a client certificate took none")
	}
}

// sServer is a running `openssl s_server`: lines said to it go to its client, or
// are commands.
type sServer struct {
	address string
	stdin   io.WriteCloser
	out     safeBuffer
}

func startSServer(t *testing.T, args ...string) *sServer {
	t.Helper()
	program := peer.Need(t, "openssl", "apt-get install openssl")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sServer{address: ln.Addr().String()}
	ln.Close()
	cmd := exec.Command(program, append([]string{"s_server", "-accept", s.address}, args...)...)
	cmd.Stdout, cmd.Stderr = &s.out, &s.out
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.until(t, "ACCEPT")
	return s
}

func (s *sServer) say(t *testing.T, line string) {
	if _, err := io.WriteString(s.stdin, line+"\n"); err != nil {
		t.Error(err)
	}
}

func (s *sServer) until(t *testing.T, text string) {
	t.Helper()
	for start := time.Now(); !strings.Contains(s.out.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("no %q from openssl:\n%s", text, s.out.String())
		}
	}
}

func readLine(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

func TestParseTLSNames(t *testing.T) {
	for s, want := range map[string]uint16{"": 0, "1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		if got, err := ParseVersion(s); got != want || err != nil {
			t.Errorf("%s: %x %v", s, got, err)
		}
	}
	if _, err := ParseVersion("3.0"); err == nil {
		t.Error("SSL 3.0 is read")
	}
	if ids, err := ParseCipherSuites(nil); ids != nil || err != nil {
		t.Errorf("%v %v", ids, err)
	}
	for _, s := range []string{"", "AES128-SHA", "TLS_AES_128_GCM_SHA256"} {
		if ids, err := ParseCipherSuites([]string{s}); err == nil {
			t.Errorf("%q is read as %v", s, ids)
		}
	}
}

func TestLoadRoots(t *testing.T) {
	root := issue(t, "Contoso Root", nil, isCA)
	pool, err := LoadRoots(writeFile(t, tempFile(t, "ca.pem"), certPEM(root)))
	if err != nil || !pool.Equal(func() *x509.CertPool { p := x509.NewCertPool(); p.AddCert(root.Certificate); return p }()) {
		t.Error(err)
	}
	for _, file := range []string{
		tempFile(t, "missing.pem"), writeFile(t, tempFile(t, "empty.pem"), nil),
		writeFile(t, tempFile(t, "broken.pem"), append(certPEM(root), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...)),
	} {
		if _, err := LoadRoots(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
