package tlsconf

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

func rootsOf(certs ...*issued) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c.Certificate)
	}
	return p
}

func bare509(list []*issued) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range list {
		out = append(out, c.Certificate)
	}
	return out
}

// crossSigned is a certificate for the name and key of another, by another issuer.
func crossSigned(t *testing.T, c, issuer *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	template := *c.Certificate
	template.AuthorityKeyId = nil
	if change != nil {
		change(&template)
	}
	der, err := x509.CreateCertificate(nil, &template, issuer.Certificate, c.key.Public(), issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{parsed, c.key}
}

// Of several ways the one to a known root is taken, then one on which nothing is expired, then one to a root at hand, then
// the first. The root itself is not sent.
func TestChainOfCrossSigned(t *testing.T) {
	oldRoot, newRoot := issue(t, "Old Root", nil, isCA), issue(t, "New Root", nil, isCA)
	issuing := issue(t, "Issuing", oldRoot, isCA)
	byNew := crossSigned(t, issuing, newRoot, nil)
	expired := crossSigned(t, issuing, newRoot, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	leaf := issue(t, "mail.contoso.com", issuing, dns("mail.contoso.com"))
	f := func(name string, bag []*issued, roots *x509.CertPool, root *issued, want ...*issued) {
		t.Helper()
		p, _, err := NewPair(bare509(bag), nil, leaf.key, roots, time.Now())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if !slices.EqualFunc(p.Chain, want, func(c *x509.Certificate, w *issued) bool { return c.Equal(w.Certificate) }) {
			var got []string
			for _, c := range p.Chain {
				got = append(got, displayName(c)+" by "+issuerName(c))
			}
			t.Errorf("%s: %q", name, got)
		}
		if root == nil && p.Root != nil || root != nil && !root.Equal(p.Root) {
			t.Errorf("%s: root %v", name, p.Root)
		}
	}
	none := x509.NewCertPool()
	all := []*issued{leaf, issuing, byNew, oldRoot, newRoot}
	f("the old root is known", all, rootsOf(oldRoot), oldRoot, leaf, issuing)
	f("the new root is known", all, rootsOf(newRoot), newRoot, leaf, byNew)
	f("the new root is known, and not in the bag", []*issued{leaf, issuing, byNew}, rootsOf(newRoot), nil, leaf, byNew)
	f("neither is known", all, none, oldRoot, leaf, issuing)
	f("one of the ways ends in the bag", []*issued{leaf, issuing, byNew, newRoot}, none, newRoot, leaf, byNew)
	f("one of the ways is expired", []*issued{leaf, expired, issuing}, none, nil, leaf, issuing)
	f("twice the same", []*issued{leaf, issuing, issuing, leaf, oldRoot}, none, oldRoot, leaf, issuing)
	f("alone", []*issued{leaf}, none, nil, leaf)
}

// Two CAs that have signed each other, and many more, do not keep anybody busy.
func TestChainIsBounded(t *testing.T) {
	a, b := issue(t, "A", nil, isCA), issue(t, "B", nil, isCA)
	bag := []*issued{crossSigned(t, a, b, nil), crossSigned(t, b, a, nil)}
	leaf := issue(t, "mail.contoso.com", a, dns("mail.contoso.com"))
	for i := range 40 {
		serial := func(c *x509.Certificate) {
			c.Subject.CommonName = "A"
			c.NotAfter = c.NotAfter.Add(time.Duration(i) * time.Second)
		}
		bag = append(bag, crossSigned(t, a, b, serial), crossSigned(t, b, a, func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Duration(i) * time.Second) }))
	}
	start := time.Now()
	p, _, err := NewPair(bare509(append([]*issued{leaf}, bag...)), nil, leaf.key, x509.NewCertPool(), time.Now())
	if err != nil || len(p.Chain) > maxPath || len(p.Chain) < 2 {
		t.Errorf("%d certificates, %v", len(p.Chain), err)
	}
	if d := time.Since(start); d > 30*time.Second { // it is a fraction of one; without a bound it does not end
		t.Errorf("took %v", d)
	}
}

// Of a certificate and its renewal with the same key the newer one is shown.
func TestNewestCertificateOfAKey(t *testing.T) {
	root := issue(t, "Root", nil, isCA)
	old := issue(t, "mail.contoso.com", root, dns("mail.contoso.com"))
	renewed := crossSigned(t, old, root, func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(time.Minute) })
	for _, bag := range [][]*issued{{old, renewed, root}, {renewed, old, root}} {
		p, _, err := NewPair(bare509(bag), nil, old.key, nil, time.Now())
		if err != nil || !renewed.Equal(p.Chain[0]) {
			t.Errorf("the older one: %v", err)
		}
	}
}

// What CAs send is read in every form; what is something else is called what it is.
func TestParseCertificates(t *testing.T) {
	c := newCompany(t)
	p7b, p7bPEM := filepath.Join(c.dir, "a.p7b"), filepath.Join(c.dir, "b.p7b")
	openssl(t, nil, "crl2pkcs7", "-nocrl", "-certfile", c.all, "-outform", "DER", "-out", p7b)
	openssl(t, nil, "crl2pkcs7", "-nocrl", "-certfile", c.all, "-out", p7bPEM)
	empty, csr, csrDER := filepath.Join(c.dir, "empty.p7b"), filepath.Join(c.dir, "a.csr"), filepath.Join(c.dir, "b.csr")
	pfx, signed := filepath.Join(c.dir, "a.pfx"), filepath.Join(c.dir, "signed.p7s")
	openssl(t, nil, "crl2pkcs7", "-nocrl", "-outform", "DER", "-out", empty)
	openssl(t, nil, "req", "-new", "-key", c.keyPEM, "-subj", "/CN=a", "-out", csr)
	openssl(t, nil, "req", "-new", "-key", c.keyPEM, "-subj", "/CN=a", "-outform", "DER", "-out", csrDER)
	openssl(t, nil, "pkcs12", "-export", "-in", c.leafPEM, "-inkey", c.keyPEM, "-passout", "pass:", "-out", pfx)
	openssl(t, []byte("text"), "smime", "-sign", "-signer", c.leafPEM, "-inkey", c.keyPEM, "-outform", "DER", "-out", signed)
	for name, f := range map[string]struct {
		file string
		want int
	}{
		"PEM": {c.all, 3}, "DER": {c.file(t, "leaf.cer", c.leaf.Raw), 1}, "PKCS #7": {p7b, 3}, "PKCS #7 in PEM": {p7bPEM, 3},
		"DER, several": {c.file(t, "two.cer", slices.Concat(c.leaf.Raw, c.root.Raw)), 2},
		"a signature":  {signed, 1},
		"PEM with CRLF and words around it, as it comes in a mail": {
			c.file(t, "mail.txt", []byte("Dear customer,\r\n\r\n"+strings.ReplaceAll(string(certPEM(c.leaf)), "\n", "\r\n")+"\r\nYours")), 1,
		},
	} {
		if certs, err := ReadCertificates(f.file); err != nil || len(certs) != f.want {
			t.Errorf("%s: %d certificates, %v, want %d", name, len(certs), err, f.want)
		}
	}
	for _, f := range []struct{ name, file, want string }{
		{"request", csr, "it is a request, not the CA's answer to it"},
		{"request, DER", csrDER, "it is a request, not the CA's answer to it"},
		{"PFX", pfx, "it is a PFX (PKCS #12), which takes a password"},
		{"empty bundle", empty, "the PKCS #7 bundle holds no certificate"},
		{"key", c.keyPEM, "no certificate in it"},
		{"empty", c.file(t, "nothing", nil), "no certificate in it, the file is empty"},
		{"ASN.1", c.file(t, "asn1", []byte{0x30, 0x03, 0x02, 0x01, 0x01}), "it is neither a certificate nor a PKCS #7 bundle"},
	} {
		if _, err := ReadCertificates(f.file); err == nil || err.Error() != "certificate "+f.file+": "+f.want {
			t.Errorf("%s: %v, want %s", f.name, err, f.want)
		}
	}
	if !IsPFX(pfx) || IsPFX(p7b) || IsPFX(c.all) || IsPFX(c.dir) {
		t.Error("a PFX is not told from other files")
	}
}

// The chain is fetched step by step, in DER and as PKCS #7, and what is no issuer is not taken for one.
func TestFetchIssuers(t *testing.T) {
	served := map[string][]byte{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := served[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	at := func(paths ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.IsCA = strings.HasPrefix(c.Subject.CommonName, "CA")
			for _, p := range paths {
				c.IssuingCertificateURL = append(c.IssuingCertificateURL, strings.Replace(p, "http:", srv.URL, 1))
			}
		}
	}
	root := issue(t, "CA root", nil, isCA)
	upper := issue(t, "CA upper", root, at("http:/root"))
	lower := issue(t, "CA lower", upper, at("ldap:///CN=upper", "http:/gone", "http:/upper.p7c"))
	leaf := issue(t, "mail.contoso.com", lower, at("http:/lower.cer"))
	dir := t.TempDir()
	bundle := filepath.Join(dir, "upper.p7c")
	openssl(t, nil, "crl2pkcs7", "-nocrl", "-certfile", writeFile(t, filepath.Join(dir, "upper.pem"), certPEM(upper)), "-outform", "DER", "-out", bundle)
	var err error
	if served["/upper.p7c"], err = readRegular(bundle); err != nil {
		t.Fatal(err)
	}
	served["/lower.cer"], served["/root"] = lower.Raw, root.Raw

	fetched, err := FetchIssuers(context.Background(), srv.Client(), leaf.Certificate, nil)
	if err != nil || !slices.EqualFunc(fetched, []*issued{lower, upper, root}, func(c *x509.Certificate, w *issued) bool { return c.Equal(w.Certificate) }) {
		t.Errorf("fetched %q, %v", displayNames(fetched), err)
	}
	if fetched, err = FetchIssuers(context.Background(), srv.Client(), leaf.Certificate, bare509([]*issued{lower, root})); err != nil || len(fetched) != 1 {
		t.Errorf("with two at hand: %q, %v", displayNames(fetched), err)
	}
	f := func(name string, leaf *issued, want string) {
		t.Helper()
		if _, err := FetchIssuers(context.Background(), srv.Client(), leaf.Certificate, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	f("no URL", issue(t, "a", lower, nil), `certificate "a" does not say where that of its issuer "CA lower" is`)
	f("another CA", issue(t, "a", lower, at("http:/root")), `is not the issuer of "a"`)
	f("not there", issue(t, "a", lower, at("http:/gone")), "answers 404 Not Found")
	served["/garbage"] = []byte("<html>")
	f("no certificate", issue(t, "a", lower, at("http:/garbage")), "no certificate in it")
	f("a file", issue(t, "a", lower, at("file:///etc/passwd")), "is not fetched, only http and https")
}

func TestHostNames(t *testing.T) {
	got, err := HostNames("Mail.Contoso.com.", "*.contoso.com", "mail.contoso.com", "SERVER01", "bücher.example", "192.0.2.1", "2001:DB8::0:1")
	if want := "mail.contoso.com *.contoso.com server01 xn--bcher-kva.example 192.0.2.1 2001:db8::1"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("%q, %v, want %s", got, err, want)
	}
	for _, bad := range []string{"", ".", "*", "*.com", "a.*.com", "mail@contoso.com", "https://mail.contoso.com", "mail.contoso.com:443", "a b", "a/b", "a..b", ".a", "-", strings.Repeat("a.", 130) + "b"} {
		if got, err := HostNames("good.example", bad); err == nil {
			t.Errorf("%q is taken for a host name: %q", bad, got)
		}
	}
}

func TestParseSubject(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"C=us, O=Contoso, CN=a":         "CN=a,O=Contoso,C=US",
		`O="Contoso, Ltd.", S=Bayern`:   `O=Contoso\, Ltd.,ST=Bayern`,
		`o = Contoso\, Ltd. ,L=München`: `O=Contoso\, Ltd.,L=München`,
		"OU=a,OU=b":                     "OU=a+OU=b",
		"O=a=b":                         "O=a=b",
	} {
		if got, err := ParseSubject(text); err != nil || got.String() != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, bad := range []string{"Contoso", "X=a", "O=", "O=,C=US", `O="a`, `O="a"b`, "C=USA", "/C=US/O=Contoso", "O=a,,C=US"} {
		if got, err := ParseSubject(bad); err == nil {
			t.Errorf("%q is taken for a subject: %v", bad, got)
		}
	}
}

// No file, however broken, is more than an error.
func FuzzParseCertificates(f *testing.F) {
	c := issue(f, "mail.contoso.com", nil, dns("mail.contoso.com"))
	f.Add(certPEM(c))
	f.Add(c.Raw)
	f.Add([]byte("-----BEGIN PKCS7-----\nMAkGCSqGSIb3DQEHAg==\n-----END PKCS7-----\n"))
	f.Add([]byte("\x30\x27\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x1a\x30\x18\x02\x01\x01\x31\x00\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01\xa0\x00\x31\x00\x30\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseCertificates(data)
		if (err == nil) == (len(certs) == 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}

func FuzzPFX(f *testing.F) {
	c := issue(f, "mail.contoso.com", nil, dns("mail.contoso.com"))
	for _, legacy := range []bool{false, true} {
		data, err := EncodePFX(c.key, []*x509.Certificate{c.Certificate}, "", legacy)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	unprotected, err := pkcs12.Passwordless.Encode(c.key, c.Certificate, nil, "") // no MAC stands before what is inside
	if err != nil {
		f.Fatal(err)
	}
	f.Add(unprotected)
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		certs, key, err := decodePFX(data, "")
		if err == nil && (len(certs) == 0 || key == nil) {
			t.Error("no error, and no certificate or key")
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("several lines: %q", err)
		}
		if d := time.Since(start); d > 2*time.Minute {
			t.Errorf("took %v", d)
		}
	})
}
