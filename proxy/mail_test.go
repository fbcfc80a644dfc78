package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// mailServer is a mail server that a test scripts.
type mailServer struct {
	t    testing.TB
	ln   net.Listener
	cert tls.Certificate

	mu    sync.Mutex
	conns []net.Conn
}

// mailPeer is one connection at a mailServer.
type mailPeer struct {
	net.Conn
	br     *bufio.Reader
	server *mailServer
}

// newMailServer starts a server that runs script on every connection, which begins
// in clear.
func newMailServer(t testing.TB, script func(*mailPeer)) *mailServer {
	t.Helper()
	s := &mailServer{t: t, cert: newCertificate(t, "imap.contoso.local")}
	var err error
	if s.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := s.ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(2 * time.Minute))
				p := &mailPeer{Conn: conn, br: bufio.NewReader(conn), server: s}
				script(p)
				p.Conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		s.ln.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *mailServer) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// backend is how the front door is told of the server.
func (s *mailServer) backend() *Backend {
	roots := x509.NewCertPool()
	roots.AddCert(s.cert.Leaf)
	return &Backend{
		Name: "imap.contoso.local", Address: s.ln.Addr().String(),
		TLS: &tls.Config{RootCAs: roots, ServerName: "imap.contoso.local"},
	}
}

func (s *mailServer) startTLSBackend() *Backend {
	b := s.backend()
	b.StartTLS = true
	return b
}

// secure goes over to TLS.
func (p *mailPeer) secure() bool {
	tc := tls.Server(p.Conn, &tls.Config{Certificates: []tls.Certificate{p.server.cert}})
	if tc.Handshake() != nil {
		return false
	}
	p.Conn, p.br = tc, bufio.NewReader(tc)
	return true
}

func (p *mailPeer) say(text string) { io.WriteString(p.Conn, text) }

func (p *mailPeer) line() string {
	line, err := p.br.ReadString('\n')
	if err != nil {
		return ""
	}
	return line
}

// echoLines answers every line with itself behind a mark, until QUIT.
func (p *mailPeer) echoLines() {
	for line := p.line(); line != ""; line = p.line() {
		p.say("echo " + line)
		if strings.TrimSpace(line) == "QUIT" {
			return
		}
	}
}

// greet is the beginning of a server in each language: its greeting, and what it
// answers to what asks for TLS.
var greetings = map[string]string{"imap": "* OK Dovecot ready.\r\n", "pop3": "+OK ready <1@x>\r\n", "smtp": "220-imap.contoso.local\r\n220 ESMTP\r\n"}

func languageOf(p MailProtocol) string { return mailProtocols[p].dialect.alpn[0] }

// implicit is a server with TLS from the first byte.
func implicit(p MailProtocol) func(*mailPeer) {
	return func(c *mailPeer) {
		if c.secure() {
			c.say(greetings[languageOf(p)])
			c.echoLines()
		}
	}
}

// startTLSServer is one whose TLS begins by STARTTLS.
func startTLSServer(p MailProtocol, trailing string) func(*mailPeer) {
	return func(c *mailPeer) {
		c.say(greetings[languageOf(p)])
		for {
			switch line := strings.ToUpper(strings.TrimSpace(c.line())); {
			case line == "":
				return
			case strings.HasPrefix(line, "EHLO "):
				c.say("250-imap.contoso.local\r\n250-SIZE 1000\r\n250-starttls\r\n250 HELP\r\n")
				continue
			case line == "A STARTTLS":
				c.say("* CAPABILITY IMAP4rev1\r\na OK go\r\n" + trailing)
			case line == "STLS":
				c.say("+OK go\r\n" + trailing)
			case line == "STARTTLS":
				c.say("220 go\r\n" + trailing)
			default:
				c.say("BAD " + line + "\r\n")
				return
			}
			if c.secure() {
				c.echoLines()
			}
			return
		}
	}
}

// clearServer speaks in clear alone.
func clearServer(p MailProtocol) func(*mailPeer) {
	return func(c *mailPeer) {
		c.say(greetings[languageOf(p)])
		c.echoLines()
	}
}

// mailFront is a front door with one mail listener.
type mailFront struct {
	*front
	protocol MailProtocol
	address  string
}

// newMailFront serves a protocol for mail.contoso.com.
func newMailFront(t testing.TB, p MailProtocol, mode Mode, change func(*Mail, *Options, *Table), backends ...*Backend) *mailFront {
	t.Helper()
	f := &mailFront{protocol: p}
	f.front = newFront(t, func(fr *front, o *Options, table *Table) {
		conf := fr.mail.TLS.Clone()
		conf.NextProtos = p.ALPN()
		m := &Mail{Mode: mode, TLS: conf, Site: &Site{Name: "mail", Backends: backends, ConnectTimeout: time.Minute}}
		fr.mail.Mail = map[MailProtocol]*Mail{p: m}
		if change != nil {
			change(m, o, table)
		}
	})
	f.address = f.listen(func(ln net.Listener, name string) error { return f.ServeMail(ln, name, p) }, ":mail")
	return f
}

// open connects, without a word.
func (f *mailFront) open() *client {
	f.t.Helper()
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		f.t.Fatal(err)
	}
	return newClient(f.t, c)
}

// line reads a line without its CRLF.
func (c *client) line() string {
	c.t.Helper()
	line, err := c.br.ReadString('\n')
	if err != nil {
		c.t.Fatalf("line: %v after %q", err, line)
	}
	if !strings.HasSuffix(line, "\r\n") {
		c.t.Fatalf("line without CRLF: %q", line)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// secure goes over to TLS.
func (c *client) secure(conf *tls.Config) error {
	tc := tls.Client(c.Conn, conf)
	if err := tc.Handshake(); err != nil {
		return err
	}
	c.Conn, c.br = tc, bufio.NewReader(tc)
	return nil
}

var upgrades = map[string]struct{ ask, answer string }{
	"imap": {"x1 STARTTLS\r\n", "x1 OK "}, "pop3": {"STLS\r\n", "+OK "}, "smtp": {"STARTTLS\r\n", "220 "},
}

// askTLS leads a STARTTLS connection to where the hello is due.
func (c *client) askTLS(p MailProtocol) {
	c.t.Helper()
	if !p.StartTLS() {
		return
	}
	c.line() // greeting
	u := upgrades[languageOf(p)]
	c.send(u.ask)
	if got := c.line(); !strings.HasPrefix(got, u.answer) {
		c.t.Fatalf("answer to %q: %q", u.ask, got)
	}
}

// connect is a client of the protocol, up to its turn to speak under TLS.
func (f *mailFront) connect(conf *tls.Config) *client {
	f.t.Helper()
	c := f.open()
	c.askTLS(f.protocol)
	if conf == nil {
		conf = &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"}
	}
	if err := c.secure(conf); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// greeted reads the greeting that comes under TLS where it does.
func (c *client) greeted(p MailProtocol) string {
	c.t.Helper()
	if p.StartTLS() {
		return ""
	}
	first := c.line()
	if strings.HasPrefix(first, "220-") {
		c.line()
	}
	return first
}

var allMail = []MailProtocol{IMAPS, POP3S, Submissions, IMAP, POP3, Submission}

// Every protocol reaches every sort of server, and the client sees one greeting and
// never two, whoever spoke first on either side.
func TestMailBridge(t *testing.T) {
	t.Parallel()
	for _, p := range allMail {
		for kind, begin := range map[string]func() (func(*mailPeer), func(*mailServer) *Backend){
			"tls": func() (func(*mailPeer), func(*mailServer) *Backend) { return implicit(p), (*mailServer).backend },
			"starttls": func() (func(*mailPeer), func(*mailServer) *Backend) {
				return startTLSServer(p, ""), (*mailServer).startTLSBackend
			},
			"tcp": func() (func(*mailPeer), func(*mailServer) *Backend) {
				return clearServer(p), func(s *mailServer) *Backend { b := s.backend(); b.TLS = nil; return b }
			},
		} {
			t.Run(p.String()+" to "+kind, func(t *testing.T) {
				t.Parallel()
				script, backend := begin()
				s := newMailServer(t, script)
				f := newMailFront(t, p, Bridge, nil, backend(s))
				c := f.connect(nil)
				if greeting, want := c.greeted(p), map[string]string{"imap": "* OK ", "pop3": "+OK ", "smtp": "220"}[languageOf(p)]; !p.StartTLS() && !strings.HasPrefix(greeting, want) {
					t.Errorf("greeting %q", greeting)
				}
				c.send("hello\r\n")
				if got := c.line(); got != "echo hello" {
					t.Errorf("first words under TLS: %q", got)
				}
				c.send("QUIT\r\n")
				if got := c.line(); got != "echo QUIT" {
					t.Errorf("last words: %q", got)
				}
				c.ends()
				c.Close()
				f.waitForLog(`"protocol":"` + p.String() + `"`)
				for _, want := range []string{`"host":"mail.contoso.com"`, `"mode":"bridge"`, `"backend":"imap.contoso.local"`, `"sni":"mail.contoso.com"`, `"in":13,`} {
					if !strings.Contains(f.log.String(), want) {
						t.Errorf("the log lacks %s: %s", want, f.log)
					}
				}
				if strings.Contains(f.log.String(), "hello\\r") {
					t.Error("the log holds what was said")
				}
			})
		}
	}
}

// Passed through, the client ends its TLS at the server, also behind STARTTLS.
func TestMailPassthrough(t *testing.T) {
	t.Parallel()
	for _, p := range allMail {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			script, backend := implicit(p), (*mailServer).backend
			if p.StartTLS() {
				script, backend = startTLSServer(p, ""), (*mailServer).startTLSBackend
			}
			s := newMailServer(t, script)
			f := newMailFront(t, p, Passthrough, func(m *Mail, _ *Options, _ *Table) { m.TLS = nil }, backend(s))
			roots := x509.NewCertPool()
			roots.AddCert(s.cert.Leaf)
			c := f.open()
			c.askTLS(p)
			if err := c.secure(&tls.Config{RootCAs: roots, ServerName: "mail.contoso.com", InsecureSkipVerify: true}); err != nil {
				t.Fatal(err)
			}
			if leaf := c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0]; !leaf.Equal(s.cert.Leaf) {
				t.Errorf("certificate of %v", leaf.DNSNames)
			}
			c.greeted(p)
			c.send("hello\r\n")
			if got := c.line(); got != "echo hello" {
				t.Errorf("first words under TLS: %q", got)
			}
			c.Close()
			f.waitForLog(`"mode":"passthrough"`)
		})
	}
}

// A name nobody serves, and one that serves other protocols, get unrecognized_name;
// no server is asked.
func TestMailUnknownName(t *testing.T) {
	t.Parallel()
	for _, p := range allMail {
		s := newMailServer(t, implicit(p))
		f := newMailFront(t, p, Bridge, nil, s.backend())
		for _, name := range []string{"imap.fabrikam.com", "autodiscover.contoso.com"} {
			c := f.open()
			c.askTLS(p)
			if err := c.secure(&tls.Config{ServerName: name, InsecureSkipVerify: true}); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%v, %s: %v", p, name, err)
			}
			c.Close() // or its FIN is waited for
		}
		f.waitForLog("unknown server name")
		f.waitForLog("no " + p.String() + " under this name")
		if n := s.accepted(); n != 0 {
			t.Errorf("%v: %d connections at the server", p, n)
		}
	}
}

// Old mail clients send no name: they get the default host of the listener.
func TestMailWithoutName(t *testing.T) {
	t.Parallel()
	for _, p := range []MailProtocol{IMAPS, Submission} {
		s := newMailServer(t, implicit(p))
		for _, key := range []string{":mail", ""} {
			f := newMailFront(t, p, Bridge, func(_ *Mail, _ *Options, table *Table) { table.Defaults[key] = table.Hosts["mail.contoso.com"] }, s.backend())
			c := f.connect(&tls.Config{InsecureSkipVerify: true})
			c.greeted(p)
			c.send("hello\r\n")
			if got := c.line(); got != "echo hello" {
				t.Errorf("%v: %q", p, got)
			}
		}
		f := newMailFront(t, p, Bridge, nil, s.backend())
		c := f.open()
		c.askTLS(p)
		if err := c.secure(&tls.Config{InsecureSkipVerify: true}); err == nil {
			t.Errorf("%v: served without a name and without a default host", p)
		}
	}
}

// A client that names its protocol in ALPN is served, one that names another's is
// not: a browser made to speak to a mail server gets nowhere (RFC 9325 section 3.7).
func TestMailALPN(t *testing.T) {
	t.Parallel()
	for _, p := range allMail {
		s := newMailServer(t, implicit(p))
		f := newMailFront(t, p, Bridge, nil, s.backend())
		for _, proto := range p.ALPN() {
			c := f.connect(&tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com", NextProtos: []string{proto}})
			if got := c.Conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != proto {
				t.Errorf("%v: agreed on %q, want %q", p, got, proto)
			}
		}
		c := f.open()
		c.askTLS(p)
		if err := c.secure(&tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com", NextProtos: []string{"h2", "http/1.1"}}); err == nil {
			t.Errorf("%v: a browser was served", p)
		}
		f.waitForLog("did not mean to speak " + p.String())
	}
}

// Sessions are resumed, and not from one protocol to another.
func TestMailResumption(t *testing.T) {
	t.Parallel()
	s := newMailServer(t, implicit(IMAPS))
	f := newMailFront(t, IMAPS, Bridge, nil, s.backend())
	conf := &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com", ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	for i := range 2 {
		c := f.connect(conf)
		c.greeted(IMAPS)
		c.send("QUIT\r\n")
		c.line()
		c.ends()
		if got := c.Conn.(*tls.Conn).ConnectionState().DidResume; got != (i == 1) {
			t.Errorf("connection %d resumed: %v", i, got)
		}
	}
	c, err := tls.Dial("tcp", f.https, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.ConnectionState().DidResume {
		t.Error("a session of IMAP was resumed for HTTPS")
	}
}

// Without a server the client hears it in the words of its protocol, under TLS, and
// the log has the cause.
func TestMailServerDown(t *testing.T) {
	t.Parallel()
	words := map[string]string{"imap": "* BYE ", "pop3": "-ERR [SYS/TEMP] ", "smtp": "421 4.3.2 "}
	// Nobody listens on port 1, and no other test can get it meanwhile.
	down := &Backend{Name: "down.contoso.local", Address: "127.0.0.1:1", TLS: &tls.Config{ServerName: "down.contoso.local"}}
	stranger := newMailServer(t, implicit(IMAPS))
	wrong := stranger.backend()
	wrong.TLS.RootCAs = x509.NewCertPool()
	for _, p := range allMail {
		for cause, b := range map[string]*Backend{"connection refused": down, "trust: {ca": wrong} {
			f := newMailFront(t, p, Bridge, nil, b)
			c := f.connect(nil)
			if got := c.line(); !strings.HasPrefix(got, words[languageOf(p)]) {
				t.Errorf("%v: %q", p, got)
			}
			c.ends()
			f.waitForLog(cause)
			f.waitForLog(`"level":"error"`)
		}
	}
}

// A server that cannot be reached, or brought to TLS, or that greets with a
// refusal, is passed over for the next.
func TestMailNextServer(t *testing.T) {
	t.Parallel()
	good := newMailServer(t, startTLSServer(Submission, ""))
	bad := map[string]*mailServer{
		"550 no":         newMailServer(t, func(c *mailPeer) { c.say("550 no\r\n") }),
		"does not offer": newMailServer(t, func(c *mailPeer) { c.say("220 x\r\n"); c.line(); c.say("250-x\r\n250 HELP\r\n") }),
		"454 not now": newMailServer(t, func(c *mailPeer) {
			c.say("220 x\r\n")
			c.line()
			c.say("250-x\r\n250 STARTTLS\r\n")
			c.line()
			c.say("454 not now\r\n")
		}),
		"more behind":    newMailServer(t, startTLSServer(Submission, "250 injected\r\n")),
		"bare CR":        newMailServer(t, func(c *mailPeer) { c.say("220 x\n"); c.line() }),
		"too many lines": newMailServer(t, func(c *mailPeer) { c.say(strings.Repeat("220-x\r\n", 200)); c.line() }),
		"line too long":  newMailServer(t, func(c *mailPeer) { c.say("220 " + strings.Repeat("x", 9000) + "\r\n"); c.line() }),
		"EOF":            newMailServer(t, func(c *mailPeer) {}),
		"TLS with backend": newMailServer(t, func(c *mailPeer) {
			c.say("220 x\r\n")
			c.line()
			c.say("250-x\r\n250 STARTTLS\r\n")
			c.line()
			c.say("220 go\r\n")
			c.line()
		}),
		"the server said \"2x": newMailServer(t, func(c *mailPeer) { c.say("2x\r\n"); c.line() }),
	}
	try := func(t *testing.T, want string, s *mailServer) {
		for _, mode := range []Mode{Bridge, Passthrough} {
			if want == "TLS with backend" && mode == Passthrough {
				continue // it is not ours
			}
			// Two connections, since the servers take turns.
			f := newMailFront(t, Submission, mode, nil, s.startTLSBackend(), good.startTLSBackend())
			for range 2 {
				c := f.connect(&tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"})
				c.send("hello\r\n")
				if got := c.line(); got != "echo hello" {
					t.Errorf("%s: %q", want, got)
				}
			}
			// Alone it is the cause in the log.
			f = newMailFront(t, Submission, mode, nil, s.startTLSBackend())
			c := f.open()
			c.askTLS(Submission)
			if err := c.secure(&tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"}); (err == nil) != (mode == Bridge) {
				t.Errorf("%s: handshake: %v", want, err)
			}
			f.waitForLog(strings.ReplaceAll(want, `"`, `\"`))
		}
	}
	for want, s := range bad {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			try(t, want, s)
		})
	}
}

// What a server says behind its consent to TLS, and what it says instead of a
// welcome, is an error in every language.
func TestMailUnwelcome(t *testing.T) {
	t.Parallel()
	f := func(p MailProtocol, said string, wantTLS, wantGreeting string) {
		t.Helper()
		d := mailProtocols[p].dialect
		check := func(what, want string, err error) {
			t.Helper()
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, %s after %q: %v, want %q", p, what, said, err, want)
			}
		}
		check("TLS", wantTLS, d.toTLS(newPeekedConn(&scriptedConn{r: strings.NewReader(said)}), "mail.contoso.com"))
		check("greeting", wantGreeting, d.greeted(newPeekedConn(&scriptedConn{r: strings.NewReader(said)})))
	}
	f(IMAP, "* OK x\r\na OK x\r\n", "", "")
	f(IMAP, "* ok x\r\n* CAPABILITY X\r\na ok\r\n", "", "")
	f(IMAP, "* PREAUTH x\r\na OK x\r\n", "PREAUTH", "PREAUTH")
	f(IMAP, "* BYE x\r\n", "BYE", "BYE")
	f(IMAP, "* OKAY\r\n", "OKAY", "OKAY")
	f(IMAP, "* OK x\r\na NO x\r\n", "a NO", "")
	f(IMAP, "* OK x\r\nb OK x\r\n", "b OK", "")
	f(IMAP, "* OK x\r\n"+strings.Repeat("* x\r\n", 200), "too many", "")
	f(IMAP, "* OK x", "EOF", "EOF")
	f(POP3, "+OK\r\n+OK\r\n", "", "")
	f(POP3, "+OKAY\r\n", "OKAY", "OKAY")
	f(POP3, "-ERR x\r\n", "-ERR", "-ERR")
	f(POP3, "+OK x\r\n-ERR x\r\n", "-ERR", "")
	f(Submission, "220 x\r\n250-x\r\n250 STARTTLS\r\n220\r\n", "", "")
	f(Submission, "220-x\r\n220 y\r\n250-x\r\n250-starttls\r\n250 X\r\n220 x\r\n", "", "")
	f(Submission, "220 x\r\n250 STARTTLS\r\n", "does not offer", "") // the first line is the server's name
	f(Submission, "2200 x\r\n", "2200", "2200")
	f(Submission, "220-x\r\n421 y\r\n", "421", "421")
}

// A client that has said all it has to say still gets the answers, and the server
// learns of the end; so does a client whose server has closed.
func TestMailHalfClose(t *testing.T) {
	t.Parallel()
	for _, p := range []MailProtocol{IMAPS, Submission} {
		s := newMailServer(t, func(c *mailPeer) {
			if !c.secure() {
				return
			}
			c.say(greetings[languageOf(p)])
			data, err := io.ReadAll(c.br) // up to close_notify
			c.say(fmt.Sprintf("%d bytes, %v\r\n", len(data), err))
		})
		f := newMailFront(t, p, Bridge, nil, s.backend())
		c := f.connect(nil)
		c.greeted(p)
		big := strings.Repeat("x", 100_000)
		c.send(big)
		if err := c.Conn.(*tls.Conn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := c.line(); got != "100000 bytes, <nil>" {
			t.Errorf("%v: %q", p, got)
		}
		c.ends()
		c.Close()
		f.waitForLog(`"in":100000,`)
	}
}

// Silence ends a connection after the limit, and bytes in either direction start it
// again: a client in IDLE that speaks in time stays (RFC 2177).
func TestMailIdle(t *testing.T) {
	t.Parallel()
	if imap := mailProtocols[IMAP].dialect.idle; imap <= 30*time.Minute {
		t.Errorf("IMAP: %v; a server has to wait for 30 minutes at least (RFC 9051 section 5.4)", imap)
	}
	for _, p := range []MailProtocol{POP3, Submission} {
		if idle := mailProtocols[p].dialect.idle; idle <= 10*time.Minute {
			t.Errorf("%v: %v; a server has to wait for 10 minutes at least (RFC 1939 section 3, RFC 5321 section 4.5.3.2)", p, idle)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		client, farClient := net.Pipe()
		backend, farBackend := net.Pipe()
		p := &passthroughPair{client: client, backend: backend}
		defer p.limitIdle(31 * time.Minute)()
		ended := make(chan error, 1)
		go func() {
			_, _, err := p.join(t.Context(), zerolog.Nop())
			ended <- err
		}()
		for _, way := range [][2]net.Conn{{farClient, farBackend}, {farBackend, farClient}, {farClient, farBackend}} {
			time.Sleep(29 * time.Minute)
			go io.WriteString(way[0], "x")
			if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
				t.Fatalf("after 29 minutes: %v", err)
			}
		}
		start := time.Now()
		if err := <-ended; !errors.Is(err, errIdle) {
			t.Errorf("ended with %v", err)
		}
		if d := time.Since(start); d != 31*time.Minute {
			t.Errorf("silence ended after %v", d)
		}
	})
	for _, mode := range []Mode{Bridge, Passthrough} {
		const idle = time.Second
		s := newMailServer(t, implicit(IMAPS))
		f := newMailFront(t, IMAPS, mode, func(m *Mail, _ *Options, _ *Table) { m.Idle = idle }, s.backend())
		start := time.Now()
		c := f.connect(&tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"})
		c.greeted(IMAPS)
		if line, err := c.br.ReadString('\n'); err == nil || isTimeout(err) {
			t.Fatalf("silence is not ended: %q, %v", line, err)
		}
		if d := time.Since(start); d < idle {
			t.Errorf("ended after %v already", d)
		}
		f.waitForLog("nothing moved in either direction for 1s")
	}
}

// A server that has closed leaves its client a moment and no more.
func TestMailServerCloses(t *testing.T) {
	t.Parallel()
	s := newMailServer(t, func(c *mailPeer) {
		if c.secure() {
			c.say(greetings["imap"] + "* BYE shutting down\r\n")
		}
	})
	f := newMailFront(t, IMAPS, Bridge, nil, s.backend())
	c := f.connect(nil)
	c.greeted(IMAPS)
	if got := c.line(); got != "* BYE shutting down" {
		t.Error(got)
	}
	c.ends()
	eventually(t, "the client's connection is gone though it does not close", func() bool { return f.Connections() == 0 })
}

// Shutdown ends mail connections when its time is over.
func TestMailShutdown(t *testing.T) {
	t.Parallel()
	s := newMailServer(t, implicit(IMAPS))
	f := newMailFront(t, IMAPS, Bridge, nil, s.backend())
	c := f.connect(nil)
	c.greeted(IMAPS)
	waiting := f.open()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := f.Shutdown(ctx); err == nil {
		t.Error("nothing had to be cut")
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.br.ReadByte(); err == nil || isTimeout(err) {
		t.Error("the connection goes on")
	}
	waiting.SetReadDeadline(time.Now().Add(patience))
	if _, err := waiting.br.ReadByte(); err == nil || isTimeout(err) {
		t.Error("the connection without a hello goes on")
	}
}

// the mail server is told the client's address before any other byte, as
// the PROXY header of a trusted proxy in front gives it if there was one.
func TestMailSendProxy(t *testing.T) {
	t.Parallel()
	for _, version := range []ProxyVersion{ProxyV1, ProxyV2} {
		for _, p := range []MailProtocol{IMAPS, Submission} {
			for _, mode := range []Mode{Bridge, Passthrough} {
				for _, behind := range []bool{false, true} {
					seen := make(chan string, 1)
					s := newMailServer(t, func(c *mailPeer) {
						pc := newPeekedConn(c.Conn)
						src, dst, err := readProxyHeader(pc)
						seen <- fmt.Sprint(src, " ", dst, " ", err)
						c.Conn, c.br = pc, bufio.NewReader(pc)
						if p.StartTLS() {
							startTLSServer(p, "")(c)
						} else {
							implicit(p)(c)
						}
					})
					b := s.backend()
					b.StartTLS, b.SendProxy = p.StartTLS(), version
					f := newMailFront(t, p, mode, func(_ *Mail, o *Options, _ *Table) {
						if behind {
							o.ProxyProtocolFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
						}
					}, b)
					c := f.open()
					want := fmt.Sprint(c.LocalAddr(), " ", c.RemoteAddr(), " <nil>")
					if behind {
						c.send("PROXY TCP6 2001:db8::7 2001:db8::1 50000 993\r\n")
						want = "[2001:db8::7]:50000 [2001:db8::1]:993 <nil>"
					}
					c.askTLS(p)
					if err := c.secure(&tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"}); err != nil {
						t.Fatal(err)
					}
					c.greeted(p)
					c.send("hello\r\n")
					if got := c.line(); got != "echo hello" {
						t.Error(got)
					}
					if got := <-seen; got != want {
						t.Errorf("%v, %v, version %d: header %s, want %s", p, mode, version, got, want)
					}
				}
			}
		}
	}
}

// so are the servers of a passthrough host, and a connection on nobody's
// behalf says LOCAL or UNKNOWN.
func TestPassthroughSendProxy(t *testing.T) {
	t.Parallel()
	headers := make(chan string, 1)
	s := newMailServer(t, func(c *mailPeer) {
		pc := newPeekedConn(c.Conn)
		src, _, err := readProxyHeader(pc)
		h, helloErr := readHello(pc)
		headers <- fmt.Sprint(src, err, h.ServerName, helloErr)
	})
	for _, version := range []ProxyVersion{ProxyV1, ProxyV2} {
		f := newFront(t, func(fr *front, _ *Options, table *Table) {
			b := &Backend{Name: "owa", Address: s.ln.Addr().String(), SendProxy: version}
			table.Hosts["owa.contoso.com"] = &Host{Name: "owa.contoso.com", Mode: Passthrough, Site: &Site{Name: "owa.contoso.com", Backends: []*Backend{b}}}
		})
		raw, err := net.Dial("tcp", f.https)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, raw)
		c.secure(&tls.Config{ServerName: "owa.contoso.com"})
		if got, want := <-headers, fmt.Sprint(raw.LocalAddr(), nil, "owa.contoso.com", nil); got != want {
			t.Errorf("version %d: %s, want %s", version, got, want)
		}
	}
}

func TestProxyHeaderOut(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.7:50000"), netip.MustParseAddrPort("[2001:db8::1]:443")
	f := func(version ProxyVersion, src, dst netip.AddrPort, want string) {
		t.Helper()
		got, err := proxyHeader(version, src, dst)
		if err != nil || string(got) != want {
			t.Errorf("version %d, %v to %v: %q, %v, want %q", version, src, dst, got, err, want)
		}
	}
	none := netip.AddrPort{}
	f(ProxyV1, v4, netip.MustParseAddrPort("198.51.100.1:443"), "PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n")
	f(ProxyV1, v6, v6, "PROXY TCP6 2001:db8::1 2001:db8::1 443 443\r\n")
	f(ProxyV1, v4, v6, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 50000 443\r\n")
	f(ProxyV1, none, none, "PROXY UNKNOWN\r\n")
	f(ProxyV1, v4, none, "PROXY UNKNOWN\r\n")
	f(ProxyV2, v4, netip.MustParseAddrPort("198.51.100.1:443"), string(proxyV2(0x21, 0x11, proxyV4Block...)))
	f(ProxyV2, none, none, string(proxyV2(0x20, 0x00)))
}

// A table names every site of its hosts, so that what is known of mail servers
// outlives a reload.
func TestTableSites(t *testing.T) {
	a, b, c := &Site{Name: "a"}, &Site{Name: "b"}, &Site{Name: "c"}
	table := &Table{Hosts: map[string]*Host{
		"x": {Site: a, Mail: map[MailProtocol]*Mail{IMAPS: {Site: b}, POP3: {Site: c}}},
		"y": {Site: a},
		"z": {},
	}}
	count := map[*Site]int{}
	for _, s := range table.sites() {
		count[s]++
	}
	if want := map[*Site]int{a: 1, b: 1, c: 1}; !maps.Equal(count, want) {
		t.Errorf("%v", count)
	}
}

// A client of a trusted network that has no PROXY header to send waits for our
// greeting, and gets it.
func TestMailTrustedWithoutHeader(t *testing.T) {
	t.Parallel()
	s := newMailServer(t, implicit(IMAP))
	f := newMailFront(t, IMAP, Bridge, func(_ *Mail, o *Options, _ *Table) {
		o.ProxyProtocolFrom, o.HelloTimeout = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, 5*time.Second
	}, s.backend())
	c := f.connect(nil)
	c.send("hello\r\n")
	if got := c.line(); got != "echo hello" {
		t.Error(got)
	}
}
