package discovery

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// world is a small Internet on loopback: one DNS server, one port that stands for 443 and one for 80.
// Hosts are told apart by SNI and Host. Every request is written down by the server side.
type world struct {
	t     *testing.T
	roots *x509.CertPool
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey

	dnsAddr   string
	httpsPort int
	httpPort  int

	mu        sync.Mutex
	records   map[string][]string // "TYPE name." → zone lines
	hosts     map[string]*host    // 443, by SNI
	plain     map[string]http.HandlerFunc
	log       []string // "POST https://contoso.com/autodiscover/autodiscover.xml Basic"
	leaked    []string // requests over plain HTTP that carried Authorization
	headers   []http.Header
	bodies    []string
	held      []net.Conn
	conns     sync.WaitGroup
	questions []string
}

// host is what a name does on 443.
type host struct {
	cert    *tls.Certificate
	handler http.HandlerFunc
	raw     func(net.Conn) // instead of TLS, after the hello was read
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, records: map[string][]string{}, hosts: map[string]*host{}, plain: map[string]http.HandlerFunc{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * 365 * time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	w.key = key
	w.ca, err = x509.ParseCertificate(der)
	must(t, err)
	w.roots = x509.NewCertPool()
	w.roots.AddCert(w.ca)

	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	w.dnsAddr = pc.LocalAddr().String()
	ds := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(w.serveDNS)}
	go func() { _ = ds.ActivateAndServe() }()

	secure, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.httpsPort = secure.Addr().(*net.TCPAddr).Port
	accepted := &chanListener{addr: secure.Addr(), ch: make(chan net.Conn), done: make(chan struct{})}
	hs := &http.Server{Handler: http.HandlerFunc(w.serveHTTPS), ErrorLog: nil}
	go func() { _ = hs.Serve(accepted) }()
	go func() {
		for {
			c, err := secure.Accept()
			if err != nil {
				return
			}
			w.conns.Go(func() { w.hello(c, accepted) })
		}
	}()

	open, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.httpPort = open.Addr().(*net.TCPAddr).Port
	ps := &http.Server{Handler: http.HandlerFunc(w.servePlain)}
	go func() { _ = ps.Serve(open) }()

	t.Cleanup(func() {
		_ = ds.Shutdown()
		_ = secure.Close()
		_ = accepted.Close()
		_ = hs.Close()
		_ = ps.Close()
		w.mu.Lock()
		for _, c := range w.held {
			_ = c.Close()
		}
		w.mu.Unlock()
		w.conns.Wait()
	})
	return w
}

// walker is a Walker for this world, with a password.
func (w *world) walker(client string) *Walker {
	w.t.Helper()
	p, ok := Find(client)
	if !ok {
		w.t.Fatalf("no profile %s", client)
	}
	return &Walker{
		Profile: p, Resolver: w.dnsAddr, RootCAs: w.roots,
		Credentials: Credentials{Password: "s3cret-pass", AllowBasic: true},
		Ports:       map[int]int{443: w.httpsPort, 80: w.httpPort},
		StepTimeout: 20 * time.Second, // nothing waits for it
	}
}

// a gives names the loopback address.
func (w *world) a(names ...string) {
	for _, n := range names {
		w.record(n + ". 60 IN A 127.0.0.1")
	}
}

func (w *world) record(line string) {
	rr, err := dns.NewRR(line)
	must(w.t, err)
	k := dns.TypeToString[rr.Header().Rrtype] + " " + rr.Header().Name
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records[k] = append(w.records[k], line)
}

func (w *world) serveDNS(out dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	w.mu.Lock()
	w.questions = append(w.questions, dns.TypeToString[q.Question[0].Qtype]+" "+name)
	exists := false
	for k, lines := range w.records {
		typ, n, _ := strings.Cut(k, " ")
		if n != name {
			continue
		}
		exists = true
		if typ == dns.TypeToString[q.Question[0].Qtype] || typ == "CNAME" {
			for _, l := range lines {
				rr, _ := dns.NewRR(l)
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	w.mu.Unlock()
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	_ = out.WriteMsg(m)
}

// tls makes names answer on 443 with a good certificate for them.
func (w *world) tls(handler http.HandlerFunc, names ...string) {
	w.a(names...)
	cert := w.cert(func(*x509.Certificate) {}, names...)
	for _, n := range names {
		w.set(n, &host{cert: cert, handler: handler})
	}
}

func (w *world) set(name string, h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[name] = h
}

func (w *world) http(handler http.HandlerFunc, names ...string) {
	w.a(names...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		w.plain[n] = handler
	}
}

// cert issues a certificate by the world's CA; change may turn it bad.
func (w *world) cert(change func(*x509.Certificate), names ...string) *tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(w.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, w.ca, key.Public(), w.key)
	must(w.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// selfSigned is what Exchange's set-up leaves behind: short name and FQDN, issued by itself.
func (w *world) selfSigned(names ...string) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(w.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(w.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var errPeeked = errors.New("peeked")

// hello reads a ClientHello and does with the connection what the name's host says.
func (w *world) hello(c net.Conn, accepted *chanListener) {
	head := make([]byte, 5)
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, head); err != nil {
		_ = c.Close()
		return
	}
	rec := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(c, rec); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	peeked := append(head, rec...)
	var sni string
	_ = tls.Server(&replay{r: bytes.NewReader(peeked), Conn: c, mute: true}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			sni = h.ServerName
			return nil, errPeeked
		},
	}).Handshake()

	w.mu.Lock()
	h := w.hosts[sni]
	w.mu.Unlock()
	switch {
	case h == nil:
		unrecognized(c)
	case h.raw != nil:
		w.mu.Lock()
		w.held = append(w.held, c)
		w.mu.Unlock()
		h.raw(c)
	default:
		accepted.give(tls.Server(&replay{r: io.MultiReader(bytes.NewReader(peeked), c), Conn: c}, &tls.Config{
			Certificates: []tls.Certificate{*h.cert}, NextProtos: []string{"h2", "http/1.1"},
		}))
	}
}

// unrecognized sends the fatal alert of RFC 6066 section 3 in a TLS 1.2 record.
func unrecognized(c net.Conn) {
	_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 112})
	_ = c.Close()
}

// reset closes with RST.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// hang keeps the connection and says nothing.
func hang(net.Conn) {}

func (w *world) serveHTTPS(rw http.ResponseWriter, r *http.Request) {
	name := r.TLS.ServerName
	w.note("https", r)
	if r.Host != name || r.ProtoMajor != 1 {
		w.t.Errorf("Host %q, SNI %q, %s", r.Host, name, r.Proto)
	}
	w.mu.Lock()
	h := w.hosts[name]
	w.mu.Unlock()
	h.handler(rw, r)
}

func (w *world) servePlain(rw http.ResponseWriter, r *http.Request) {
	w.note("http", r)
	w.mu.Lock()
	if r.Header["Authorization"] != nil {
		w.leaked = append(w.leaked, r.Host)
	}
	h := w.plain[r.Host]
	w.mu.Unlock()
	if h == nil {
		http.NotFound(rw, r)
		return
	}
	h(rw, r)
}

func (w *world) note(scheme string, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	line := r.Method + " " + scheme + "://" + r.Host + r.URL.RequestURI()
	if auth := r.Header.Get("Authorization"); auth != "" {
		kind, _, _ := strings.Cut(auth, " ")
		line += " " + kind
	}
	h := r.Header.Clone()
	h.Set("Host", r.Host)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
	w.headers = append(w.headers, h)
	w.bodies = append(w.bodies, string(body))
}

// requests is what the servers have seen so far, in order.
func (w *world) requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

// want compares the requests seen by the servers with the reference's order.
func (w *world) want(lines ...string) {
	w.t.Helper()
	if got := w.requests(); !slices.Equal(got, lines) {
		w.t.Errorf("requests seen by the servers:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

// replay serves bytes that were already read; mute swallows what is written.
type replay struct {
	r io.Reader
	net.Conn
	mute bool
}

func (c *replay) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *replay) Write(b []byte) (int, error) {
	if c.mute {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

type chanListener struct {
	addr net.Addr
	ch   chan net.Conn
	once sync.Once
	done chan struct{}
}

func (l *chanListener) give(c net.Conn) {
	select {
	case l.ch <- c:
	case <-l.done:
		_ = c.Close()
	}
}

func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *chanListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *chanListener) Addr() net.Addr { return l.addr }

// Documents and servers.

const frame = `<?xml version="1.0" encoding="utf-8"?>` +
	`<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">%s</Autodiscover>`

func outlookDoc(account string) string {
	return fmt.Sprintf(frame, `<Response xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"><Account>`+account+`</Account></Response>`)
}

func settingsDoc() string {
	return outlookDoc(`<AccountType>email</AccountType><Action>settings</Action>` +
		`<Protocol><Type>EXCH</Type><Server>1f0e@contoso.com</Server><EwsUrl>https://mail.contoso.com/EWS/Exchange.asmx</EwsUrl><EcpUrl-um>?p=x</EcpUrl-um></Protocol>` +
		`<Protocol><Type>EXPR</Type><Server>mail.contoso.com</Server></Protocol>` +
		`<Protocol><Type>WEB</Type><External><OWAUrl AuthenticationMethod="Fba">https://mail.contoso.com/owa/</OWAUrl></External></Protocol>`)
}

func mobileDoc(server string) string {
	return fmt.Sprintf(frame, `<Response xmlns="http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006">`+
		`<Culture>en:us</Culture><User><EMailAddress>pat@contoso.com</EMailAddress></User><Action><Settings><Server>`+server+`</Server></Settings></Action></Response>`)
}

const mobileServer = `<Type>MobileSync</Type><Url>https://mail.contoso.com/Microsoft-Server-ActiveSync</Url><Name>https://mail.contoso.com/Microsoft-Server-ActiveSync</Name>`

func errorDoc(code int, message string) string {
	return fmt.Sprintf(frame, fmt.Sprintf(`<Response><Error Time="09:41:07.1234567" Id="7"><ErrorCode>%d</ErrorCode><Message>%s</Message><DebugData /></Error></Response>`, code, message))
}

// basicPOX demands Basic for user:s3cret-pass and answers doc.
func basicPOX(user, doc string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != "s3cret-pass" {
			w.Header().Set("WWW-Authenticate", `Basic realm="contoso"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer(doc)(w, r)
	}
}

func answer(doc string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/autodiscover/autodiscover.xml" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
		_, _ = io.WriteString(w, doc)
	}
}

func redirectTo(code int, target string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", target)
		w.WriteHeader(code)
	}
}

// ntlmServer is a small double: it checks the order of messages and that they share one connection, not the password's proof.
// The user "wrong" is refused.
type ntlmServer struct {
	mu    sync.Mutex
	stage map[string]int // by client connection
	doc   string
	drop  bool // close the connection after the challenge
}

func (s *ntlmServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stage == nil {
		s.stage = map[string]int{}
	}
	token, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "NTLM "))
	kind := uint32(0)
	if len(token) > 12 && string(token[:8]) == "NTLMSSP\x00" {
		kind = binary.LittleEndian.Uint32(token[8:])
	}
	body, _ := io.ReadAll(r.Body)
	switch {
	case kind == 1 && len(body) == 0:
		s.stage[r.RemoteAddr] = 2
		if s.drop {
			w.Header().Set("Connection", "close")
		}
		w.Header().Set("WWW-Authenticate", "NTLM "+base64.StdEncoding.EncodeToString(challengeMessage()))
		w.WriteHeader(http.StatusUnauthorized)
	case kind == 3 && s.stage[r.RemoteAddr] == 2 && len(body) > 0 && bytes.Contains(token, utf16("pat@contoso.com")):
		answer(s.doc)(w, r)
	default:
		w.Header().Add("WWW-Authenticate", "Negotiate")
		w.Header().Add("WWW-Authenticate", "NTLM")
		w.Header().Add("WWW-Authenticate", `Basic realm="contoso"`)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, strings.Repeat("denied ", 500))
	}
}

func utf16(s string) []byte {
	var b []byte
	for _, r := range s {
		b = binary.LittleEndian.AppendUint16(b, uint16(r))
	}
	return b
}

// challengeMessage is CHALLENGE_MESSAGE of [MS-NLMP] 2.2.1.2 with an empty list of target information.
func challengeMessage() []byte {
	var b bytes.Buffer
	b.WriteString("NTLMSSP\x00")
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	put(uint32(2))
	put([]uint16{0, 0})
	put(uint32(48))
	put(uint32(1 | 1<<2 | 1<<9 | 1<<19 | 1<<23)) // Unicode, target, NTLM, extended session security, target information
	put(uint64(0x0123456789abcdef))
	put(uint64(0))
	put([]uint16{4, 4})
	put(uint32(48))
	put(uint32(0)) // MsvAvEOL
	return b.Bytes()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func walk1(w *Walker, address string) *Trace {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return w.Walk(ctx, address)
}

// find returns the first step of a kind, in order of the walk, whose line contains text.
func find(t *testing.T, tr *Trace, kind Kind, text string) *Step {
	t.Helper()
	var look func([]*Step) *Step
	look = func(steps []*Step) *Step {
		for _, s := range steps {
			if s.Kind == kind && strings.Contains(s.What, text) {
				return s
			}
			if c := look(s.Children); c != nil {
				return c
			}
		}
		return nil
	}
	s := look(tr.Steps)
	if s == nil {
		var b strings.Builder
		_ = tr.WriteText(&b, Render{Stable: true})
		t.Fatalf("no %s step %q in\n%s", kind, text, b.String())
	}
	return s
}
