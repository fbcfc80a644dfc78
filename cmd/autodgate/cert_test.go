package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/autodgate/autodgate/tlsconf"
)

// selfSigned makes a pair for names.
func selfSigned(t *testing.T, names ...string) *tlsconf.Pair {
	t.Helper()
	pair, err := tlsconf.MakeSelfSigned(names, tlsconf.ECDSAP256, time.Now(), time.Now().AddDate(0, 1, 0))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// A host with a PFX is served from it. A new one is shown from the next handshake on while an open connection goes on; a
// broken one changes nothing, and takes no other host down. When it expires stands in the status and in the metrics.
func TestPFXOverTheWire(t *testing.T) {
	dir := t.TempDir()
	put := func(file string, data []byte) {
		t.Helper()
		if err := tlsconf.WriteFile(filepath.Join(dir, file), data, 0o600, true); err != nil {
			t.Fatal(err)
		}
	}
	putPFX := func(file string, pair *tlsconf.Pair) {
		t.Helper()
		data, err := tlsconf.EncodePFX(pair.Key, pair.Chain, "secret", true)
		if err != nil {
			t.Fatal(err)
		}
		put(file, data)
	}
	first, second := selfSigned(t, "mail.contoso.com"), selfSigned(t, "mail.contoso.com")
	late := selfSigned(t, "late.contoso.com")
	putPFX("mail.pfx", first)
	put("late.pfx", []byte("garbage"))
	put("pass", []byte("secret\r\n"))
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: "127.0.0.1:0"}
hosts:
  mail.contoso.com: {certificate: {pfx: `+dir+`/mail.pfx, password_file: `+dir+`/pass}, answer: true}
  late.contoso.com: {certificate: {pfx: `+dir+`/late.pfx, password_file: `+dir+`/pass}, answer: true}
domains: {contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}}
`)
	roots := x509.NewCertPool()
	for _, p := range []*tlsconf.Pair{first, second, late} {
		roots.AddCert(p.Chain[0])
	}
	dial := func(name string) (*tls.Conn, error) {
		return tls.Dial("tcp", front.https[0], &tls.Config{ServerName: name, RootCAs: roots})
	}
	// until waits for a handshake that shows the pair.
	until := func(name string, pair *tlsconf.Pair) *tls.Conn {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			c, err := dial(name)
			if err == nil && c.ConnectionState().PeerCertificates[0].Equal(pair.Chain[0]) {
				t.Cleanup(func() { c.Close() })
				return c
			}
			if err == nil {
				c.Close()
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not show its certificate: %v", name, err)
			}
		}
	}
	ask := func(c *tls.Conn) {
		t.Helper()
		if _, err := io.WriteString(c, "GET /none HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 404 {
			t.Fatalf("%d, %v", resp.StatusCode, err)
		}
	}
	open := until("mail.contoso.com", first)
	ask(open)
	if c, err := dial("late.contoso.com"); err == nil {
		c.Close()
		t.Error("a host without a certificate ends a handshake")
	}

	putPFX("mail.pfx", second)
	putPFX("late.pfx", late)
	until("mail.contoso.com", second)
	until("late.contoso.com", late)
	ask(open) // that was opened with the first
	put("late.pfx", []byte("garbage"))

	get := func(path string) string {
		t.Helper()
		resp, err := http.Get("http://" + front.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	end := second.Chain[0].NotAfter
	if s := get("/metrics"); !strings.Contains(s, fmt.Sprintf("\nautodgate_certificate_not_after_seconds{host=\"mail.contoso.com\"} %d\n", end.Unix())) {
		t.Errorf("metrics:\n%s", s)
	}
	if s := get("/status"); !strings.Contains(s, `"host": "late.contoso.com"`) || !strings.Contains(s, `"not_after": "`+end.UTC().Format(time.RFC3339)+`"`) {
		t.Errorf("status:\n%s", s)
	}
}

// cert list and cert export find what certmagic has stored, by certmagic's own names for it.
func TestStoredPairOfACME(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "front.yaml")
	if err := os.WriteFile(file, []byte(`
certificates: {storage: state, acme: {email: hostmaster@contoso.com}}
hosts: {mail.contoso.com: {certificate: acme, redirect: owa.contoso.com}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := storedPair(context.Background(), cfg, "mail.contoso.com"); err != errNoneYet { //nolint:errorlint // the very one
		t.Errorf("nothing stored: %v", err)
	}
	storage := &certmagic.FileStorage{Path: filepath.Join(dir, "state")}
	older := selfSigned(t, "mail.contoso.com")
	newer, err := tlsconf.MakeSelfSigned([]string{"mail.contoso.com"}, tlsconf.ECDSAP256, time.Now(), time.Now().AddDate(0, 2, 0))
	if err != nil {
		t.Fatal(err)
	}
	for issuer, pair := range map[string]*tlsconf.Pair{"first-issuer": older, "second-issuer": newer} {
		keyPEM, err := tlsconf.KeyPEM(pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range map[string][]byte{
			certmagic.StorageKeys.SiteCert(issuer, "mail.contoso.com"):       tlsconf.CertificatesPEM(pair.Chain...),
			certmagic.StorageKeys.SitePrivateKey(issuer, "mail.contoso.com"): keyPEM,
		} {
			if err := storage.Store(context.Background(), key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	pair, where, err := storedPair(context.Background(), cfg, "mail.contoso.com")
	if err != nil || !pair.Chain[0].Equal(newer.Chain[0]) || !strings.Contains(where, "second-issuer") {
		t.Errorf("%v from %s, want the one that lasts longer", err, where)
	}
	if l := listCertificate(context.Background(), cfg, "mail.contoso.com", newer.Chain[0].NotAfter.AddDate(0, 0, -2)); l.Status != certSoon || *l.DaysLeft != 2 {
		t.Errorf("two days before the end: %s, %d", l.Status, *l.DaysLeft)
	}
	l := listCertificate(context.Background(), cfg, "mail.contoso.com", time.Now().AddDate(1, 0, 0))
	if l.Status != certExpired || !strings.Contains(l.Problem, "expired on") {
		t.Errorf("a year later: %s, %s", l.Status, l.Problem)
	}
}

// A file that holds certificate and key is not overwritten with the certificate alone: the key is nowhere else.
func TestCertImportKeepsTheKey(t *testing.T) {
	pair := selfSigned(t, "mail.contoso.com")
	key, err := tlsconf.KeyPEM(pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	both, answer := filepath.Join(dir, "both.pem"), filepath.Join(dir, "answer.cer")
	want := append(key, tlsconf.CertificatesPEM(pair.Chain...)...)
	if err := os.WriteFile(both, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(answer, pair.Chain[0].Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if code := run([]string{"cert", "import", answer, "--key", both, "--out", both, "--force"}, &out, &out); code == 0 || !strings.Contains(out.String(), "holds the key") {
		t.Errorf("status %d: %s", code, out.String())
	}
	if got, err := os.ReadFile(both); err != nil || string(got) != string(want) {
		t.Errorf("the key is lost: %v", err)
	}
}
