package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func TestLoadFilesErrors(t *testing.T) {
	dir := t.TempDir()
	a := issue(t, "a.example", nil, dns("a.example"))
	b := issue(t, "b.example", nil, dns("b.example"))
	goodCert := writeFile(t, filepath.Join(dir, "good.pem"), certPEM(a))
	goodKey := writeFile(t, filepath.Join(dir, "good.key"), keyPEM(t, a.key))
	n := 0
	file := func(data []byte) string {
		n++
		return writeFile(t, filepath.Join(dir, fmt.Sprintf("%d.pem", n)), data)
	}
	f := func(name, cert, key, want string) {
		t.Helper()
		_, _, err := LoadFiles(cert, key, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %q, want one line with %q", name, err, want)
		}
		if _, newErr := NewFiles(cert, key, FilesOptions{}); newErr == nil || newErr.Error() != err.Error() {
			t.Errorf("%s: NewFiles says %v", name, newErr)
		}
	}
	missing := filepath.Join(dir, "missing.pem")
	f("missing certificate", missing, goodKey, "certificate "+missing+" cannot be read: no such file")
	f("missing key", goodCert, missing, "key "+missing+" cannot be read: no such file")
	f("directory", dir, goodKey, "certificate "+dir+" is a directory, a file is needed")
	f("key directory", goodCert, dir, "key "+dir+" is a directory")
	if os.Getuid() != 0 {
		locked := file(certPEM(a))
		if err := os.Chmod(locked, 0); err != nil {
			t.Fatal(err)
		}
		f("unreadable", locked, goodKey, "cannot be read: permission denied")
	}
	f("empty", file(nil), goodKey, "no PEM block CERTIFICATE in it, the file is empty")
	f("DER", file(a.Raw), goodKey, "no PEM block CERTIFICATE in it, it looks like DER or PFX")
	f("text", file([]byte("hello")), goodKey, "no PEM block CERTIFICATE in it")
	f("key in place of the certificate", goodKey, goodKey, "no PEM block CERTIFICATE in it")
	f("broken certificate", file(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30, 1}})), goodKey, "certificate 1 in the file is broken")
	f("certificate in place of the key", goodCert, goodCert, "no PEM block PRIVATE KEY in it")
	f("broken key", goodCert, file(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{0x30, 1}})), "the key is broken")
	f("encrypted key", goodCert, file(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{0x30, 0}})), "the key is encrypted")
	f("key encrypted the old way", goodCert, file(pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "DES-EDE3-CBC,00"}, Bytes: []byte{0},
	})), "the key is encrypted")
	otherKey := file(keyPEM(t, b.key))
	f("key of another certificate", goodCert, otherKey, "key "+otherKey+" does not belong to certificate "+goodCert+" (a.example)")
	f("key of another type", goodCert, file(keyPEM(t, ed25519Key(t))), "does not belong to certificate")
}

// Keys as the usual tools write them.
func TestLoadFilesKeyFormats(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"PKCS #1":             {"genrsa", "-traditional", "2048"},
		"PKCS #8":             {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"SEC 1 with its head": {"ecparam", "-name", "prime256v1", "-genkey"}, // an EC PARAMETERS block comes first
	} {
		key := writeFile(t, filepath.Join(dir, "key.pem"), []byte(openssl(t, nil, args...)))
		cert := filepath.Join(dir, "cert.pem")
		openssl(t, nil, "req", "-x509", "-new", "-key", key, "-subj", "/CN=mail.contoso.com", "-addext", "subjectAltName=DNS:mail.contoso.com", "-days", "10", "-out", cert)
		got, warnings, err := LoadFiles(cert, key, []string{"mail.contoso.com"})
		if err != nil || len(warnings) != 0 || got.Leaf.Subject.CommonName != "mail.contoso.com" {
			t.Errorf("%s: %v %v", name, warnings, err)
		}
	}
	encrypted := filepath.Join(dir, "encrypted.pem")
	openssl(t, nil, "genpkey", "-algorithm", "RSA", "-aes128", "-pass", "pass:secret", "-out", encrypted)
	if _, _, err := LoadFiles(filepath.Join(dir, "cert.pem"), encrypted, nil); err == nil || !strings.Contains(err.Error(), "the key is encrypted") {
		t.Errorf("encrypted by openssl: %v", err)
	}
}

func TestChainIsPutInOrder(t *testing.T) {
	root := issue(t, "Contoso Root", nil, isCA)
	intermediate := issue(t, "Contoso Issuing", root, isCA)
	namesake := issue(t, "Contoso Issuing", root, isCA) // same name, another key
	leaf := issue(t, "mail.contoso.com", intermediate, dns("mail.contoso.com"))
	stranger := issue(t, "Stranger", nil, isCA)
	f := func(name string, file, want []*issued, warnings ...string) {
		t.Helper()
		dir := t.TempDir()
		cert, got, err := LoadFiles(writeFile(t, filepath.Join(dir, "c"), certPEM(file...)), writeFile(t, filepath.Join(dir, "k"), keyPEM(t, leaf.key)), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if len(cert.Certificate) != len(want) {
			t.Errorf("%s: %d certificates, want %d", name, len(cert.Certificate), len(want))
			return
		}
		for i, c := range want {
			if !bytes.Equal(cert.Certificate[i], c.Raw) {
				t.Errorf("%s: certificate %d is not %q", name, i, c.Subject.CommonName)
			}
		}
		if !cert.Leaf.Equal(leaf.Certificate) {
			t.Errorf("%s: leaf is %q", name, cert.Leaf.Subject.CommonName)
		}
		if fmt.Sprint(got) != fmt.Sprint(warnings) {
			t.Errorf("%s: warnings %q, want %q", name, got, warnings)
		}
	}
	const order = "the chain was not in order (certificate first, then its issuers); put in order"
	f("in order", []*issued{leaf, intermediate, root}, []*issued{leaf, intermediate})
	f("backwards", []*issued{root, intermediate, leaf}, []*issued{leaf, intermediate}, order)
	f("intermediates swapped", []*issued{leaf, root, intermediate}, []*issued{leaf, intermediate}, order)
	f("a stranger in it", []*issued{leaf, intermediate, root, stranger}, []*issued{leaf, intermediate}, `certificate "Stranger" in the file is no issuer of the first one; left out`)
	f("two issuers of one name", []*issued{leaf, namesake, intermediate, root}, []*issued{leaf, intermediate}, order, `certificate "Contoso Issuing" in the file is no issuer of the first one; left out`)
}

const testPoll = 5 * time.Millisecond

// watched is a pair in files, a source on it and its log.
type watched struct {
	t         *testing.T
	cert, key string
	*Files
	log *safeBuffer
}

func watch(t *testing.T, c *issued) *watched {
	t.Helper()
	dir := t.TempDir()
	w := &watched{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), log: &safeBuffer{}}
	writeFile(t, w.cert, certPEM(c))
	writeFile(t, w.key, keyPEM(t, c.key))
	var err error
	w.Files, err = NewFiles(w.cert, w.key, FilesOptions{Names: []string{"a.example"}, Poll: testPoll, Log: zerolog.New(w.log)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *watched) shows(c *issued) {
	w.t.Helper()
	w.until("the new certificate is not shown", func() bool { return w.Leaf().Equal(c.Certificate) })
	if got, err := w.GetCertificate(nil); err != nil || !bytes.Equal(got.Certificate[0], c.Raw) {
		w.t.Errorf("GetCertificate returns another one: %v", err)
	}
}

func (w *watched) logs(text string) {
	w.t.Helper()
	w.until("the log lacks "+text, func() bool { return strings.Contains(w.log.String(), text) })
}

func (w *watched) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(testPoll) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("%s; the log:\n%s", what, w.log)
}

func TestFilesSwap(t *testing.T) {
	a, b, c := issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example")), issue(t, "c", nil, dns("other.example"))
	w := watch(t, a)
	w.shows(a)

	// The two files cannot change at one moment: until both have, the old pair is kept, and that is logged once.
	writeFile(t, w.cert, certPEM(b))
	w.logs("does not belong to certificate")
	time.Sleep(20 * testPoll)
	w.shows(a)
	if n := strings.Count(w.log.String(), "does not belong to certificate"); n != 1 { // a look at a file half written is another cause
		t.Errorf("the mismatch was logged %d times, want once:\n%s", n, w.log)
	}
	writeFile(t, w.key, keyPEM(t, b.key))
	w.shows(b)
	w.logs("certificate changed")

	// Replaced by rename, key first; the new one lacks the host's name.
	for _, f := range []struct {
		path string
		data []byte
	}{{w.key, keyPEM(t, c.key)}, {w.cert, certPEM(c)}} {
		if err := os.Rename(writeFile(t, f.path+".new", f.data), f.path); err != nil {
			t.Fatal(err)
		}
	}
	w.shows(c)
	w.logs("does not cover a.example, only other.example")
}

func TestFilesKeepOldOnError(t *testing.T) {
	a, b := issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example"))
	w := watch(t, a)
	if err := os.Rename(writeFile(t, w.cert+".new", []byte("half a fi")), w.cert); err != nil { // at once: one cause, one record
		t.Fatal(err)
	}
	w.logs("no PEM block CERTIFICATE")
	w.shows(a)
	if err := os.Remove(w.cert); err != nil {
		t.Fatal(err)
	}
	w.logs("cannot be read: no such file")
	if err := os.Mkdir(w.cert, 0o700); err != nil {
		t.Fatal(err)
	}
	w.logs("is a directory")
	w.shows(a)
	if n := strings.Count(w.log.String(), "the old one is kept"); n != 3 {
		t.Errorf("three causes were logged %d times:\n%s", n, w.log)
	}
	if err := os.Remove(w.cert); err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.key, keyPEM(t, b.key))
	writeFile(t, w.cert, certPEM(b))
	w.shows(b)
}

// A symbolic link that is switched to files of the same size and time is seen by the identity of the file.
func TestFilesSymlinkSwitch(t *testing.T) {
	a, b := issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example"))
	dir := t.TempDir()
	when := time.Now().Add(-time.Minute)
	for name, c := range map[string]*issued{"1": a, "2": b} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		path := writeFile(t, filepath.Join(dir, name, "both.pem"), append(certPEM(c), keyPEM(t, c.key)...))
		if err := os.Truncate(path, 4096); err != nil { // the same size; PEM ignores what follows
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "live")
	if err := os.Symlink("1", link); err != nil {
		t.Skip(err) // Windows without the right
	}
	both := filepath.Join(link, "both.pem")
	f, err := NewFiles(both, both, FilesOptions{Poll: testPoll})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Symlink("2", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	(&watched{t: t, Files: f, log: &safeBuffer{}}).shows(b)
}

func TestFilesCloseEndsTheWatch(t *testing.T) {
	a, b := issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example"))
	w := watch(t, a)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.key, keyPEM(t, b.key))
	writeFile(t, w.cert, certPEM(b))
	time.Sleep(10 * testPoll)
	w.shows(a)
	if err := w.Close(); err != nil {
		t.Error("second Close:", err)
	}
}

// The pair is swapped while clients shake hands: each sees a whole certificate, none an error.
func TestFilesSwapUnderHandshakes(t *testing.T) {
	pairs := []*issued{issue(t, "a", nil, dns("a.example")), issue(t, "b", nil, dns("a.example"))}
	w := watch(t, pairs[0])
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
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	roots := x509.NewCertPool()
	for _, p := range pairs {
		roots.AddCert(p.Certificate)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "a.example", RootCAs: roots})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[c.ConnectionState().PeerCertificates[0].Subject.CommonName]++
				mu.Unlock()
				c.Close()
			}
		})
	}
	for i := range 10 {
		p := pairs[(i+1)%2]
		writeFile(t, w.key, keyPEM(t, p.key))
		writeFile(t, w.cert, certPEM(p))
		w.shows(p)
		time.Sleep(20 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if seen["a"] == 0 || seen["b"] == 0 {
		t.Errorf("certificates seen: %v, want both", seen)
	}
}

func listenTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				c := tls.Server(raw, config)
				if c.Handshake() == nil {
					_, _ = io.WriteString(c, "x") // the ticket of TLS 1.3 is read with the first bytes
					_, _ = io.Copy(io.Discard, c)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// Nobody renews what is in files, so the log says that it ends: once a day, not at every look.
func TestFilesThatExpireSoon(t *testing.T) {
	w := watch(t, issue(t, "a", nil, func(c *x509.Certificate) {
		c.DNSNames, c.NotAfter = []string{"a.example"}, time.Now().Add(10*time.Minute)
	}))
	w.logs("certificate expires soon")
	time.Sleep(10 * testPoll)
	if n := strings.Count(w.log.String(), "certificate expires soon"); n != 1 {
		t.Errorf("said %d times:\n%s", n, w.log)
	}
}
