package tlsconf

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"software.sslmate.com/src/go-pkcs12"
)

// company is a leaf under an intermediate under a root, and their files as openssl wants them.
type company struct {
	dir                           string
	root, intermediate, leaf      *issued
	leafPEM, keyPEM, issuers, all string
}

func newCompany(t testing.TB) *company {
	t.Helper()
	c := &company{dir: t.TempDir()}
	c.root = issue(t, "Contoso Root", nil, isCA)
	c.intermediate = issue(t, "Contoso Issuing", c.root, isCA)
	c.leaf = issue(t, "mail.contoso.com", c.intermediate, dns("mail.contoso.com", "autodiscover.contoso.com"))
	c.leafPEM = c.file(t, "leaf.pem", certPEM(c.leaf))
	c.keyPEM = c.file(t, "key.pem", keyPEM(t, c.leaf.key))
	c.issuers = c.file(t, "issuers.pem", certPEM(c.root, c.intermediate)) // Windows writes them in any order
	c.all = c.file(t, "all.pem", certPEM(c.leaf, c.intermediate, c.root))
	return c
}

func (c *company) file(t testing.TB, name string, data []byte) string {
	t.Helper()
	return writeFile(t, filepath.Join(c.dir, name), data)
}

// A PFX written by OpenSSL is read, whatever it is encrypted with, and its chain is put in order.
func TestPFXOfOpenSSL(t *testing.T) {
	c := newCompany(t)
	password := c.file(t, "pass", []byte("correct horse\n"))
	for name, args := range map[string][]string{
		"AES-256 and SHA-256 (OpenSSL 3, Windows Server 2019)": {},
		"AES-128": {"-keypbe", "AES-128-CBC", "-certpbe", "AES-128-CBC"},
		"3DES and SHA-1 (Export-ExchangeCertificate)": {"-descert", "-macalg", "sha1", "-legacy"},
		"RC2-40 for the certificates (before 2019)":   {"-legacy"},
		"RC2-128":                    {"-legacy", "-certpbe", "PBE-SHA1-RC2-128"},
		"certificates not encrypted": {"-certpbe", "NONE"},
		"friendly name and CSP, as Windows adds them": {"-name", "Contoso 2026 ü", "-CSP", "Microsoft RSA SChannel Cryptographic Provider", "-caname", "the root"},
		"SHA-512": {"-macalg", "sha512"},
	} {
		pfx := filepath.Join(c.dir, "openssl.pfx")
		openssl(t, nil, append([]string{"pkcs12", "-export", "-in", c.leafPEM, "-inkey", c.keyPEM, "-certfile", c.issuers, "-passout", "file:" + password, "-out", pfx}, args...)...)
		cert, warnings, err := LoadPFX(pfx, password, []string{"mail.contoso.com"})
		if err != nil || len(warnings) != 0 {
			t.Errorf("%s: %v %v", name, warnings, err)
			continue
		}
		if !slices.EqualFunc(cert.Certificate, []*issued{c.leaf, c.intermediate}, func(der []byte, want *issued) bool { return bytes.Equal(der, want.Raw) }) || !cert.Leaf.Equal(c.leaf.Certificate) {
			t.Errorf("%s: the chain has %d certificates, want leaf and intermediate", name, len(cert.Certificate))
		}
		if key, ok := cert.PrivateKey.(*ecdsa.PrivateKey); !ok || !key.Equal(c.leaf.key) {
			t.Errorf("%s: the key is another one", name)
		}
	}
}

// A certificate in the bag that is neither the key's nor an issuer of it is left out, and nothing to warn of (Windows
// exports what it finds); what is missing from the chain is.
func TestPFXChain(t *testing.T) {
	c := newCompany(t)
	stranger := issue(t, "Stranger", nil, isCA)
	f := func(name string, bag []*issued, want int, warning string) {
		t.Helper()
		var certs []*x509.Certificate
		for _, b := range bag {
			certs = append(certs, b.Certificate)
		}
		data, err := pkcs12.Modern.Encode(c.leaf.key, certs[0], certs[1:], "x")
		if err != nil {
			t.Fatal(err)
		}
		pair, warnings, err := ReadPFX(c.file(t, "bag.pfx", data), "x", nil)
		if err != nil || len(warnings) != 0 {
			t.Errorf("%s: %v %v", name, warnings, err)
			return
		}
		if len(pair.Chain) != want || !pair.Chain[0].Equal(c.leaf.Certificate) {
			t.Errorf("%s: %d certificates, want %d", name, len(pair.Chain), want)
		}
		found := pair.Inspect([]string{"mail.contoso.com"}, time.Now())
		if warning == "" && len(found) > 0 || warning != "" && (len(found) != 1 || !strings.Contains(found[0], warning)) {
			t.Errorf("%s: %q, want %q", name, found, warning)
		}
	}
	f("backwards, with a stranger", []*issued{stranger, c.root, c.intermediate, c.leaf}, 2, "")
	f("root missing", []*issued{c.leaf, c.intermediate}, 2, `ends at the intermediate certificate "Contoso Issuing"`)
	f("intermediate missing", []*issued{c.leaf, c.root}, 1, "ends at the certificate itself")
}

func TestPFXErrors(t *testing.T) {
	c := newCompany(t)
	good, err := EncodePFX(c.leaf.key, []*x509.Certificate{c.leaf.Certificate, c.intermediate.Certificate}, "right", true)
	if err != nil {
		t.Fatal(err)
	}
	pfx := c.file(t, "good.pfx", good)
	password := c.file(t, "right", []byte("right"))
	n := 0
	file := func(data []byte) string {
		n++
		return c.file(t, fmt.Sprint(n, ".pfx"), data)
	}
	written := func(args ...string) string {
		out := file(nil)
		openssl(t, nil, append([]string{"pkcs12", "-export", "-passout", "file:" + password, "-out", out}, args...)...)
		return out
	}
	f := func(name, pfx, password, want string) {
		t.Helper()
		_, _, err := LoadPFX(pfx, password, nil)
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n%v, want\n%s", name, err, want)
		}
		if _, newErr := NewPFX(pfx, password, FilesOptions{}); newErr == nil || newErr.Error() != want {
			t.Errorf("%s: NewPFX says %v", name, newErr)
		}
	}
	missing := filepath.Join(c.dir, "missing")
	f("missing", missing, password, "PFX "+missing+" cannot be read: no such file or directory")
	f("directory", c.dir, password, "PFX "+c.dir+" is a directory, a file is needed")
	f("password file missing", pfx, missing, "password file "+missing+" cannot be read: no such file or directory")
	f("password file a directory", pfx, c.dir, "password file "+c.dir+" is a directory, a file is needed")
	if os.Getuid() != 0 {
		locked := file(good)
		if err := os.Chmod(locked, 0); err != nil {
			t.Fatal(err)
		}
		f("unreadable", locked, password, "PFX "+locked+" cannot be read: permission denied")
	}
	f("wrong password", pfx, c.file(t, "wrong", []byte("wrong")), "PFX "+pfx+": the password is wrong")
	f("spaces count", pfx, c.file(t, "spaces", []byte("right ")), "PFX "+pfx+": the password is wrong")
	f("no password", pfx, "", "PFX "+pfx+": the password is wrong: it is not empty; name the file that holds it as password_file")
	several := c.file(t, "several", []byte("right\nleft\n"))
	f("two passwords", pfx, several, "password file "+several+" has several lines; it is to hold the password alone")
	binary := c.file(t, "binary", []byte{0x80, 0xff})
	f("binary password", pfx, binary, "password file "+binary+" is not text in UTF-8")
	empty := file(nil)
	f("empty", empty, password, "PFX "+empty+": the file is empty")
	text := file([]byte("hello"))
	f("text", text, password, "PFX "+text+": it is not a PFX (PKCS #12)")
	f("PEM", c.all, password, "PFX "+c.all+": it is PEM, not PKCS #12: give it as {cert: …, key: …}")
	der := file(c.leaf.Raw)
	f("DER", der, password, "PFX "+der+": it is not a PFX (PKCS #12)")
	ber := file([]byte{0x30, 0x80, 0x02, 0x01, 0x03, 0x00, 0x00})
	f("BER", ber, password, "PFX "+ber+": it is written in an old form (BER); write it again: openssl pkcs12 -legacy -in OLD -nodes | openssl pkcs12 -export -out NEW")
	half := file(good[:len(good)/2])
	f("half written", half, password, "PFX "+half+": it is not a PFX (PKCS #12)")
	noKey := written("-in", c.leafPEM, "-nokeys")
	f("no key", noKey, password, "PFX "+noKey+": no private key in it: export it again with the key, which has to be marked exportable")
	onlyKey := written("-inkey", c.keyPEM, "-nocerts")
	f("only a key", onlyKey, password, "PFX "+onlyKey+": no certificate in it, only a key: export them together")
	other, err := pkcs12.Modern.Encode(c.root.key, c.leaf.Certificate, []*x509.Certificate{c.intermediate.Certificate}, "right")
	if err != nil {
		t.Fatal(err)
	}
	otherKey := file(other)
	f("key of another certificate", otherKey, password, "PFX "+otherKey+": its key belongs to none of its certificates (mail.contoso.com, Contoso Issuing)")
	greedy := file(withIterations(t, good, 2_000_000_000))
	f("too many iterations", greedy, password, "PFX "+greedy+": its password is to be hashed more than 2000000 times: export it again with less")
	huge := file(nil)
	if err := os.Truncate(huge, 5<<20); err != nil {
		t.Fatal(err)
	}
	f("huge", huge, password, "PFX "+huge+" is larger than 4 MB, which no certificate or key is")
	large, err := pkcs12.Modern.Encode(ed25519Key(t), c.leaf.Certificate, nil, "\u200d")
	if err != nil {
		t.Fatal(err)
	}
	f("a password Windows cannot type", file(large), c.file(t, "emoji", []byte("😀")), fmt.Sprintf("PFX %s: it is broken: string contains characters that cannot be encoded in UCS-2", filepath.Join(c.dir, fmt.Sprint(n, ".pfx"))))
}

// withIterations changes the iteration count of the MAC.
func withIterations(t *testing.T, pfx []byte, n int) []byte {
	t.Helper()
	var p struct {
		Version  int
		AuthSafe asn1.RawValue
		MacData  struct {
			Mac        asn1.RawValue
			Salt       []byte
			Iterations int `asn1:"optional,default:1"`
		}
	}
	if rest, err := asn1.Unmarshal(pfx, &p); err != nil || len(rest) > 0 {
		t.Fatal(err)
	}
	p.MacData.Iterations = n
	out, err := asn1.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The library has one key at most; two are told apart from other errors.
func TestPFXWithSeveralKeys(t *testing.T) {
	a, err := pkcs12.Passwordless.Encode(ed25519Key(t), issue(t, "a", nil, nil).Certificate, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := pkcs12.Passwordless.Encode(ed25519Key(t), issue(t, "b", nil, nil).Certificate, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	// Each is two contents, certificates and key: both keys make a new file.
	type contentInfo struct {
		ContentType asn1.ObjectIdentifier
		Content     asn1.RawValue `asn1:"explicit,optional,tag:0"`
	}
	type file struct {
		Version  int
		AuthSafe struct {
			ContentType asn1.ObjectIdentifier
			Content     []byte `asn1:"explicit,tag:0"`
		}
	}
	parts := func(data []byte) (f file, contents []contentInfo) {
		if _, err := asn1.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		if _, err := asn1.Unmarshal(f.AuthSafe.Content, &contents); err != nil {
			t.Fatal(err)
		}
		return f, contents
	}
	f, one := parts(a)
	_, two := parts(b)
	if f.AuthSafe.Content, err = asn1.Marshal([]contentInfo{one[1], two[1]}); err != nil {
		t.Fatal(err)
	}
	data, err := asn1.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := decodePFX(data, ""); err == nil || !strings.Contains(err.Error(), "several keys in it") {
		t.Errorf("two keys: %v", err)
	}
	if _, _, err := decodePFX(a, "x"); err == nil || !strings.Contains(err.Error(), "not protected by a password") {
		t.Errorf("a password for a file without: %v", err)
	}
	if _, _, err := decodePFX(a, ""); err != nil {
		t.Errorf("a file without a password: %v", err)
	}
}

// What editors and PowerShell write into a password file is the password they were given; an empty password is one.
func TestReadPassword(t *testing.T) {
	for content, want := range map[string]string{
		"secret": "secret", "secret\n": "secret", "secret\r\n": "secret", " secret ": " secret ", "": "", "\n": "", "sécret": "sécret",
		"\xef\xbb\xbfsecret\r\n":                             "secret", // Notepad
		"\xff\xfes\x00e\x00c\x00r\x00e\x00t\x00\r\x00\n\x00": "secret", // Out-File of Windows PowerShell
	} {
		got, err := ReadPassword(writeFile(t, tempFile(t, "pass"), []byte(content)))
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", content, got, err, want)
		}
	}
	c := newCompany(t)
	data, err := EncodePFX(c.leaf.key, []*x509.Certificate{c.leaf.Certificate}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	pfx := c.file(t, "empty.pfx", data)
	for _, password := range []string{"", c.file(t, "empty", []byte("\n"))} {
		if _, _, err := LoadPFX(pfx, password, nil); err != nil {
			t.Errorf("the empty password in %q: %v", password, err)
		}
	}
}

// A new PFX is shown from the next handshake on, connections that are open stay; a broken one changes nothing and is said
// once. With a new password the two files change one after the other.
func TestPFXHotReload(t *testing.T) {
	a, b := issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example"))
	dir := t.TempDir()
	pfx, password := filepath.Join(dir, "mail.pfx"), writeFile(t, filepath.Join(dir, "pass"), []byte("first\n"))
	put := func(c *issued, password string) {
		t.Helper()
		data, err := EncodePFX(c.key, []*x509.Certificate{c.Certificate}, password, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFile(pfx, data, 0o600, true); err != nil {
			t.Fatal(err)
		}
	}
	put(a, "first")
	w := &watched{t: t, log: &safeBuffer{}}
	var err error
	if w.Files, err = NewPFX(pfx, password, FilesOptions{Names: []string{"a.example"}, Poll: testPoll, Log: zerolog.New(w.log)}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.shows(a)

	config, err := ServerConfig(Intermediate, w)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate)
	roots.AddCert(b.Certificate)
	dial := func() *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "a.example", RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	echo := func(c *tls.Conn, line string) {
		t.Helper()
		if _, err := io.WriteString(c, line); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != line {
			t.Fatalf("the connection answers %q, %v", got, err)
		}
	}
	old := dial()
	defer old.Close()
	echo(old, "before\n")

	put(b, "second") // its password is still that of the first
	w.logs("the password is wrong")
	w.logs("the old one is kept")
	w.shows(a)
	writeFile(t, password, []byte("second\n"))
	w.shows(b)
	w.logs("certificate changed")
	echo(old, "after\n")
	next := dial()
	defer next.Close()
	if cn := next.ConnectionState().PeerCertificates[0].Subject.CommonName; cn != "b" {
		t.Errorf("the next handshake shows %q, want b", cn)
	}
	if err := WriteFile(pfx, []byte("garbage"), 0o600, true); err != nil {
		t.Fatal(err)
	}
	w.logs("it is not a PFX")
	w.shows(b)
	if strings.Contains(w.log.String(), "second") || strings.Contains(w.log.String(), "first") {
		t.Errorf("the log has the password:\n%s", w.log)
	}
}
