package peer

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// CA is a certification authority that OpenSSL runs: a root, an issuing CA below it, its list of revoked certificates and
// its OCSP responder.
type CA struct {
	Dir  string
	Root string // PEM files
	Sub  string
	OCSP string // the addresses that its certificates name
	CRL  string

	t         testing.TB
	responder atomic.Pointer[httputil.ReverseProxy]
}

// Leaf is what a certificate of the CA is like.
type Leaf struct {
	Names      []string // the first is the common name
	CommonOnly bool     // no subject alternative names
	Start, End time.Time
	Silent     bool   // names neither responder nor list
	Extensions string // further lines of OpenSSL's configuration; keyUsage and extendedKeyUsage replace the usual ones
	Key        []string
	Digest     string
}

// NewCA makes a CA in a directory of the test.
func NewCA(t testing.TB) *CA {
	t.Helper()
	c := &CA{Dir: t.TempDir(), t: t}
	mux := http.NewServeMux()
	mux.HandleFunc("/ocsp", func(w http.ResponseWriter, r *http.Request) {
		if p := c.responder.Load(); p != nil {
			p.ServeHTTP(w, r)
			return
		}
		http.Error(w, "no responder", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/ca.crl", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, c.File("ca.crl")) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c.OCSP, c.CRL = server.URL+"/ocsp", server.URL+"/ca.crl"
	c.Root, c.Sub = c.File("root.pem"), c.File("sub.pem")
	c.write("index.txt", "")
	c.write("serial", "1000\n")
	c.write("crlnumber", "01\n")
	c.write("ca.cnf", fmt.Sprintf(`[req]
distinguished_name = dn
[dn]
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[sub]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign,digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca]
default_ca = db
[db]
dir = %[1]s
database = $dir/index.txt
new_certs_dir = $dir
serial = $dir/serial
crlnumber = $dir/crlnumber
certificate = $dir/sub.pem
private_key = $dir/sub.key
default_md = sha256
default_days = 90
default_crl_days = 7
unique_subject = no
policy = any
copy_extensions = none
[any]
commonName = supplied
`, c.Dir))
	ec := []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"}
	c.openssl(append([]string{"req", "-x509", "-config", "ca.cnf", "-extensions", "root", "-subj", "/CN=Contoso Root", "-days", "3650", "-keyout", "root.key", "-out", "root.pem"}, ec...)...)
	c.openssl(append([]string{"req", "-config", "ca.cnf", "-subj", "/CN=Contoso Issuing", "-keyout", "sub.key", "-out", "sub.csr"}, ec...)...)
	c.openssl("x509", "-req", "-in", "sub.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "ca.cnf", "-extensions", "sub", "-days", "1825", "-out", "sub.pem")
	return c
}

// File is the path of a file of the CA.
func (c *CA) File(name string) string { return filepath.Join(c.Dir, name) }

func (c *CA) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(c.File(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *CA) openssl(args ...string) {
	c.t.Helper()
	cmd := exec.Command(Need(c.t, "openssl", "apt-get install openssl"), args...)
	cmd.Dir = c.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Issue makes a certificate and returns the file with it and the issuing CA's; NAME.leaf.pem is the certificate alone,
// NAME.key its key.
func (c *CA) Issue(name string, l Leaf) string {
	c.t.Helper()
	var ext strings.Builder
	ext.WriteString("authorityKeyIdentifier = keyid\nbasicConstraints = CA:FALSE\n")
	if !strings.Contains(l.Extensions, "keyUsage") {
		ext.WriteString("keyUsage = critical,digitalSignature\nextendedKeyUsage = serverAuth\n")
	}
	if !l.CommonOnly {
		ext.WriteString("subjectAltName = DNS:" + strings.Join(l.Names, ",DNS:") + "\n")
	}
	if !l.Silent {
		fmt.Fprintf(&ext, "authorityInfoAccess = OCSP;URI:%s\ncrlDistributionPoints = URI:%s\n", c.OCSP, c.CRL)
	}
	ext.WriteString(l.Extensions)
	c.write(name+".ext", ext.String())
	key := l.Key
	if key == nil {
		key = []string{"ec", "-pkeyopt", "ec_paramgen_curve:P-256"}
	}
	c.openssl(append([]string{"req", "-config", "ca.cnf", "-subj", "/CN=" + l.Names[0], "-keyout", name + ".key", "-out", name + ".csr", "-nodes", "-newkey"}, key...)...)
	args := []string{"ca", "-batch", "-notext", "-config", "ca.cnf", "-extfile", name + ".ext", "-in", name + ".csr", "-out", name + ".leaf.pem"}
	const date = "20060102150405Z"
	if !l.Start.IsZero() {
		args = append(args, "-startdate", l.Start.UTC().Format(date))
	}
	if !l.End.IsZero() {
		args = append(args, "-enddate", l.End.UTC().Format(date))
	}
	if l.Digest != "" {
		args = append(args, "-md", l.Digest)
	}
	c.openssl(args...)
	var chain []byte
	for _, f := range []string{name + ".leaf.pem", "sub.pem"} {
		b, err := os.ReadFile(c.File(f))
		if err != nil {
			c.t.Fatal(err)
		}
		chain = append(chain, b...)
	}
	c.write(name+".pem", string(chain))
	return c.File(name + ".pem")
}

// Revoke puts a certificate on the list of those revoked.
func (c *CA) Revoke(name, reason string) {
	c.t.Helper()
	c.openssl("ca", "-batch", "-config", "ca.cnf", "-revoke", name+".leaf.pem", "-crl_reason", reason)
}

// Publish writes the list of revoked certificates, and returns its file.
func (c *CA) Publish() string {
	c.t.Helper()
	c.openssl("ca", "-batch", "-config", "ca.cnf", "-gencrl", "-out", "ca.crl.pem")
	c.openssl("crl", "-in", "ca.crl.pem", "-outform", "DER", "-out", "ca.crl")
	return c.File("ca.crl.pem")
}

// Unpublish takes the list away.
func (c *CA) Unpublish() {
	c.t.Helper()
	if err := os.Remove(c.File("ca.crl")); err != nil {
		c.t.Fatal(err)
	}
}

// Respond starts the OCSP responder for what has been issued and revoked so far. It signs with a certificate made for
// that, or with that of the issuing CA.
func (c *CA) Respond(delegated bool) (stop func()) {
	c.t.Helper()
	signer := "sub"
	if delegated {
		c.Issue("responder", Leaf{Names: []string{"Contoso OCSP"}, CommonOnly: true, Silent: true, Extensions: "keyUsage = critical,digitalSignature\nextendedKeyUsage = OCSPSigning\n"})
		signer = "responder.leaf"
	}
	key := strings.TrimSuffix(signer, ".leaf") + ".key"
	_, port, _ := strings.Cut(strings.ReplaceAll(c.start("ACCEPT ", "ocsp", "-port", "0", "-index", "index.txt", "-CA", "sub.pem", "-rsigner", signer+".pem", "-rkey", key, "-ndays", "1"), "[::]", ""), ":")
	address := net.JoinHostPort("127.0.0.1", port)
	c.responder.Store(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		r.Out.URL.Path = "/"
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }})
	return func() { c.responder.Store(nil) }
}

// Serve starts openssl s_server with a certificate of the CA and returns its address. More arguments go to s_server.
func (c *CA) Serve(name string, more ...string) string {
	c.t.Helper()
	args := append([]string{"s_server", "-accept", "127.0.0.1:0", "-naccept", "100", "-cert", name + ".leaf.pem", "-cert_chain", "sub.pem", "-key", name + ".key", "-www"}, more...)
	return c.start("ACCEPT ", args...)
}

// start runs openssl as a server until the test ends, and returns the address that it says.
func (c *CA) start(before string, args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, Need(c.t, "openssl", "apt-get install openssl"), args...)
	cmd.Dir = c.Dir
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	stdin, err := cmd.StdinPipe() // s_server ends with it
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	w.Close()
	c.t.Cleanup(func() {
		cancel()
		stdin.Close()
		_ = cmd.Wait() // it was killed
		r.Close()
	})
	said := make(chan string, 1)
	go func() {
		var all strings.Builder
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if text, ok := strings.CutPrefix(lines.Text(), before); ok && strings.Contains(text, ":") {
				address, _, _ := strings.Cut(text, " ")
				select {
				case said <- address:
				default:
				}
			}
			all.WriteString(lines.Text() + "\n")
		}
		select {
		case said <- "openssl " + strings.Join(args, " ") + ":\n" + all.String():
		default:
		}
	}()
	select {
	case address := <-said:
		if _, _, err := net.SplitHostPort(address); err != nil {
			c.t.Fatal(address)
		}
		return address
	case <-time.After(30 * time.Second):
		c.t.Fatalf("openssl %s does not listen", strings.Join(args, " "))
		return ""
	}
}
