package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/lab"
	"github.com/autodgate/autodgate/tlsconf"
)

// pemFiles makes certificates for tests, as files in one directory.
type pemFiles struct {
	t   testing.TB
	dir string
}

func (p pemFiles) path(name string) string { return filepath.Join(p.dir, name) }

func (p pemFiles) write(name, kind string, der []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// issue writes NAME.pem and NAME.key, signed by the issuer or, if that is nil, by itself.
func (p pemFiles) issue(name string, issuer *tls.Certificate, isRSA bool, change func(*x509.Certificate)) *tls.Certificate {
	p.t.Helper()
	var key crypto.Signer
	var err error
	if isRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	change(tmpl)
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey.(crypto.Signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(name+".pem", "CERTIFICATE", der)
	p.write(name+".key", "PRIVATE KEY", pkcs8)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func isServer(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = names, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
}

func isCA(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

func isClient(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// sClient makes one handshake with openssl s_client and returns what it said.
func sClient(t *testing.T, address string, args ...string) (said string, ok bool) {
	t.Helper()
	path := peer.Need(t, "openssl", "apt-get install openssl")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"s_client", "-brief", "-connect", address}, args...)...)
	// Behind a handshake of TLS 1.3 the refusal of a client comes with the first answer.
	cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
	cmd.Args = append(cmd.Args, "-ign_eof")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s: %s", cmd, out)
	}
	return string(out), err == nil && !strings.Contains(string(out), "alert")
}

// threeProfiles is a front door with a host for each profile and one that does not say,
// all on one port, with RSA keys as Exchange makes them. Who names no host is at the
// one with the profile old, as Windows XP is.
func threeProfiles(t *testing.T) *frontDoor {
	t.Helper()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	go func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "* OK ready\r\n* BYE\r\n")
			c.Close()
		}
	}()
	mail := fmt.Sprintf("mail: {imaps: bridge, backend: \"tcp://%s\", offload: true}", backend.Addr())
	return startFront(t, "front.yaml", fmt.Sprintf(`
listen: {https: ["127.0.0.1:0"], http: [], admin: [], imaps: ["127.0.0.1:0"]}
certificates: {storage: %s}
hosts:
  modern.contoso.com: {certificate: self_signed, tls: {profile: modern}, redirect: mail.contoso.com, %[2]s}
  intermediate.contoso.com: {certificate: self_signed, tls: {profile: intermediate}, redirect: mail.contoso.com, %[2]s}
  old.contoso.com: {certificate: self_signed, tls: {profile: old}, redirect: mail.contoso.com, default: true, %[2]s}
  unsaid.contoso.com: {certificate: self_signed, redirect: mail.contoso.com, %[2]s}
`, t.TempDir(), mail))
}

// what each host takes of old clients, on one port, for the web and for mail;
// intermediate is what holds when nothing is said. A client without SNI has the
// profile of the default host.
func TestOpenSSLVersionsPerHost(t *testing.T) {
	front := threeProfiles(t)
	for _, address := range []string{front.https[0], front.mail["imaps"][0]} {
		for name, oldest := range map[string]int{
			"modern.contoso.com": 3, "intermediate.contoso.com": 2, "unsaid.contoso.com": 2, "old.contoso.com": 0, "": 0,
		} {
			sni := []string{"-noservername"}
			if name != "" {
				sni = []string{"-servername", name}
			}
			for i, version := range []string{"-tls1", "-tls1_1", "-tls1_2", "-tls1_3"} {
				out, ok := sClient(t, address, append(sni, version, "-cipher", "ALL:@SECLEVEL=0")...)
				if ok != (i >= oldest) || ok && !strings.Contains(out, "Protocol version: "+[]string{"TLSv1\n", "TLSv1.1\n", "TLSv1.2\n", "TLSv1.3\n"}[i]) {
					t.Errorf("%q at %s, %s: %v, %s", name, address, version, ok, out)
				}
			}
		}
	}
	// What Windows XP would get: RSA key exchange, without forward secrecy.
	if out, ok := sClient(t, front.https[0], "-noservername", "-tls1", "-cipher", "AES128-SHA:@SECLEVEL=0"); !ok || !strings.Contains(out, "Ciphersuite: AES128-SHA") {
		t.Errorf("RSA key exchange: %s", out)
	}
}

// offers is what a scanner has found, or a profile says: versions, suites by version,
// and groups, as words.
type offers struct{ versions, suites, groups []string }

// profileOffers is what a scanner should find of a profile with an RSA key. Neither
// scanner of Debian 12 knows ML-KEM.
func profileOffers(p tlsconf.Profile) (o offers) {
	pol := p.Policy()
	for v := pol.MinVersion; v <= tls.VersionTLS13; v++ {
		name := strings.TrimPrefix(tls.VersionName(v), "TLS ")
		o.versions = append(o.versions, name)
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if slices.Contains(s.SupportedVersions, v) && (v == tls.VersionTLS13 || slices.Contains(pol.Suites, s.ID) && !strings.Contains(s.Name, "ECDSA")) {
				o.suites = append(o.suites, fmt.Sprintf("%s %04x", name, s.ID))
			}
		}
	}
	for _, id := range pol.Curves {
		if id != tls.X25519MLKEM768 {
			o.groups = append(o.groups, fmt.Sprintf("%04x", uint16(id)))
		}
	}
	return o
}

// differs says in which way what was found is not what was wanted; "" if it is.
func (o offers) differs(want offers) string {
	var diff []string
	for _, c := range []struct {
		kind      string
		got, want []string
	}{{"versions", o.versions, want.versions}, {"suites", o.suites, want.suites}, {"groups", o.groups, want.groups}} {
		slices.Sort(c.got)
		slices.Sort(c.want)
		if got := slices.Compact(c.got); !slices.Equal(got, c.want) {
			diff = append(diff, fmt.Sprintf("%s: %q, want %q", c.kind, got, c.want))
		}
	}
	return strings.Join(diff, "\n")
}

// sslscan and testssl.sh find what each profile says and nothing else, in hosts
// on one port.
func TestScannersAgreeWithTheProfiles(t *testing.T) {
	sslscan := peer.Need(t, "sslscan", "apt-get install sslscan")
	testssl, err := exec.LookPath("testssl.sh")
	if err != nil {
		testssl = peer.Need(t, "testssl", "apt-get install testssl.sh")
	}
	front := threeProfiles(t)
	_, port, err := net.SplitHostPort(front.https[0])
	if err != nil {
		t.Fatal(err)
	}
	// They take a server that is late for one that refuses: on a busy machine one run can
	// be wrong, three cannot.
	agrees := func(what string, want offers, scan func(file string) (offers, error)) {
		for run := 1; ; run++ {
			got, err := scan(filepath.Join(t.TempDir(), "report"))
			diff := got.differs(want)
			switch {
			case err == nil && diff == "":
				return
			case run == 3:
				t.Errorf("%s: %v\n%s", what, err, diff)
				return
			}
		}
	}
	var running sync.WaitGroup
	for _, p := range tlsconf.Profiles() {
		host, all := string(p)+".contoso.com", profileOffers(p)
		running.Go(func() {
			agrees("sslscan of "+host, all, func(file string) (offers, error) { return sslscanOffers(t, sslscan, front.https[0], host, file) })
		})
		want := profileOffers(p)
		want.groups = nil // which would take it half as long again
		for i, s := range want.suites {
			_, want.suites[i], _ = strings.Cut(s, " ") // it lists them without versions
		}
		slices.Sort(want.suites)
		want.suites = slices.Compact(want.suites)
		running.Go(func() {
			agrees("testssl.sh of "+host, want, func(file string) (offers, error) { return testsslOffers(t, testssl, host+":"+port, file) })
		})
	}
	running.Wait()
}

// scanned runs a scanner and returns the report it writes.
func scanned(t *testing.T, file, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = filepath.Dir(file)
	out, failed := cmd.CombinedOutput() // the exit status counts what they dislike
	report, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, errors.Join(failed, err), out)
	}
	return report, nil
}

func sslscanOffers(t *testing.T, path, address, host, file string) (o offers, err error) {
	report, err := scanned(t, file, path, "--no-renegotiation", "--no-heartbleed", "--no-compression", "--no-fallback", "--timeout=30",
		"--sni-name="+host, "--xml="+file, address)
	if err != nil {
		return o, err
	}
	var scan struct {
		Protocols []struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
			Enabled string `xml:"enabled,attr"`
		} `xml:"ssltest>protocol"`
		Ciphers []struct {
			Version string `xml:"sslversion,attr"`
			ID      string `xml:"id,attr"`
		} `xml:"ssltest>cipher"`
		Groups []struct {
			ID string `xml:"id,attr"`
		} `xml:"ssltest>group"`
	}
	if err := xml.Unmarshal(report, &scan); err != nil {
		return o, fmt.Errorf("%w\n%s", err, report)
	}
	for _, p := range scan.Protocols {
		if p.Enabled == "1" {
			o.versions = append(o.versions, strings.TrimPrefix(p.Type+p.Version, "tls"))
		}
	}
	for _, c := range scan.Ciphers {
		o.suites = append(o.suites, strings.TrimPrefix(c.Version, "TLSv")+" "+number(c.ID))
	}
	for _, g := range scan.Groups {
		o.groups = append(o.groups, number(g.ID))
	}
	return o, nil
}

func testsslOffers(t *testing.T, path, target, file string) (o offers, err error) {
	report, err := scanned(t, file, path, "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1",
		"--protocols", "--each-cipher", "--jsonfile", file, target)
	if err != nil {
		return o, err
	}
	var findings []struct{ ID, Finding string }
	if err := json.Unmarshal(report, &findings); err != nil {
		return o, fmt.Errorf("%w\n%s", err, report)
	}
	protocols := map[string]string{"SSLv2": "ssl2", "SSLv3": "ssl3", "TLS1": "1.0", "TLS1_1": "1.1", "TLS1_2": "1.2", "TLS1_3": "1.3"}
	for _, f := range findings {
		version, ok := protocols[f.ID]
		switch {
		case ok && strings.HasPrefix(f.Finding, "offered"):
			o.versions = append(o.versions, version)
		case strings.HasPrefix(f.ID, "cipher_x"):
			o.suites = append(o.suites, number(strings.TrimPrefix(f.ID, "cipher_")))
		}
	}
	return o, nil
}

// number brings what scanners write as hexadecimal numbers (0xC02F, xc02f, x0a) into
// one form.
func number(text string) string {
	return fmt.Sprintf("%04s", strings.TrimLeft(strings.ToLower(text), "0x"))
}

// Client certificates from the file to the wire: who is let in where, what the servers
// are told, and that neither Host nor a resumed session leads past the check.
func TestClientCertificatesFromTheFile(t *testing.T) {
	files := pemFiles{t, t.TempDir()}
	files.issue("mail", nil, true, isServer("mail.contoso.com", "twin.contoso.com", "open.contoso.com", "asks.contoso.com", "silent.contoso.com", "old.contoso.com", "broken.contoso.com"))
	ca := files.issue("ca", nil, false, isCA)
	pat := files.issue("pat", ca, false, isClient)
	files.issue("stranger", files.issue("other", nil, false, isCA), false, isClient)
	var got http.Header
	backend := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	t.Cleanup(backend.Close)
	text := fmt.Sprintf(`
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: require, client_ca: ca.pem, client_certificate_headers: true}, site: hq}
  twin.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: require, client_ca: ca.pem, client_certificate_headers: true}, site: hq}
  silent.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: require, client_ca: ca.pem}, site: hq}
  asks.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: request, client_ca: ca.pem, client_certificate_headers: true}, site: hq}
  open.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, site: hq, default: true}
  old.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {profile: old}, site: hq}
  broken.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: require, client_ca: absent.pem}, site: hq}
sites:
  hq: {servers: ["%s"], allow_internal_untrusted_certs: true}
`, backend.URL)
	cfg, report := config.Parse(files.path("front.yaml"), []byte(text))
	if !report.OK() {
		t.Fatal(report.String())
	}
	log := &syncBuffer{}
	front, err := newFrontDoor(cfg, zerolog.New(log), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := front.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		front.shutdown(ctx)
	})
	shown := []string{"-cert", files.path("pat.pem"), "-key", files.path("pat.key")}
	stranger := []string{"-cert", files.path("stranger.pem"), "-key", files.path("stranger.key")}
	check := func(sni string, client []string, want bool, alert string) {
		t.Helper()
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			out, ok := sClient(t, front.https[0], append([]string{"-servername", sni, version}, client...)...)
			if ok != want || !strings.Contains(out, alert) {
				t.Errorf("%s %s, %q: %v, want %v\n%s", sni, version, client, ok, want, out)
			}
		}
	}
	check("mail.contoso.com", shown, true, "")
	check("mail.contoso.com", nil, false, "alert") // handshake_failure, since TLS 1.3 certificate_required
	check("mail.contoso.com", stranger, false, "alert unknown ca")
	check("asks.contoso.com", shown, true, "")
	check("asks.contoso.com", nil, true, "")
	check("asks.contoso.com", stranger, false, "alert unknown ca")
	check("open.contoso.com", nil, true, "")
	check("broken.contoso.com", shown, false, "unrecognized name")
	for _, text := range []string{
		"CA file " + files.path("absent.pem") + " cannot be read", "client_auth: require, and the client has none", "no CA in client_ca has issued",
	} {
		log.waitFor(t, text)
	}

	// request asks for a host over a connection made for another.
	cache := tls.NewLRUClientSessionCache(10)
	request := func(sni, host string, client *tls.Certificate) (status int, resumed bool, err error) {
		t.Helper()
		conf := &tls.Config{InsecureSkipVerify: true, ServerName: sni, ClientSessionCache: cache}
		if client != nil {
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
		}
		tr := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", front.https[0])
		}}
		defer tr.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/owa/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Client-Cert", ":Zm9yZ2Vk:")
		got = nil
		resp, err := tr.RoundTrip(r)
		if err != nil {
			return 0, false, err
		}
		resp.Body.Close()
		return resp.StatusCode, resp.TLS.DidResume, nil
	}
	for _, c := range []struct {
		sni, host string
		want      int
		chain     string
	}{
		{"mail.contoso.com", "mail.contoso.com", 200, "shown"},
		{"asks.contoso.com", "asks.contoso.com", 200, "shown"},
		{"open.contoso.com", "open.contoso.com", 200, ""},
		{"silent.contoso.com", "silent.contoso.com", 200, ""},
		{"mail.contoso.com", "twin.contoso.com", 200, "shown"}, // in everything alike
		{"open.contoso.com", "mail.contoso.com", 421, ""},
		{"asks.contoso.com", "mail.contoso.com", 421, ""},
		{"silent.contoso.com", "mail.contoso.com", 421, ""},
		{"mail.contoso.com", "open.contoso.com", 421, ""},
		{"old.contoso.com", "open.contoso.com", 421, ""},
		{"", "mail.contoso.com", 421, ""}, // by way of the default host
		{"", "old.contoso.com", 421, ""},
		{"", "open.contoso.com", 200, ""},
	} {
		status, _, err := request(c.sni, c.host, pat)
		if err != nil || status != c.want {
			t.Errorf("SNI %q, Host %s: %d, %v, want %d", c.sni, c.host, status, err, c.want)
		}
		if told := got.Get("Client-Cert"); (told != "") != (c.chain == "shown") || strings.Contains(told, "Zm9yZ2Vk") || (got.Get("Client-Cert-Chain") != "") != (c.chain == "shown") {
			t.Errorf("SNI %q, Host %s: the server was told %q", c.sni, c.host, told)
		}
	}

	// The CA file changes under a session.
	if status, resumed, err := request("mail.contoso.com", "mail.contoso.com", pat); err != nil || status != 200 || !resumed {
		t.Fatalf("%d, resumed %v, %v", status, resumed, err)
	}
	data, err := os.ReadFile(files.path("other.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.path("ca.pem"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, "CAs of client certificates changed")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // three hosts watch the file, each for itself
		status, resumed, err := request("mail.contoso.com", "mail.contoso.com", pat)
		if err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("let in behind a CA that is gone: %d, resumed %v", status, resumed)
		}
	}
	check("mail.contoso.com", stranger, true, "")
}

// check names a file of client CAs that cannot be used; a host with the profile old that
// shows a key which old clients cannot use is warned about.
func TestPoliciesAreChecked(t *testing.T) {
	files := pemFiles{t, t.TempDir()}
	files.issue("mail", nil, false, isServer("mail.contoso.com", "owa.contoso.com"))
	text := `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {client_auth: require, client_ca: mail.key}, site: hq}
  owa.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, tls: {profile: old}, site: hq}
sites:
  hq: {servers: ["https://cas01.contoso.local"]}
`
	if err := os.WriteFile(files.path("front.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	status := run([]string{"check", "--config", files.path("front.yaml")}, &out, &said)
	for _, want := range []string{"THE TLS OF owa.contoso.com IS NOT SAFE", "error: host mail.contoso.com: client_ca: CA file " + files.path("mail.key") + ": "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("check does not say %q:\n%s", want, &out)
		}
	}
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	cfg, report := config.Parse(files.path("front.yaml"), []byte(text))
	if !report.OK() {
		t.Fatal(report.String())
	}
	log := &syncBuffer{}
	front, err := newFrontDoor(cfg, zerolog.New(log), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.shutdown(context.Background()) })
	for _, want := range []string{`"host":"owa.contoso.com","key":"ECDSA"`, "need an RSA key", "no CAs of client certificates"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// The lab's key log has the sessions of both sides, in lines that Wireshark reads, in a
// file of the user's own; who asks for it is told what it means.
func TestLabKeyLog(t *testing.T) {
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys.log")
	var out, said bytes.Buffer
	if err := runLab(t.Context(), &out, &said, s, labOptions{once: true, quiet: true, keylog: file}); err != nil {
		t.Log(err) // TestLabOnce is about what the table says
	}
	if !strings.Contains(said.String(), "KEY LOG: whoever reads "+file) {
		t.Errorf("the lab says %q", &said)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || len(fields[1]) != 64 {
			t.Fatalf("%q", line)
		}
		labels[fields[0]]++
	}
	if labels["CLIENT_TRAFFIC_SECRET_0"] < 2 || labels["SERVER_TRAFFIC_SECRET_0"] != labels["CLIENT_TRAFFIC_SECRET_0"] {
		t.Errorf("%v", labels)
	}
	if err := runLab(t.Context(), &out, &said, s, labOptions{once: true, keylog: filepath.Join(file, "x")}); err == nil || !strings.Contains(err.Error(), "--keylog") {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

// The program that serves has no key log: not by the environment variable that browsers
// heed, not by a flag, not by a key of the config.
func TestServeHasNoKeyLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.log")
	t.Setenv("SSLKEYLOGFILE", file)
	dir := t.TempDir()
	text := fmt.Sprintf(`
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: %s}
hosts:
  mail.contoso.com: {certificate: self_signed, redirect: owa.contoso.com}
`, dir)
	name := filepath.Join(dir, "autodgate.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &syncBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		cfg, _, err := readConfig(name)
		if err == nil {
			err = serve(ctx, cfg, name, zerolog.New(log))
		}
		done <- err
	}()
	log.waitFor(t, "serving")
	_, address, _ := strings.Cut(log.String(), `"address":"`)
	address, _, _ = strings.Cut(address, `"`)
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"})
	if err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("there is a key log: %v", err)
	}
	var out, said bytes.Buffer
	if status := run([]string{"serve", "--config", name, "--keylog", file}, &out, &said); status != 2 || !strings.Contains(said.String(), "unknown flag: --keylog") {
		t.Errorf("%d, %s", status, &said)
	}
	if schema := strings.ToLower(string(config.Schema())); strings.Contains(schema, "keylog") || strings.Contains(schema, "key_log") {
		t.Error("the config knows of a key log")
	}
}
