package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// Malformed heads get 400 (431, 417, 505, 501 where that says more) and a closed
// connection; no backend sees them; nobody else notices.
func TestMalformedRequests(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	host := "Host: mail.contoso.com\r\n"
	for name, tc := range map[string]struct {
		status int
		text   string
	}{
		"bare LF":                    {400, "GET /owa/ HTTP/1.1\nHost: mail.contoso.com\n\n"},
		"bare LF in a header":        {400, "GET /owa/ HTTP/1.1\r\n" + host + "A: b\nC: d\r\n\r\n"},
		"bare CR":                    {400, "GET /owa/ HTTP/1.1\r\n" + host + "A: b\rC: d\r\n\r\n"},
		"NUL":                        {400, "GET /owa/ HTTP/1.1\r\n" + host + "A: b\x00\r\n\r\n"},
		"folded line":                {400, "GET /owa/ HTTP/1.1\r\n" + host + "A: b\r\n c\r\n\r\n"},
		"blank before colon":         {400, "GET /owa/ HTTP/1.1\r\n" + host + "A : b\r\n\r\n"},
		"no colon":                   {400, "GET /owa/ HTTP/1.1\r\n" + host + "A\r\n\r\n"},
		"empty name":                 {400, "GET /owa/ HTTP/1.1\r\n" + host + ": b\r\n\r\n"},
		"no Host":                    {400, "GET /owa/ HTTP/1.1\r\n\r\n"},
		"empty Host":                 {400, "GET /owa/ HTTP/1.1\r\nHost:\r\n\r\n"},
		"port alone":                 {400, "GET /owa/ HTTP/1.1\r\nHost: :443\r\n\r\n"},
		"two Hosts":                  {400, "GET /owa/ HTTP/1.1\r\n" + host + host + "\r\n"},
		"user in Host":               {400, "GET /owa/ HTTP/1.1\r\nHost: a@mail.contoso.com\r\n\r\n"},
		"path in Host":               {400, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com/x\r\n\r\n"},
		"bad port":                   {400, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com:44a\r\n\r\n"},
		"two lengths":                {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na"},
		"length list":                {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: 1, 1\r\n\r\na"},
		"signed length":              {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na"},
		"hex length":                 {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: 0x1\r\n\r\na"},
		"huge length":                {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\na"},
		"length and chunks":          {400, "POST /owa/ HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		"gzip, chunked":              {400, "POST /owa/ HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		"xchunked":                   {400, "POST /owa/ HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
		"two encodings":              {400, "POST /owa/ HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		"chunks in 1.0":              {400, "POST /owa/ HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		"control in target":          {400, "GET /owa/\x01 HTTP/1.1\r\n" + host + "\r\n"},
		"two blanks":                 {400, "GET  /owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"fragment":                   {400, "GET /owa/#x HTTP/1.1\r\n" + host + "\r\n"},
		"no version":                 {400, "GET /owa/\r\n" + host + "\r\n"},
		"lower-case version":         {400, "GET /owa/ http/1.1\r\n" + host + "\r\n"},
		"version 2":                  {505, "GET /owa/ HTTP/2.0\r\n" + host + "\r\n"},
		"relative target":            {400, "GET owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"other scheme":               {400, "GET ftp://mail.contoso.com/ HTTP/1.1\r\n" + host + "\r\n"},
		"method is no token":         {400, "G(T /owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"HTTP/2 preface":             {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		"star with GET":              {400, "GET * HTTP/1.1\r\n" + host + "\r\n"},
		"unknown expectation":        {417, "POST /owa/ HTTP/1.1\r\n" + host + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\na"},
		"long line":                  {431, "GET /owa/ HTTP/1.1\r\n" + host + "A: " + strings.Repeat("a", 90<<10) + "\r\n\r\n"},
		"long request line":          {431, "GET /owa/?" + strings.Repeat("a", 90<<10) + " HTTP/1.1\r\n" + host + "\r\n"},
		"long head":                  {431, "GET /owa/ HTTP/1.1\r\n" + host + strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", 140) + "\r\n"},
		"dot-dot":                    {400, "GET /owa/../ecp/ HTTP/1.1\r\n" + host + "\r\n"},
		"encoded slash":              {400, "GET /owa/..%2fecp/ HTTP/1.1\r\n" + host + "\r\n"},
		"absolute target of nowhere": {421, "GET http://evil.example/owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"other host":                 {421, "GET /owa/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
		"redirect-only host":         {421, "GET /autodiscover/autodiscover.xml HTTP/1.1\r\nHost: autodiscover.contoso.com\r\n\r\n"},
		"unpublished":                {404, "GET /powershell HTTP/1.1\r\n" + host + "\r\n"},
		"TRACE":                      {405, "TRACE /owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"CONNECT":                    {405, "CONNECT mail.contoso.com:443 HTTP/1.1\r\n" + host + "\r\n"},
		"method of another vdir":     {405, "RPC_IN_DATA /owa/ HTTP/1.1\r\n" + host + "\r\n"},
		"malformed chunk size":       {400, "POST /owa/ HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"},
		"1.0 without Host":           {400, "GET /owa/ HTTP/1.0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.dial("mail.contoso.com")
			go io.WriteString(c, tc.text)
			r, _ := c.response("GET")
			if r.StatusCode != tc.status {
				t.Errorf("status %d, want %d", r.StatusCode, tc.status)
			}
			// What could not be parsed ends the connection; what was merely not
			// there does not.
			if s := tc.status; s == 431 || s == 417 || s == 505 {
				c.ends()
			}
		})
	}
	for _, c := range b.connections() {
		for _, h := range c.seen() {
			if !strings.Contains(h, "Transfer-Encoding: chunked") {
				t.Errorf("reached the backend: %q", h)
			}
		}
	}
}

// After a malformed head the connection ends: what follows is never a request.
func TestNothingFollowsAMalformedHead(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nA : b\r\n\r\n" + get("/owa/second"))
	if r, _ := c.response("GET"); r.StatusCode != 400 || !r.Close {
		t.Errorf("%d", r.StatusCode)
	}
	c.ends()
	if n := len(b.connections()); n != 0 {
		t.Errorf("the backend saw %d connections", n)
	}
}

// A malformed chunk in the middle of a body: 400 if nothing was answered, both
// connections closed, and the backend sees no end of the body.
func TestMalformedChunkLater(t *testing.T) {
	b := newRecorder(t, func(c *recorded) { c.head(); io.Copy(io.Discard, c.br) })
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	time.Sleep(2 * quickWait)
	c.send("3\r\nabcX\r\n")
	if r, _ := c.response("POST"); r.StatusCode != 400 || !r.Close {
		t.Errorf("%d", r.StatusCode)
	}
	b.asked(0, 1).ends(t)
}

// Heads that arrive byte by byte are heads; a head that does not end gets 408.
func TestSlowHeads(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, echo)
	const limit, pause = 3 * time.Second, 200 * time.Millisecond
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.RequestHeadTimeout = limit }, b.backend())
	c := f.dial("mail.contoso.com")
	for _, ch := range get("/owa/") {
		c.send(string(ch))
	}
	if r, _ := c.response("GET"); r.StatusCode != 200 {
		t.Errorf("%d", r.StatusCode)
	}
	start := time.Now()
	go func() {
		for time.Since(start) < 4*limit {
			if _, err := io.WriteString(c, "G"); err != nil {
				return
			}
			time.Sleep(pause)
		}
	}()
	if r, _ := c.response("GET"); r.StatusCode != 408 {
		t.Errorf("%d", r.StatusCode)
	}
	if d := time.Since(start); d < limit || d > 3*limit { // not counted from the last byte
		t.Errorf("408 after %v", d)
	}
}

// fixture reads a message of testdata/http.
func fixture(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", "http", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The redirect site, over every pair of testdata/http: status, Location, no
// challenge, no cookie (AUTODISCOVER.md section 1.4, R-6.9, gotchas 14 and 15).
func TestRedirectSiteFixtures(t *testing.T) {
	f := newFront(t, nil)
	files, err := filepath.Glob("../testdata/http/redirect-*.req.http")
	if err != nil || len(files) == 0 {
		t.Fatal("no fixtures")
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".req.http")
		t.Run(name, func(t *testing.T) {
			want := newClient(t, nopConn{strings.NewReader(fixture(t, name+".resp.http"))}).head()
			c := f.dialPlain()
			req := fixture(t, name+".req.http")
			method, _, _ := strings.Cut(req, " ")
			c.send(req)
			got := c.head()
			if line(got, "HTTP/1.1") != line(want, "HTTP/1.1") || line(got, "Location:") != line(want, "Location:") ||
				line(got, "Cache-Control:") != line(want, "Cache-Control:") || line(got, "Content-Length:") != line(want, "Content-Length:") {
				t.Errorf("got %q\nwant %q", got, want)
			}
			if line(got, "WWW-Authenticate:") != "" || line(got, "Set-Cookie:") != "" || line(got, "Strict-Transport") != "" {
				t.Errorf("%q", got)
			}
			if c.br.Buffered() > 0 {
				t.Errorf("%s got a body", method)
			}
			// The connection lives on, behind the body that was not looked at.
			c.send(req)
			if again := c.head(); line(again, "Location:") != line(got, "Location:") {
				t.Errorf("second request: %q", again)
			}
		})
	}
	if s := f.log.String(); !strings.Contains(s, `"in_clear":true`) || strings.Contains(s, "cGF0Om5vdC1hLXJlYWwtc2VjcmV0") {
		t.Error("credentials in clear must be logged as such, without their value")
	}
}

type nopConn struct{ r io.Reader }

func (c nopConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c nopConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c nopConn) Close() error                     { return nil }
func (c nopConn) LocalAddr() net.Addr              { return nil }
func (c nopConn) RemoteAddr() net.Addr             { return nil }
func (c nopConn) SetDeadline(time.Time) error      { return nil }
func (c nopConn) SetReadDeadline(time.Time) error  { return nil }
func (c nopConn) SetWriteDeadline(time.Time) error { return nil }

// line returns the first line of a head with the given start.
func line(head, start string) string {
	for l := range strings.SplitSeq(head, "\r\n") {
		if strings.HasPrefix(strings.ToLower(l), strings.ToLower(start)) {
			return l
		}
	}
	return ""
}

// Plain HTTP as DESIGN's rules have it: Autodiscover redirects, / and published
// paths to https for GET and HEAD, all else 404.
func TestPlainHTTP(t *testing.T) {
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["autodiscover.fabrikam.com"] = &Host{Name: "autodiscover.fabrikam.com", Mode: Answer, TLS: f.mail.TLS, Handler: http.NotFoundHandler()}
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
		tb.ACMEChallenge = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "token "+r.Host) })
	})
	for _, tc := range []struct{ method, host, target, want string }{
		{"GET", "mail.contoso.com", "/autodiscover/autodiscover.xml", "302 https://mail.contoso.com/autodiscover/autodiscover.xml"},
		{"POST", "mail.contoso.com", "/AutoDiscover/AutoDiscover.xml", "302 https://mail.contoso.com/autodiscover/autodiscover.xml"},
		{"POST", "autodiscover.fabrikam.com", "//Autodiscover/./Autodiscover.SVC", "302 https://autodiscover.fabrikam.com/autodiscover/autodiscover.svc"},
		{"GET", "autodiscover.contoso.com", "/%61utodiscover/autodiscover.xml/", "302 https://mail.contoso.com/autodiscover/autodiscover.xml"},
		{"GET", "autodiscover.contoso.com", "/autodiscover/autodiscover.json/v1.0/pat@contoso.com?Protocol=Ews", "302 https://mail.contoso.com/autodiscover/autodiscover.json?Email=pat%40contoso.com&Protocol=Ews&RedirectCount=1"},
		{"GET", "autodiscover.contoso.com", "/autodiscover/autodiscover.json?EMAIL=pat%40contoso.com&x=y&protocol=activesync&redirectcount=9", "302 https://mail.contoso.com/autodiscover/autodiscover.json?Email=pat%40contoso.com&Protocol=activesync&RedirectCount=10"},
		{"GET", "autodiscover.contoso.com", "/autodiscover/autodiscover.json?RedirectCount=10", "404 "},
		{"GET", "autodiscover.contoso.com", "/autodiscover/autodiscover.json?Email=a@b/%0d%0ax", "404 "},
		{"OPTIONS", "autodiscover.contoso.com", "/autodiscover/autodiscover.xml", "404 "},
		{"GET", "autodiscover.contoso.com", "/autodiscover/autodiscover.xmlx", "404 "},
		{"GET", "autodiscover.contoso.com", "/", "404 "},
		{"GET", "autodiscover.contoso.com", "/owa/", "404 "},
		{"GET", "mail.contoso.com", "/", "302 https://mail.contoso.com/"},
		{"HEAD", "legacy.contoso.com", "/owa/?a=b%20c", "302 https://legacy.contoso.com/owa/?a=b%20c"},
		{"GET", "Legacy.contoso.com.:80", "/autodiscover/autodiscover.xml", "302 https://legacy.contoso.com/autodiscover/autodiscover.xml"},
		{"POST", "mail.contoso.com", "/owa/", "404 "},
		{"GET", "mail.contoso.com", "/powershell", "404 "},
		{"GET", "mail.contoso.com", "/owa/healthcheck.htm", "404 "},
		{"GET", "eas.contoso.com", "/autodiscover/autodiscover.xml", "404 "},
		{"GET", "evil.example", "/", "404 "},
		{"GET", "mail.contoso.com", "/.well-known/acme-challenge/x", "200 token mail.contoso.com"},
		{"GET", "autodiscover.contoso.com", "/.well-known/acme-challenge/x", "200 token autodiscover.contoso.com"},
	} {
		c := f.dialPlain()
		c.send(tc.method + " " + tc.target + " HTTP/1.1\r\nHost: " + tc.host + "\r\nContent-Length: 0\r\n\r\n")
		r, body := c.response(tc.method)
		got := fmt.Sprintf("%d %s", r.StatusCode, r.Header.Get("Location"))
		if r.StatusCode == 200 {
			got += body
		}
		if got != tc.want {
			t.Errorf("%s %s %s: got %q, want %q", tc.method, tc.host, tc.target, got, tc.want)
		}
	}
	c := f.dialPlain() // a TLS hello in clear is refused at once
	c.send("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	if r, _ := c.response("GET"); r.StatusCode != 400 {
		t.Errorf("%d", r.StatusCode)
	}
}

// A redirect host with a certificate answers the same 302 on 443, before any
// challenge or body (gotcha 7, DESIGN rule "redirect").
func TestRedirectOverTLS(t *testing.T) {
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["autodiscover.contoso.com"].TLS = f.mail.TLS
	})
	c := f.dial("autodiscover.contoso.com")
	c.send("POST /Autodiscover/Autodiscover.xml HTTP/1.1\r\nHost: autodiscover.contoso.com\r\nAuthorization: Basic eDp5\r\nContent-Length: 400\r\n\r\n")
	if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 302 ") || line(h, "Location:") != "Location: https://mail.contoso.com/autodiscover/autodiscover.xml" {
		t.Errorf("%q", h)
	}
	c.send(strings.Repeat("x", 400) + "GET /owa/ HTTP/1.1\r\nHost: autodiscover.contoso.com\r\n\r\n")
	if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 404 ") {
		t.Errorf("%q", h)
	}
}

// Which names are terminated, refused, or passed on, seen from outside,
// the default host and the ways to refuse.
func TestNames(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
		tb.Hosts["closed.contoso.com"] = &Host{Name: "closed.contoso.com", Mode: Redirect, RedirectTo: "mail.contoso.com", Refuse: RefuseClose}
		tb.Hosts["reset.contoso.com"] = &Host{Name: "reset.contoso.com", Mode: Redirect, RedirectTo: "mail.contoso.com", Refuse: RefuseReset}
		tb.Defaults[":443"] = f.mail
	}, b.backend())
	leaf := func(sni string) (string, error) {
		c, err := tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true, ServerName: sni})
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	for sni, want := range map[string]string{
		"mail.contoso.com": "mail.contoso.com", "MAIL.Contoso.com": "mail.contoso.com", "": "mail.contoso.com",
		"eas.contoso.com": "cas01.contoso.local", "EAS.contoso.com": "cas01.contoso.local",
	} {
		if got, err := leaf(sni); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", sni, got, err, want)
		}
	}
	for _, sni := range []string{"autodiscover.contoso.com", "unknown.example", "xmail.contoso.com"} {
		_, err := leaf(sni)
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") { // alert 112
			t.Errorf("%s: %v, want alert unrecognized_name", sni, err)
		}
	}
	if _, err := leaf("closed.contoso.com"); !errors.Is(err, io.EOF) {
		t.Errorf("refuse close: %v", err)
	}
	if _, err := leaf("reset.contoso.com"); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("refuse reset: %v", err)
	}
	// HTTP/1.1 only: a client that insists on h2 is told so in the handshake.
	if _, err := tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com", NextProtos: []string{"h2"}}); err == nil {
		t.Error("h2 was accepted")
	}
	f.waitForLog("only HTTP/1.1 is spoken here")
	// HTTP/1.0 without Host reaches the default host, if that is where it landed.
	tc, err := tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, tc)
	c.send("GET /owa/ HTTP/1.0\r\n\r\n")
	if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, "Host: mail.contoso.com\r\n") {
		t.Errorf("%d %q", r.StatusCode, body)
	}
}

// Plain HTTP spoken to the TLS port gets 400 and a word; garbage gets closed.
func TestPlainHTTPOnTLSPort(t *testing.T) {
	f := newFront(t, nil)
	raw, err := net.Dial("tcp", f.https)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, raw)
	c.send(get("/owa/"))
	if r, body := c.response("GET"); r.StatusCode != 400 || !strings.Contains(body, "HTTPS") {
		t.Errorf("%d %q", r.StatusCode, body)
	}
	raw, _ = net.Dial("tcp", f.https)
	c = newClient(t, raw)
	c.send("\x00\x01\x02garbage")
	c.ends()
}

// A PROXY header is believed from trusted peers and refused from others.
func TestProxyHeaderEndToEnd(t *testing.T) {
	b := newRecorder(t, echo)
	ask := func(f *front, header string) (string, error) {
		raw, err := net.Dial("tcp", f.https)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(raw, header)
		tc := tls.Client(raw, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"})
		if err := tc.Handshake(); err != nil {
			raw.Close()
			return "", err
		}
		c := newClient(t, tc)
		c.send(get("/owa/"))
		_, body := c.response("GET")
		return line(body, "X-Forwarded-For:"), nil
	}
	trusting := newFront(t, func(_ *front, o *Options, _ *Table) { o.ProxyProtocolFrom = prefixes("127.0.0.0/8") }, b.backend())
	if got, err := ask(trusting, "PROXY TCP4 192.0.2.77 192.0.2.1 5555 443\r\n"); got != "X-Forwarded-For: 192.0.2.77" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if got, err := ask(trusting, ""); got != "X-Forwarded-For: 127.0.0.1" || err != nil {
		t.Errorf("without header: %q %v", got, err)
	}
	other := newFront(t, nil, b.backend())
	if got, err := ask(other, "PROXY TCP4 192.0.2.77 192.0.2.1 5555 443\r\n"); err == nil {
		t.Errorf("believed a stranger: %q", got)
	}
}

// Local answers are http.Handlers with a bounded body.
func TestLocalHandler(t *testing.T) {
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["autodiscover.fabrikam.com"] = &Host{
			Name: "autodiscover.fabrikam.com", Mode: Answer, TLS: f.mail.TLS,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/401":
					w.Header().Set("WWW-Authenticate", "Basic realm=\"x\"")
					w.WriteHeader(401)
				case "/panic":
					panic("oops")
				default:
					body, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					fmt.Fprintf(w, "%s %s %s %d %s", r.Method, r.URL.Path, r.RequestURI, len(body), r.RemoteAddr[:9])
				}
			}),
		}
	})
	c := f.dial("autodiscover.fabrikam.com")
	ask := func(text string) (*http.Response, string) {
		c.send(strings.Replace(text, "\r\n", "\r\nHost: autodiscover.fabrikam.com\r\n", 1))
		return c.response("POST")
	}
	if _, body := ask("POST /Some/Path?x=y HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"); body != "POST /some/path /Some/Path?x=y 3 127.0.0.1" {
		t.Errorf("%q", body)
	}
	if _, body := ask("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"); body != "POST /x /x 5 127.0.0.1" {
		t.Errorf("%q", body)
	}
	// No 100 Continue before a refusal; one before the body is read.
	c.send("POST /401 HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 401 ") || line(h, "WWW-Authenticate: Basic") == "" || !strings.Contains(h, "WWW-Authenticate:") {
		t.Errorf("%q", h)
	}
	c.send("ab")
	c.send("POST /x HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	if h := c.head(); h != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Errorf("%q", h)
	}
	c.send("ab")
	if r, body := c.response("POST"); r.StatusCode != 200 || !strings.Contains(body, " 2 ") {
		t.Errorf("%q", body)
	}
	if r, _ := ask("POST /panic HTTP/1.1\r\nContent-Length: 0\r\n\r\n"); r.StatusCode != 500 {
		t.Errorf("panic: %d", r.StatusCode)
	}
	if r, _ := ask("POST /x HTTP/1.1\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("a", 70000)); r.StatusCode != 413 || !r.Close {
		t.Errorf("large body: %d", r.StatusCode)
	}
	c = f.dial("autodiscover.fabrikam.com")
	if r, _ := ask("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n" + strings.Repeat("a", 70000) + "\r\n0\r\n\r\n"); r.StatusCode != 413 || !r.Close {
		t.Errorf("large chunked body: %d", r.StatusCode)
	}
}

// Shutdown: idle connections end, a request in progress is answered and told to
// close, and what does not end in time is cut.
func TestShutdown(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	b := newRecorder(t, func(c *recorded) {
		h, _ := c.head()
		if strings.Contains(h, "Ping") {
			io.Copy(io.Discard, c.br)
			return
		}
		<-release
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	f := newFront(t, nil, b.backend())
	idle, busy, poll := f.dial("mail.contoso.com"), f.dial("mail.contoso.com"), f.dial("mail.contoso.com")
	busy.send(get("/owa/"))
	b.asked(0, 1)
	poll.send("POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
	b.asked(1, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Shutdown(ctx) }()
	idle.ends()
	close(release)
	if r, body := busy.response("GET"); r.StatusCode != 200 || body != "ok" || !r.Close {
		t.Errorf("%d %q %v", r.StatusCode, body, r.Close)
	}
	cancel() // its time is up
	poll.ends()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", f.https); err == nil {
		t.Error("still accepting")
	}
}

// Nothing secret is logged: no credentials, cookies, bodies or query.
func TestNothingSecretIsLogged(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.Logger = o.Logger.Level(1) }, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("POST /owa/pat%40contoso.com/?user=sec1 HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Basic sec2\r\nCookie: sec3\r\nContent-Length: 4\r\n\r\nsec4")
	c.response("POST")
	eventually(t, "a record", func() bool { return strings.Contains(f.log.String(), `"path"`) })
	s := f.log.String()
	if !strings.Contains(s, `"path":"/owa/<address>/"`) || !strings.Contains(s, `"authorization":true`) {
		t.Errorf("log: %s", s)
	}
	if strings.Contains(s, "sec") || bytes.Contains([]byte(s), []byte("contoso.com/")) || strings.Contains(s, "pat") && !strings.Contains(s, `"path"`) {
		t.Errorf("log: %s", s)
	}
}

// passthrough and terminated names share a listener, and the bytes of a
// passthrough connection arrive as they were sent, both ways.
func TestPassthroughOnSharedListener(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, func(c *recorded) {
		if head, _ := c.br.Peek(4); string(head) == "GET " {
			echo(c)
			return
		}
		io.Copy(c, c.br)
	})
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
	}, b.backend())
	raw, err := net.Dial("tcp", f.https)
	if err != nil {
		t.Fatal(err)
	}
	// The name in the hello is the front door's, the certificate the backend's own.
	tc := tls.Client(raw, &tls.Config{ServerName: "eas.contoso.com", InsecureSkipVerify: true})
	c := newClient(t, tc)
	data := make([]byte, 4<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	got := sha256.New()
	if _, err := io.CopyN(got, c.br, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(got.Sum(nil), want[:]) {
		t.Error("the stream changed on its way")
	}
	if !tc.ConnectionState().PeerCertificates[0].Equal(b.cert.Leaf) {
		t.Error("another certificate than the backend's")
	}
	bridged := f.dial("mail.contoso.com")
	bridged.send(get("/owa/"))
	if r, _ := bridged.response("GET"); r.StatusCode != 200 {
		t.Errorf("the terminated name beside it: %d", r.StatusCode)
	}
}

// A PROXY header is taken on plain HTTP as well.
func TestProxyHeaderOnPlainHTTP(t *testing.T) {
	t.Parallel()
	f := newFront(t, func(_ *front, o *Options, tb *Table) {
		o.ProxyProtocolFrom = prefixes("127.0.0.0/8")
		tb.ACMEChallenge = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })
	})
	c := f.dialPlain()
	c.send("PROXY TCP4 192.0.2.77 192.0.2.1 5555 80\r\nGET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
	if _, body := c.response("GET"); body != "192.0.2.77:5555" {
		t.Errorf("client %q", body)
	}
}

// a hello that does not come to its end is waited for as long as the server
// was told, and no longer.
func TestSlowHelloThroughTheServer(t *testing.T) {
	t.Parallel()
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.HelloTimeout = time.Second })
	raw, err := net.Dial("tcp", f.https)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, raw)
	start := time.Now()
	c.send("\x16\x03\x01\x02\x00\x01\x00\x01")
	c.ends()
	if d := time.Since(start); d < 900*time.Millisecond {
		t.Errorf("given up after %v, a second was allowed", d)
	}
	f.waitForLog("read ClientHello")
}
