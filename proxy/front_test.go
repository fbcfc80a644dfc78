package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestMain lets more tests run side by side than there are processors: most of
// them wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if runtime.GOMAXPROCS(0) < 8 {
		flag.Set("test.parallel", "8")
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what an idle machine does at once: it tells
// "never" from "later", and a busy machine takes seconds for what is late.
const patience = 20 * time.Second

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// timely runs a scenario that has to be over in a given time, or whose parts race
// against a limit of the program's own. On a busy machine one run can be late through
// no fault of the program: it is one if three are.
func timely(t *testing.T, scenario func(t *testing.T) error) {
	t.Helper()
	for run := 1; ; run++ {
		err := scenario(t)
		switch {
		case err == nil:
			return
		case run == 3:
			t.Fatalf("also in the third run: %v", err)
		}
		t.Logf("run %d: %v", run, err)
	}
}

// within is an error if it is longer ago than the limit.
func within(limit time.Duration, start time.Time, what string) error {
	if d := time.Since(start); d > limit {
		return fmt.Errorf("%s only after %v", what, d)
	}
	return nil
}

// newCertificate makes a self-signed certificate for the names.
func newCertificate(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	return newCertificateFrom(t, time.Now().Add(-time.Hour), names...)
}

// newCertificateFrom makes one that is valid from a given time on.
func newCertificateFrom(t testing.TB, from time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: from, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// recorder is a TLS backend that a test scripts on the level of bytes, and that
// records what came on which connection.
type recorder struct {
	t    testing.TB
	ln   net.Listener
	cert tls.Certificate

	mu    sync.Mutex
	conns []*recorded
}

// recorded is one connection at a recorder.
type recorded struct {
	net.Conn
	br     *bufio.Reader
	mu     sync.Mutex
	heads  []string
	closed chan struct{} // when the script has returned
}

// head reads one request head and records it.
func (c *recorded) head() (string, error) {
	var b strings.Builder
	for {
		line, err := c.br.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return b.String(), err
		}
		if line == "\r\n" {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heads = append(c.heads, b.String())
	return b.String(), nil
}

func (c *recorded) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.heads...)
}

// newRecorder starts a backend that runs script on every connection.
func newRecorder(t testing.TB, script func(*recorded)) *recorder {
	t.Helper()
	b := &recorder{t: t, cert: newCertificate(t, "cas01.contoso.local")}
	var err error
	b.ln, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{b.cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	go func() {
		for {
			conn, err := b.ln.Accept()
			if err != nil {
				return
			}
			c := &recorded{Conn: conn, br: bufio.NewReader(conn), closed: make(chan struct{})}
			b.mu.Lock()
			b.conns = append(b.conns, c)
			b.mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer close(c.closed)
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(3 * time.Minute))
				script(c)
			}()
		}
	}()
	t.Cleanup(func() {
		b.ln.Close()
		b.mu.Lock()
		for _, c := range b.conns {
			c.Conn.Close()
		}
		b.mu.Unlock()
		wg.Wait()
	})
	return b
}

// asked waits for the i-th connection and n whole heads on it.
func (b *recorder) asked(i, n int) *recorded {
	b.t.Helper()
	var c *recorded
	eventually(b.t, "a request at the backend", func() bool {
		all := b.connections()
		if len(all) <= i {
			return false
		}
		c = all[i]
		return len(c.seen()) >= n
	})
	return c
}

// ends waits until the script has returned, because the front door has closed.
func (c *recorded) ends(t testing.TB) {
	t.Helper()
	select {
	case <-c.closed:
	case <-time.After(patience):
		t.Fatal("backend connection left open")
	}
}

func (b *recorder) connections() []*recorded {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*recorded(nil), b.conns...)
}

// backend is how the front door is told of the recorder.
func (b *recorder) backend() *Backend {
	pool := x509.NewCertPool()
	pool.AddCert(b.cert.Leaf)
	return &Backend{Name: "cas01.contoso.local", Address: b.ln.Addr().String(), TLS: &tls.Config{
		RootCAs: pool, ServerName: "cas01.contoso.local", NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}}
}

// front is a running front door.
type front struct {
	*Server
	t           testing.TB
	https, http string
	roots       *x509.CertPool
	cert        tls.Certificate
	log         *lockedBuffer
	site        *Site
	mail        *Host
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // not embedded: os/exec would go past the lock with ReadFrom
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newFront starts a front door that bridges mail.contoso.com to the backends.
// change may alter options and table before it starts.
func newFront(t testing.TB, change func(*front, *Options, *Table), backends ...*Backend) *front {
	t.Helper()
	f := &front{t: t, roots: x509.NewCertPool(), log: &lockedBuffer{}}
	f.cert = newCertificate(t, "mail.contoso.com", "autodiscover.contoso.com", "other.contoso.com", "autodiscover.fabrikam.com")
	f.roots.AddCert(f.cert.Leaf)
	f.site = &Site{Name: "hq", Backends: backends, ConnectTimeout: time.Minute}
	conf := &tls.Config{Certificates: []tls.Certificate{f.cert}, NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true}
	f.mail = &Host{Name: "mail.contoso.com", Mode: Bridge, TLS: conf, Policy: "p", Site: f.site, VirtualDirectories: Preset()}
	table := &Table{Hosts: map[string]*Host{
		"mail.contoso.com":         f.mail,
		"legacy.contoso.com":       f.mail,
		"autodiscover.contoso.com": {Name: "autodiscover.contoso.com", Mode: Redirect, RedirectTo: "mail.contoso.com"},
	}, Defaults: map[string]*Host{}}
	opts := Options{Logger: zerolog.New(f.log), HelloTimeout: time.Minute, RequestHeadTimeout: time.Minute}
	if change != nil {
		change(f, &opts, table)
	}
	f.Server = NewServer(opts)
	f.SetTable(table)
	f.https = f.listen(f.ServeTLS, ":443")
	f.http = f.listen(f.ServeHTTP, ":80")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		f.Shutdown(ctx)
		if n := f.Connections(); n != 0 {
			t.Errorf("%d connections left after shutdown", n)
		}
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	return f
}

func (f *front) listen(serve func(net.Listener, string) error, name string) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	go serve(ln, name)
	return ln.Addr().String()
}

// client is a client connection that speaks bytes.
type client struct {
	net.Conn
	t  testing.TB
	br *bufio.Reader
}

// dial opens a TLS connection with the given SNI.
func (f *front) dial(sni string) *client {
	f.t.Helper()
	c, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: sni})
	if err != nil {
		f.t.Fatal(err)
	}
	return newClient(f.t, c)
}

func (f *front) dialPlain() *client {
	f.t.Helper()
	c, err := net.Dial("tcp", f.http)
	if err != nil {
		f.t.Fatal(err)
	}
	return newClient(f.t, c)
}

func newClient(t testing.TB, c net.Conn) *client {
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	t.Cleanup(func() { c.Close() })
	return &client{Conn: c, t: t, br: bufio.NewReader(c)}
}

// send writes the lines joined by CRLF, as a head if they are several.
func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// head reads one response head as it came.
func (c *client) head() string {
	c.t.Helper()
	var b strings.Builder
	for {
		line, err := c.br.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			c.t.Fatalf("response head: %v after %q", err, b.String())
		}
		if line == "\r\n" {
			return b.String()
		}
	}
}

// response reads a whole response.
func (c *client) response(method string) (*http.Response, string) {
	c.t.Helper()
	r, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("response: %v", err)
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatalf("response body: %v", err)
	}
	return r, string(data)
}

// ends checks that the connection ends without another byte.
func (c *client) ends() {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.br)
	if isTimeout(err) || len(rest) > 0 {
		c.t.Fatalf("connection not closed: %v, %q", err, rest)
	}
}

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n"
}

// echo answers every request with 200 and its head as the body.
func echo(c *recorded) {
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		if n := contentLength(h); n > 0 {
			if _, err := io.CopyN(io.Discard, c.br, n); err != nil {
				return
			}
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(h), h)
	}
}

func contentLength(head string) int64 {
	for line := range strings.SplitSeq(head, "\r\n") {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Content-Length") {
			n, _ := parseDecimal([]byte(strings.TrimSpace(v)))
			return n
		}
	}
	return 0
}

// waitForLog waits until the log holds a text.
func (f *front) waitForLog(text string) {
	f.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(f.log.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("the log lacks %q", text)
		}
	}
}
