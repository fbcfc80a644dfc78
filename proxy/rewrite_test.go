package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func hostMap(t testing.TB, entries map[string]string) *HostMap {
	t.Helper()
	m, err := NewHostMap(entries)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// names change where scheme, host and port are those of the map, and
// nowhere else.
func TestHostMap(t *testing.T) {
	m := hostMap(t, map[string]string{
		"internal": "mail.contoso.com", "Cas01.Contoso.local": "mail.contoso.com", "cas01.contoso.local:444": "mail.contoso.com:8443",
		"[2001:db8::1]": "mail.contoso.com", "192.0.2.1:80": "mail.contoso.com:443", "xn--bcher-kva.local": "b.contoso.com", "secure.local:443": "mail.contoso.com",
	})
	for in, want := range map[string]string{
		"https://internal/owa/":                   "https://mail.contoso.com/owa/",
		"https://internal":                        "https://mail.contoso.com",
		"https://internal?a=https://internal/":    "https://mail.contoso.com?a=https://internal/",
		"https://internal#x":                      "https://mail.contoso.com#x",
		"HTTPS://INTERNAL/Owa/":                   "https://mail.contoso.com/Owa/",
		"https://internal:443/":                   "https://mail.contoso.com/",
		"https://internal:0443/":                  "https://mail.contoso.com/",
		"https://internal:/":                      "https://mail.contoso.com/",
		"https://internal./owa":                   "https://mail.contoso.com/owa",
		"//internal/owa":                          "https://mail.contoso.com/owa",
		"http://internal/":                        "https://mail.contoso.com/",
		"http://internal:80/":                     "https://mail.contoso.com/",
		"https://CAS01.contoso.LOCAL/a//b?c=%2f":  "https://mail.contoso.com/a//b?c=%2f",
		"https://cas01.contoso.local:444/":        "https://mail.contoso.com:8443/",
		"http://cas01.contoso.local:444/":         "https://mail.contoso.com:8443/",
		"https://[2001:DB8:0:0::1]/":              "https://mail.contoso.com/",
		"http://192.0.2.1/":                       "https://mail.contoso.com/",
		"https://XN--bcher-kva.local/":            "https://b.contoso.com/",
		"https://b\u00dccher.local/":              "https://b.contoso.com/",
		"internal":                                "mail.contoso.com",
		"cas01.contoso.local:444":                 "mail.contoso.com:8443",
		"https://secure.local/":                   "https://mail.contoso.com/",
		"https://internal.evil.example":           "",
		"https://internal.evil.example/":          "",
		"https://internal.local/":                 "",
		"https://xinternal/":                      "",
		"https://internal@evil.example/":          "",
		"https://user@internal/":                  "",
		"https://user:pw@internal/":               "",
		"https://internal:443@evil.example/":      "",
		"https://evil.example/internal":           "",
		"https://evil.example/https://internal/":  "",
		"https://internal\\.evil.example/":        "",
		"https://internal\\@evil.example/":        "",
		"https:\\\\internal/":                     "",
		"https:/internal/":                        "",
		"https:internal":                          "",
		"https:///internal/":                      "",
		"https://internal:444/":                   "",
		"https://internal:443x/":                  "",
		"https://internal:99999999/":              "",
		"https://internal:-443/":                  "",
		"https://internal%2eevil.example/":        "",
		"https://%69nternal/":                     "",
		"https://internal /":                      "",
		"https://[::ffff:internal]/":              "",
		"https://[2001:db8::1/":                   "",
		"https://[2001:db8::1]x/":                 "",
		"https://192.0.2.1/":                      "",
		"http://secure.local/":                    "",
		"http://internal:443/":                    "",
		"https://internal:80/":                    "",
		"ftp://internal/":                         "",
		"javascript://internal/%0aalert(1)":       "",
		"/owa/":                                   "",
		"":                                        "",
		"//":                                      "",
		"https://":                                "",
		"internal evil":                           "",
		"owa/logon.aspx?url=https://internal/owa": "",
	} {
		got, ok := m.External(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q becomes %q, %v; want %q", in, got, ok, want)
		}
	}
	if _, ok := (*HostMap)(nil).External("https://internal/"); ok {
		t.Error("no map maps something")
	}
	if _, err := NewHostMap(map[string]string{"https://x": "y"}); err == nil {
		t.Error("a URL is taken for a name")
	}
}

// FuzzHostMap: what is mapped leads to the public name and no other, and its path
// and query are those it had.
func FuzzHostMap(f *testing.F) {
	for _, s := range []string{"https://internal/owa/?a#b", "//internal:443", "https://internal.evil.example/", "http://internal@evil/", "https://internal\\x", "internal:443", "0; url=https://internal/"} {
		f.Add(s)
	}
	m, err := NewHostMap(map[string]string{"internal": "mail.contoso.com"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out, ok := m.External(s)
		if !ok {
			return
		}
		if out == "mail.contoso.com" { // a bare name
			out = "https://" + out
		}
		rest, ok := strings.CutPrefix(out, "https://mail.contoso.com")
		if !ok || rest != "" && !strings.ContainsAny(rest[:1], "/?#") || !strings.HasSuffix(s, rest) {
			t.Fatalf("%q becomes %q", s, out)
		}
		host := strings.TrimSuffix(s, rest)
		if strings.ContainsAny(host, "@\\?#% \t\r\n") || !strings.Contains(strings.ToLower(host), "internal") {
			t.Fatalf("%q becomes %q", s, out)
		}
	})
}

// answers is a backend that answers each request with a head, in turn.
func answers(heads ...string) func(*recorded) {
	return func(c *recorded) {
		for _, head := range heads {
			h, err := c.head()
			if err != nil {
				return
			}
			if n := contentLength(h); n > 0 {
				if _, err := io.CopyN(io.Discard, c.br, n); err != nil {
					return
				}
			}
			io.WriteString(c, head)
		}
		c.head()
	}
}

// the headers that hold names, as they come out; all else is as it was,
// the order too.
func TestNamesInResponses(t *testing.T) {
	const end = "Content-Length: 0\r\n\r\n"
	f := func(change func(*front), in, want string) {
		t.Helper()
		b := newRecorder(t, answers(in))
		f := newFront(t, func(f *front, _ *Options, tb *Table) {
			if change != nil {
				change(f)
			}
		}, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		if got := c.head(); got != want {
			t.Errorf("\n got %q\nwant %q", got, want)
		}
	}
	mapped := func(f *front) {
		f.site.HostMap = hostMap(t, map[string]string{"cas01.contoso.local": "mail.contoso.com", "legacy.contoso.local": "legacy.contoso.com"})
	}
	all := "HTTP/1.1 302 Found\r\nx-first: https://cas01.contoso.local/\r\nLOCATION:  https://cas01.contoso.local/owa/auth/logon.aspx?url=https%3a%2f%2fcas01.contoso.local%2fowa\r\n" +
		"Content-Location: http://cas01.contoso.local/owa/\r\nX-MS-Location: https://legacy.contoso.local/Microsoft-Server-ActiveSync\r\n" +
		"Refresh: 5; URL='https://cas01.contoso.local/owa/?a;b'\r\nrefresh: 0;url=https://evil.example/\r\n" +
		"Set-Cookie: sessionid=1; path=/; domain=.cas01.contoso.local; HttpOnly\r\nSet-Cookie: Domain=cas01.contoso.local; Domain = CAS01.contoso.local\r\n" +
		"Set-Cookie: a=b; domain=contoso.local\r\nLocation: https://evil.example/?https://cas01.contoso.local\r\nLocation: https://cas01.contoso.local.evil.example\r\nLocation: /owa/\r\n"
	f(mapped, all+end, "HTTP/1.1 302 Found\r\nx-first: https://cas01.contoso.local/\r\nLOCATION: https://mail.contoso.com/owa/auth/logon.aspx?url=https%3a%2f%2fcas01.contoso.local%2fowa\r\n"+
		"Content-Location: https://mail.contoso.com/owa/\r\nX-MS-Location: https://legacy.contoso.com/Microsoft-Server-ActiveSync\r\n"+
		"Refresh: 5; URL='https://mail.contoso.com/owa/?a;b'\r\nrefresh: 0;url=https://evil.example/\r\n"+
		"Set-Cookie: sessionid=1; path=/; domain=mail.contoso.com; HttpOnly\r\nSet-Cookie: Domain=cas01.contoso.local; Domain =mail.contoso.com\r\n"+
		"Set-Cookie: a=b; domain=contoso.local\r\nLocation: https://evil.example/?https://cas01.contoso.local\r\nLocation: https://cas01.contoso.local.evil.example\r\nLocation: /owa/\r\n"+end)
	f(nil, all+end, all+end) // off by default
	// Without a map, a server that is told another Host than the client's names that one.
	own := func(name string) func(*front) { return func(f *front) { f.site.HostHeader = name } }
	moved := "HTTP/1.1 302 Found\r\nLocation: https://%s/owa/\r\nSet-Cookie: a=b; Domain=%s\r\n" + end
	f(own("exchange.contoso.local"), fmt.Sprintf(moved, "exchange.contoso.local", "exchange.contoso.local"), fmt.Sprintf(moved, "mail.contoso.com", "mail.contoso.com"))
	f(own(HostPreserve), fmt.Sprintf(moved, "exchange.contoso.local", "exchange.contoso.local"), fmt.Sprintf(moved, "exchange.contoso.local", "exchange.contoso.local"))
	f(own("exchange.contoso.local"), fmt.Sprintf(moved, "cas02.contoso.local", "x.exchange.contoso.local"), fmt.Sprintf(moved, "cas02.contoso.local", "x.exchange.contoso.local"))
}

// plainBackend is a backend that is spoken to in clear, for offload.
func plainBackend(t testing.TB, answer string) *Backend {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := newClient(t, c)
				for {
					line, err := r.br.ReadString('\n')
					if err != nil {
						return
					}
					if line == "\r\n" {
						io.WriteString(c, answer)
					}
				}
			}()
		}
	}()
	return &Backend{Name: "cas01.contoso.local", Address: ln.Addr().String()}
}

// a server behind offload believes that its clients speak http; names that
// are served over TLS here become https, others stay what they are.
func TestOffloadRedirects(t *testing.T) {
	for in, want := range map[string]string{
		"http://mail.contoso.com/owa/":          "https://mail.contoso.com/owa/",
		"http://MAIL.contoso.com:80/owa/":       "https://mail.contoso.com/owa/",
		"http://legacy.contoso.com/owa/?a":      "https://legacy.contoso.com/owa/?a",
		"http://mail.contoso.com:81/owa/":       "http://mail.contoso.com:81/owa/",
		"http://autodiscover.contoso.com/":      "http://autodiscover.contoso.com/", // no certificate for it here
		"http://mail.contoso.com.evil.example/": "http://mail.contoso.com.evil.example/",
		"http://evil.example/":                  "http://evil.example/",
		"https://mail.contoso.com/owa/":         "https://mail.contoso.com/owa/",
		"/owa/":                                 "/owa/",
	} {
		f := newFront(t, nil, plainBackend(t, "HTTP/1.1 302 Found\r\nLocation: "+in+"\r\nContent-Length: 0\r\n\r\n"))
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		if got := c.head(); line(got, "Location:") != "Location: "+want {
			t.Errorf("%s: %q", in, got)
		}
	}
	// A client that came by another port is led back to it.
	f := newFront(t, nil, plainBackend(t, "HTTP/1.1 302 Found\r\nLocation: http://mail.contoso.com/owa/\r\nContent-Length: 0\r\n\r\n"))
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com:8443\r\n\r\n")
	if got := c.head(); line(got, "Location:") != "Location: https://mail.contoso.com:8443/owa/" {
		t.Errorf("%q", got)
	}
}

// the Host that servers get: the Destination of a COPY or MOVE has the
// same name, if the client's named this host.
func TestHostHeader(t *testing.T) {
	b := newRecorder(t, echo)
	const rest = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nFront-End-Https: On\r\n\r\n"
	f := func(header string, backend *Backend, request, want string) {
		t.Helper()
		f := newFront(t, func(f *front, _ *Options, tb *Table) {
			f.site.HostHeader = header
			f.mail.VirtualDirectories = []VirtualDirectory{CustomDirectory("/exchange", Publish)}
			tb.Defaults[""] = f.mail
		}, backend)
		c := f.dial("mail.contoso.com")
		c.send(request)
		if _, got := c.response("GET"); got != want {
			t.Errorf("%s:\n got %q\nwant %q", header, got, want)
		}
	}
	move := func(host, destination string) string {
		return "MOVE /exchange/a HTTP/1.1\r\nTranslate: f\r\nHost: " + host + "\r\nDestination: " + destination + "\r\nDepth: infinity\r\n"
	}
	moved := func(host, destination string) string {
		return "MOVE /exchange/a HTTP/1.1\r\nHost: " + host + "\r\nDestination: " + destination + "\r\nTranslate: f\r\nDepth: infinity\r\n" + rest
	}
	const here, inside = "https://mail.contoso.com/exchange/b%20c", "https://exchange.contoso.local/exchange/b%20c"
	f("", b.backend(), move("mail.contoso.com", here)+"\r\n", move("mail.contoso.com", here)+rest)
	f(HostPreserve, b.backend(), move("MAIL.contoso.com:443", here)+"\r\n", move("MAIL.contoso.com:443", here)+rest)
	f("exchange.contoso.local", b.backend(), move("mail.contoso.com", here)+"\r\n", moved("exchange.contoso.local", inside))
	f("exchange.contoso.local", b.backend(), move("mail.contoso.com", "https://Legacy.contoso.com:443/exchange/b%20c")+"\r\n", moved("exchange.contoso.local", inside))
	for _, foreign := range []string{"https://evil.example/exchange/b", "https://mail.contoso.com.evil.example/", "https://mail.contoso.com@evil.example/", "/exchange/b"} {
		f("exchange.contoso.local", b.backend(), move("mail.contoso.com", foreign)+"\r\n", moved("exchange.contoso.local", foreign))
	}
	// backend: the server's own address, its port only if it is not the usual one.
	f(HostBackend, b.backend(), "GET /exchange HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n", "GET /exchange HTTP/1.1\r\nHost: "+b.ln.Addr().String()+"\r\n"+rest)
	f("exchange.contoso.local", b.backend(), "GET https://mail.contoso.com/exchange HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n", "GET /exchange HTTP/1.1\r\nHost: exchange.contoso.local\r\n"+rest)
	f("exchange.contoso.local", b.backend(), "GET /exchange HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /exchange HTTP/1.1\r\nHost: exchange.contoso.local\r\n"+rest)
	site := &Site{HostHeader: HostBackend}
	for want, b := range map[string]*Backend{
		"cas01.contoso.local": {Address: "cas01.contoso.local:443", TLS: &tls.Config{}}, "cas02.contoso.local": {Address: "cas02.contoso.local:80"},
		"cas03.contoso.local:80": {Address: "cas03.contoso.local:80", TLS: &tls.Config{}}, "[2001:db8::1]:444": {Address: "[2001:db8::1]:444", TLS: &tls.Config{}},
	} {
		if got := site.hostFor(b); got != want {
			t.Errorf("%s: %q", want, got)
		}
	}
}

// R-6.1: / leads to OWA where that is published, by 302, for GET and HEAD of exactly /.
func TestRootRedirect(t *testing.T) {
	dirs := func(access Access) func(*front) {
		return func(f *front) { f.mail.RootRedirect, f.mail.VirtualDirectories[0].Access = "/owa/", access }
	}
	b := newRecorder(t, echo)
	f := func(change func(*front), request string, want string) {
		t.Helper()
		f := newFront(t, func(f *front, _ *Options, _ *Table) { change(f) }, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(request + " HTTP/1.1\r\nHost: legacy.contoso.com:8443\r\nContent-Length: 0\r\n\r\n")
		method, _, _ := strings.Cut(request, " ")
		r, body := c.response(method)
		if got := fmt.Sprintf("%d %s", r.StatusCode, r.Header.Get("Location")); got != want || body != "" {
			t.Errorf("%s: %s %q, want %s", request, got, body, want)
		}
		if r.StatusCode == 302 && r.Header.Get("Strict-Transport-Security") != "" {
			t.Error("HSTS was not asked for")
		}
	}
	f(dirs(Publish), "GET /", "302 /owa/")
	f(dirs(Publish), "HEAD /", "302 /owa/")
	f(dirs(Publish), "GET /?a=//evil.example", "302 /owa/")
	f(dirs(Publish), "POST /", "404 ")
	f(dirs(Publish), "OPTIONS /", "404 ")
	f(dirs(Publish), "GET //", "404 ")
	f(dirs(Publish), "GET /./", "404 ")
	f(dirs(Publish), "GET //evil.example", "404 ")
	f(dirs(Publish), "GET /index.htm", "404 ")
	f(dirs(Deny), "GET /", "404 ")
	f(dirs(Internal), "GET /", "404 ")
	f(func(f *front) { f.mail.RootRedirect = "" }, "GET /", "404 ")
	f(func(f *front) { f.mail.RootRedirect = "/ecp/" }, "GET /", "302 /ecp/")
	f(func(f *front) { f.mail.RootRedirect = "/powershell" }, "GET /", "404 ")
	if n := len(b.connections()); n > 0 {
		t.Errorf("%d connections to the backend", n)
	}
}

// what port 80 says, whatever asks: an exact 302 with a small body that is not
// kept, and no HSTS.
func TestPort80AsRequired(t *testing.T) {
	f := newFront(t, nil)
	for _, method := range []string{"GET", "HEAD", "POST"} {
		for _, host := range []string{"autodiscover.contoso.com", "mail.contoso.com"} {
			c := f.dialPlain()
			c.send(method + " /Autodiscover/Autodiscover.xml HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 0\r\n\r\n")
			got := c.head()
			if !strings.HasPrefix(got, "HTTP/1.1 302 Found\r\n") || line(got, "Location:") != "Location: https://mail.contoso.com/autodiscover/autodiscover.xml" ||
				!strings.Contains(line(got, "Cache-Control:"), "no-cache") || line(got, "Content-Length:") != "Content-Length: 0" || line(got, "Strict-Transport-Security") != "" {
				t.Errorf("%s %s: %q", method, host, got)
			}
		}
	}
	for target, want := range map[string]string{"/": "HTTP/1.1 404 ", "/owa/": "HTTP/1.1 404 ", "/autodiscover/": "HTTP/1.1 404 "} {
		c := f.dialPlain()
		c.send("GET " + target + " HTTP/1.1\r\nHost: autodiscover.contoso.com\r\n\r\n")
		if got := c.head(); !strings.HasPrefix(got, want) || line(got, "Strict-Transport-Security") != "" || line(got, "Location:") != "" {
			t.Errorf("%s: %q", target, got)
		}
	}
}

// the headers that identify a server are hidden where that is asked for, in
// any letter case and as often as they come; off by default.
func TestHiddenHeaders(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nServer: Microsoft-IIS/10.0\r\nX-MS-Server-Fqdn: a\r\nx-feserver: CAS01\r\nX-OWA-Version: 15.2\r\nX-OWA-CANARY: x\r\nX-FEServer: CAS02\r\n" +
		"X-FEServers: y\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct {
		hide []string
		want string
	}{
		{nil, head},
		{[]string{"X-FEServer", "Server", "X-OWA-Version"}, "HTTP/1.1 200 OK\r\nX-MS-Server-Fqdn: a\r\nX-OWA-CANARY: x\r\nX-FEServers: y\r\nContent-Length: 0\r\n\r\n"},
	} {
		b := newRecorder(t, answers(head))
		f := newFront(t, func(f *front, _ *Options, _ *Table) { f.mail.HideHeaders = tc.hide }, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		if got := c.head(); got != tc.want {
			t.Errorf("%q:\n got %q\nwant %q", tc.hide, got, tc.want)
		}
	}
}

// Which challenges are left when logins of the connection are not offered, also from
// lines that hold several; nothing is joined or re-ordered.
func TestWithoutLogins(t *testing.T) {
	for in, want := range map[string]string{
		"Negotiate":                              "",
		"nTLM":                                   "",
		"NTLM TlRMTVNTUAACAAAA==":                "",
		"Negotiate YII==":                        "",
		"Nego2":                                  "",
		"Kerberos":                               "",
		`Basic realm="mail.contoso.com"`:         `Basic realm="mail.contoso.com"`,
		"Bearer":                                 "Bearer",
		"Negotiated":                             "Negotiated",
		`Negotiate, NTLM, Basic realm="a, b"`:    `Basic realm="a, b"`,
		`Basic realm="NTLM, Negotiate"`:          `Basic realm="NTLM, Negotiate"`,
		`Basic realm="a\", NTLM", NTLM`:          `Basic realm="a\", NTLM"`,
		`Bearer a="b", c="d", NTLM, Basic x = y`: `Bearer a="b", c="d", Basic x = y`,
		",NTLM,,Basic realm=x,":                  "Basic realm=x",
		`Digest qop="auth", nonce="x",Negotiate`: `Digest qop="auth", nonce="x"`,
		`Basic realm="open, NTLM`:                "", // where the string ends nobody knows
		`Basic realm="open`:                      `Basic realm="open`,
		`NTLM"x"`:                                "",
		`realm="x", NTLM`:                        "",
		"":                                       "",
	} {
		got, removed := withoutLogins(in)
		if got != want || removed != (got != in) {
			t.Errorf("%q: %q, %v; want %q", in, got, removed, want)
		}
	}
}

const challenges = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nWWW-Authenticate: Basic realm=\"mail.contoso.com\"\r\nWWW-Authenticate: Bearer\r\n" +
	"X-SOAP-Enabled: True\r\nContent-Length: 0\r\n\r\n"

const onlyWindows = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"

const withoutWindows = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"mail.contoso.com\"\r\nWWW-Authenticate: Bearer\r\n" +
	"X-SOAP-Enabled: True\r\nContent-Length: 0\r\n\r\n"

func authorized(path, scheme string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: " + scheme + " YWJj\r\n\r\n"
}

// over a multiplexer no login of the connection is offered or taken, whether
// it is the peer itself or whom the PROXY header of a load balancer names.
func TestMultiplexer(t *testing.T) {
	for _, tc := range []struct{ name, multiplexers, proxyFrom, header string }{
		{"peer", "127.0.0.0/8", "192.0.2.0/24", ""},
		{"peer that sends a PROXY header", "127.0.0.0/8", "127.0.0.0/8", "PROXY TCP4 192.0.2.7 192.0.2.1 1000 443\r\n"},
		{"behind a load balancer", "192.0.2.0/24", "127.0.0.0/8", "PROXY TCP4 192.0.2.7 192.0.2.1 1000 443\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newRecorder(t, answers(challenges, onlyWindows, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
			f := newFront(t, func(_ *front, o *Options, tb *Table) {
				o.ProxyProtocolFrom, tb.Multiplexers = prefixes(tc.proxyFrom), prefixes(tc.multiplexers)
			}, b.backend())
			raw, err := net.Dial("tcp", f.https)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(raw, tc.header); err != nil {
				t.Fatal(err)
			}
			c := newClient(t, tls.Client(raw, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"}))
			for _, scheme := range []string{"NTLM", "negotiate", "NEGO2", "Kerberos", "NTLM\t"} {
				c.send(authorized("/ews/Exchange.asmx", scheme))
				if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 403 ") || line(got, "WWW-Authenticate") != "" {
					t.Errorf("%s: %q", scheme, got)
				}
			}
			if n := len(b.connections()); n > 0 {
				t.Error("a backend saw a login of the connection")
			}
			c.send(get("/ews/Exchange.asmx"))
			if got := c.head(); got != withoutWindows {
				t.Errorf("%q", got)
			}
			c.send(get("/mapi/emsmdb/")) // no exception for MAPI here
			if got := c.head(); got != "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n" {
				t.Errorf("%q", got)
			}
			f.waitForLog("no login but NTLM or Negotiate, which a multiplexer would share")
			c.send(authorized("/ews/Exchange.asmx", "Basic"))
			if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Errorf("%q", got)
			}
		})
	}
	// Everybody else is not concerned.
	b := newRecorder(t, answers(challenges, onlyWindows))
	f := newFront(t, func(_ *front, _ *Options, tb *Table) { tb.Multiplexers = prefixes("192.0.2.0/24") }, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(authorized("/ews/Exchange.asmx", "NTLM"))
	if got := c.head(); got != challenges {
		t.Errorf("%q", got)
	}
}

// basic_only takes Windows logins away from clients outside, except in MAPI
// and RPC where the server offers nothing else, which is logged once.
func TestBasicOnly(t *testing.T) {
	run := func(internal []netip.Prefix, script ...string) (*front, *client, *recorder) {
		b := newRecorder(t, answers(script...))
		f := newFront(t, func(f *front, _ *Options, tb *Table) {
			for i := range f.mail.VirtualDirectories {
				f.mail.VirtualDirectories[i].BasicOnly = true
			}
			tb.InternalNetworks = internal
		}, b.backend())
		return f, f.dial("mail.contoso.com"), b
	}
	expect := func(c *client, request, want string) {
		t.Helper()
		c.send(request)
		if got := c.head(); got != want {
			t.Errorf("%q:\n got %q\nwant %q", request, got, want)
		}
	}
	const nothing = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
	const noBasic = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n"
	const final = "HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate oYG=\r\nContent-Length: 0\r\n\r\n"
	f, c, _ := run(nil, challenges, challenges, onlyWindows, onlyWindows, onlyWindows, challenges, noBasic, noBasic, final)
	expect(c, get("/ews/Exchange.asmx"), withoutWindows)
	expect(c, get("/mapi/emsmdb/"), withoutWindows)
	expect(c, get("/ews/Exchange.asmx"), nothing)
	expect(c, get("/mapi/emsmdb/"), onlyWindows)
	expect(c, get("/rpcwithcert/rpcproxy.dll"), onlyWindows)
	expect(c, authorized("/rpc/rpcproxy.dll", "NTLM"), withoutWindows)
	expect(c, get("/mapi/nspi/"), noBasic)
	expect(c, get("/ews/Exchange.asmx"), strings.Replace(noBasic, "WWW-Authenticate: NTLM\r\n", "", 1))
	expect(c, authorized("/mapi/emsmdb/", "Negotiate"), final)
	f.waitForLog("ews is basic_only")
	if n := strings.Count(f.log.String(), "basic_only has no effect"); n != 1 {
		t.Errorf("warned %d times", n)
	}
	_, c, b := run(nil)
	c.send(authorized("/ews/Exchange.asmx", "Negotiate"))
	if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 403 ") || len(b.connections()) > 0 {
		t.Errorf("%q", got)
	}
	_, c, _ = run(prefixes("127.0.0.0/8"), challenges, onlyWindows) // inside
	expect(c, get("/ews/Exchange.asmx"), challenges)
	expect(c, authorized("/ews/Exchange.asmx", "NTLM"), onlyWindows)
}

// upperRewriter stands for the real one: it maps the one URL that is the document.
func upperRewriter(_ string, document []byte, external func(string) (string, bool)) ([]byte, bool, error) {
	if string(document) == "broken" {
		return nil, false, errors.New("not well-formed")
	}
	if out, ok := external(string(document)); ok {
		return []byte(out), true, nil
	}
	return document, false, nil
}

// An Autodiscover answer is held and mapped; what cannot be is not sent. Nothing else
// is held, and 401 streams as ever.
func TestAutodiscoverAnswerIsMapped(t *testing.T) {
	const url, out = "https://cas01.contoso.local/EWS/Exchange.asmx", "https://mail.contoso.com/EWS/Exchange.asmx"
	answer := func(status, fields, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s", status, fields, len(body), body)
	}
	const xml = "Content-Type: text/xml; charset=utf-8\r\n"
	type exchange struct{ name, path, in, want string }
	f := func(tc exchange) {
		t.Helper()
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, tc.in)
			if !strings.Contains(tc.in, "Content-Length") && !strings.Contains(tc.in, "chunked") {
				return // ends by closing
			}
			c.head()
		})
		f := newFront(t, func(f *front, _ *Options, tb *Table) {
			f.site.HostMap = hostMap(t, map[string]string{"cas01.contoso.local": "mail.contoso.com"})
			tb.RewriteAnswer = upperRewriter
		}, b.backend())
		c := f.dial("mail.contoso.com")
		c.send("GET " + tc.path + " HTTP/1.1\r\nHost: mail.contoso.com\r\nAccept-Encoding: gzip, deflate\r\nRange: bytes=0-5\r\nConnection: close\r\n\r\n")
		got, err := io.ReadAll(c.br)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		got = []byte(strings.Replace(string(got), "Connection: close\r\n", "", 1))
		if strings.HasPrefix(tc.want, "502") {
			if !strings.HasPrefix(string(got), "HTTP/1.1 502 ") || strings.Contains(string(got), "cas01") {
				t.Errorf("%s: %q", tc.name, got)
			}
			f.waitForLog("names")
			return
		}
		if string(got) != tc.want {
			t.Errorf("%s:\n got %q\nwant %q", tc.name, got, tc.want)
		}
		head := b.asked(0, 1).seen()[0]
		held := strings.Contains(strings.ToLower(tc.path), "/autodiscover.")
		if (line(head, "Accept-Encoding:") == "Accept-Encoding: identity") != held || (line(head, "Range:") == "") != held {
			t.Errorf("%s: asked %q", tc.name, head)
		}
	}
	const doc = "/Autodiscover/Autodiscover.xml"
	for _, tc := range []exchange{
		{"length", doc, answer("200 OK", xml+"ETag: x\r\n", url), "HTTP/1.1 200 OK\r\n" + xml + "Content-Length: 42\r\n\r\n" + out},
		{"chunked", doc, "HTTP/1.1 200 OK\r\n" + xml + "Transfer-Encoding: chunked\r\n\r\n14\r\n" + url[:20] + "\r\n19\r\n" + url[20:] + "\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\n" + xml + "Content-Length: 42\r\n\r\n" + out},
		{"until close", doc, "HTTP/1.1 200 OK\r\n" + xml + "\r\n" + url, "HTTP/1.1 200 OK\r\n" + xml + "Content-Length: 42\r\n\r\n" + out},
		{"svc", "/autodiscover/autodiscover.svc", answer("200 OK", xml, url), "HTTP/1.1 200 OK\r\n" + xml + "Content-Length: 42\r\n\r\n" + out},
		{"json", "/autodiscover/autodiscover.json?Email=a%40contoso.com&Protocol=Ews", answer("200 OK", "Content-Type: application/json\r\n", url), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 42\r\n\r\n" + out},
		{"nothing in it", doc, answer("200 OK", xml+"ETag: x\r\n", "hello"), "HTTP/1.1 200 OK\r\n" + xml + "ETag: x\r\nContent-Length: 5\r\n\r\nhello"},
		{"empty", doc, answer("200 OK", xml, ""), answer("200 OK", xml, "")},
		{"401", doc, answer("401 Unauthorized", xml+"WWW-Authenticate: NTLM\r\n", url), answer("401 Unauthorized", xml+"WWW-Authenticate: NTLM\r\n", url)},
		{"500", doc, answer("500 Internal Server Error", xml, url), answer("500 Internal Server Error", xml, url)},
		{"302", doc, answer("302 Found", "Location: "+url+"\r\n", ""), answer("302 Found", "Location: "+out+"\r\n", "")},
		// HTML is rewritten by no setting.
		{"html", doc, answer("200 OK", "Content-Type: text/html\r\n", url), answer("200 OK", "Content-Type: text/html\r\n", url)},
		{"another path", "/ews/Exchange.asmx", answer("200 OK", xml, url), answer("200 OK", xml, url)},
		{"another path of the directory", "/autodiscover/services.wsdl", answer("200 OK", xml, url), answer("200 OK", xml, url)},
		{"compressed", doc, answer("200 OK", xml+"Content-Encoding: gzip\r\n", url), "502"},
		{"not well-formed", doc, answer("200 OK", xml, "broken"), "502"},
		{"too large by its length", doc, fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n", xml, maxDocument+1), "502"},
		{"too large", doc, fmt.Sprintf("HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", xml, maxDocument+1, strings.Repeat("x", maxDocument+1)), "502"},
	} {
		f(tc)
	}
}

// A held answer that breaks off is 502, and the connection lives on behind one that
// does not: two on one connection, with large bodies.
func TestHeldAnswers(t *testing.T) {
	body := strings.Repeat("x", 600<<10)
	b := newRecorder(t, func(c *recorded) {
		for range 2 {
			if _, err := c.head(); err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nX-A: b\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
		c.head()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 100\r\n\r\nhttps://cas01")
	})
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		f.site.HostMap = hostMap(t, map[string]string{"cas01.contoso.local": "mail.contoso.com"})
		tb.RewriteAnswer = upperRewriter
	}, b.backend())
	c := f.dial("mail.contoso.com")
	for range 2 {
		c.send("POST /autodiscover/autodiscover.xml HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
		if r, got := c.response("POST"); r.StatusCode != 200 || got != body || r.Header.Get("X-A") != "b" {
			t.Fatalf("%d, %d bytes", r.StatusCode, len(got))
		}
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
	c.send("POST /autodiscover/autodiscover.xml HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
	if r, got := c.response("POST"); r.StatusCode != 502 || strings.Contains(got, "cas01") {
		t.Errorf("%d %q", r.StatusCode, got)
	}
}

// mail, autodiscover, legacy and download names of one host, with one policy:
// over one connection, and each with its own.
func TestSeveralNamesOnePolicy(t *testing.T) {
	names := []string{"mail.contoso.com", "autodiscover.contoso.com", "other.contoso.com"}
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		for _, n := range names {
			tb.Hosts[n] = f.mail
		}
		f.mail.RootRedirect = "/owa/"
	}, b.backend())
	for _, sni := range names {
		c := f.dial(sni)
		for _, host := range names {
			for path, want := range map[string]int{"/owa/service.svc/s/GetFileAttachment?id=a": 200, "/ews/Exchange.asmx": 200, "/powershell": 404, "/nothing": 404, "/": 302} {
				c.send("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
				r, body := c.response("GET")
				if r.StatusCode != want || want == 200 && !strings.Contains(body, "\r\nHost: "+host+"\r\n") {
					t.Errorf("%s over %s%s: %d %q", host, sni, path, r.StatusCode, body)
				}
			}
		}
	}
}

// redirects to a second namespace, which is another site here, reach the client
// as they are, or mapped; nobody but the client follows them.
func TestRedirectsToASecondNamespace(t *testing.T) {
	for name, mapped := range map[string]bool{"as sent": false, "mapped": true} {
		t.Run(name, func(t *testing.T) {
			target := "legacy.fabrikam.com"
			if mapped {
				target = "legacy.contoso.local"
			}
			first := newRecorder(t, answers(
				"HTTP/1.1 302 Found\r\nLocation: https://"+target+"/owa/\r\nContent-Length: 0\r\n\r\n",
				"HTTP/1.1 451 Redirect\r\nX-MS-Location: https://"+target+"/Microsoft-Server-ActiveSync\r\nContent-Length: 0\r\n\r\n"))
			second := newRecorder(t, echo)
			f := newFront(t, func(f *front, _ *Options, tb *Table) {
				legacy := &Site{Name: "legacy", Backends: []*Backend{second.backend()}}
				f.cert = newCertificate(t, "mail.contoso.com", "legacy.fabrikam.com")
				f.roots.AddCert(f.cert.Leaf)
				conf := &tls.Config{Certificates: []tls.Certificate{f.cert}}
				f.mail.TLS = conf
				tb.Hosts["legacy.fabrikam.com"] = &Host{Name: "legacy.fabrikam.com", Mode: Bridge, TLS: conf, Policy: f.mail.Policy, Site: legacy, VirtualDirectories: Preset()}
				if mapped {
					f.site.HostMap = hostMap(t, map[string]string{"legacy.contoso.local": "legacy.fabrikam.com"})
				}
			}, first.backend())
			c := f.dial("mail.contoso.com")
			c.send(get("/owa/"))
			if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 302 Found\r\n") || line(got, "Location:") != "Location: https://legacy.fabrikam.com/owa/" {
				t.Errorf("%q", got)
			}
			c.send("OPTIONS /Microsoft-Server-ActiveSync HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
			if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 451 Redirect\r\n") || line(got, "X-MS-Location:") != "X-MS-Location: https://legacy.fabrikam.com/Microsoft-Server-ActiveSync" {
				t.Errorf("%q", got)
			}
			if n := len(second.connections()); n > 0 {
				t.Error("the redirect was followed here")
			}
			for _, path := range []string{"/owa/", "/Microsoft-Server-ActiveSync"} {
				c := f.dial("legacy.fabrikam.com")
				c.send("GET " + path + " HTTP/1.1\r\nHost: legacy.fabrikam.com\r\n\r\n")
				if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, "Host: legacy.fabrikam.com") {
					t.Errorf("%s: %d %q", path, r.StatusCode, body)
				}
			}
		})
	}
}

// each header by which a proxy speaks of its client is removed from everybody,
// however it is written and as often as it comes; only X-Forwarded-For goes on, from a
// trusted proxy.
func TestForwardedHeadersFromClients(t *testing.T) {
	forged := []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Anything", "Forwarded", "Front-End-Https", "X-Real-IP",
		"Client-Cert", "Client-Cert-Chain", "X-ARR-LOG-ID", "X-ARR-SSL", "X-ARR-ClientCert", "X-SSL-Client-Cert", "X-SSL-Cipher", "X-SSL-",
	}
	b := newRecorder(t, echo)
	for _, trusted := range []bool{false, true} {
		f := newFront(t, func(_ *front, _ *Options, tb *Table) {
			if trusted {
				tb.TrustedProxies = prefixes("127.0.0.0/8")
			}
		}, b.backend())
		c := f.dial("mail.contoso.com")
		for _, name := range forged {
			odd := []byte(name)
			for i := range odd {
				if i%2 == 1 {
					odd[i] = strings.ToUpper(name)[i]
				} else {
					odd[i] = strings.ToLower(name)[i]
				}
			}
			all := []string{name, strings.ToLower(name), strings.ToUpper(name), string(odd), strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1), name}
			var fields strings.Builder
			for _, n := range all {
				fields.WriteString(n + ": 192.0.2.66\r\n")
			}
			c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n" + fields.String() + "\r\n")
			_, got := c.response("GET")
			want := "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nFront-End-Https: On\r\n\r\n"
			if trusted && name == "X-Forwarded-For" { // but not with "_": that is another header
				want = strings.Replace(want, "127.0.0.1", strings.Repeat("192.0.2.66, ", 5)+"127.0.0.1", 1)
			}
			if got != want {
				t.Errorf("trusted %v, %s:\n got %q\nwant %q", trusted, name, got, want)
			}
		}
	}
}

// which names a request may have for the name its connection was made for.
func TestAuthorities(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["other.contoso.com"] = &Host{Name: "other.contoso.com", Mode: Bridge, TLS: f.mail.TLS, Policy: "another", Site: f.site, VirtualDirectories: Preset()}
		tb.Hosts["shared.contoso.com"] = &Host{Name: "shared.contoso.com", Mode: Bridge, TLS: f.mail.TLS, Policy: f.mail.Policy, Site: f.site, VirtualDirectories: Preset()}
	}, b.backend())
	for _, tc := range []struct {
		target, fields string
		want           int
		host           string
	}{
		{"/owa/", "Host: mail.contoso.com\r\n", 200, "mail.contoso.com"},
		{"/owa/", "Host: legacy.contoso.com\r\n", 200, "legacy.contoso.com"},
		{"/owa/", "Host: shared.contoso.com\r\n", 200, "shared.contoso.com"},
		{"/owa/", "Host: other.contoso.com\r\n", 421, ""},
		{"/owa/", "Host: evil.example\r\n", 421, ""},
		{"/owa/", "Host: autodiscover.contoso.com\r\n", 421, ""},
		{"https://mail.contoso.com/owa/", "Host: mail.contoso.com\r\n", 200, "mail.contoso.com"},
		{"https://legacy.contoso.com/owa/", "Host: mail.contoso.com\r\n", 200, "legacy.contoso.com"},
		{"HTTPS://MAIL.contoso.com:443/owa/", "Host: legacy.contoso.com\r\n", 200, "MAIL.contoso.com:443"},
		{"https://evil.example/owa/", "Host: mail.contoso.com\r\n", 421, ""},
		{"https://other.contoso.com/owa/", "Host: mail.contoso.com\r\n", 421, ""},
		{"https://mail.contoso.com/owa/", "Host: evil.example\r\n", 421, ""},
		{"https://mail.contoso.com/owa/", "Host: other.contoso.com\r\n", 421, ""},
		{"/owa/", "Host: mail.contoso.com\r\nHost: mail.contoso.com\r\n", 400, ""},
		{"/owa/", "Host: mail.contoso.com\r\nhost: evil.example\r\n", 400, ""},
		{"https://mail.contoso.com/owa/", "Host: mail.contoso.com\r\nHost: mail.contoso.com\r\n", 400, ""},
		{"/owa/", "Host:\r\n", 400, ""},
		{"/owa/", "Host: \t\r\n", 400, ""},
		{"https://mail.contoso.com/owa/", "Host:\r\n", 400, ""},
		{"/owa/", "", 400, ""},
		{"/owa/", "Host: user@mail.contoso.com\r\n", 400, ""},
		{"/owa/", "Host: mail.contoso.com, evil.example\r\n", 400, ""},
	} {
		c := f.dial("mail.contoso.com")
		c.send("GET " + tc.target + " HTTP/1.1\r\n" + tc.fields + "\r\n")
		r, body := c.response("GET")
		if r.StatusCode != tc.want || tc.host != "" && (strings.Count(strings.ToLower(body), "\r\nhost:") != 1 || !strings.Contains(body, "\r\nHost: "+tc.host+"\r\n")) {
			t.Errorf("%s with %q: %d %q, want %d", tc.target, tc.fields, r.StatusCode, body, tc.want)
		}
	}
	// HTTP/1.0 without Host is for the default host alone, and there is none here.
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ HTTP/1.0\r\n\r\n")
	if r, _ := c.response("GET"); r.StatusCode != 400 {
		t.Errorf("HTTP/1.0 without Host: %d", r.StatusCode)
	}
}

// A host that changes nothing costs a response head nothing.
func TestNoEditCostsNothing(t *testing.T) {
	s := &session{}
	rt := route{host: &Host{Site: &Site{}}}
	b := &Backend{TLS: &tls.Config{}}
	if s.responseEdit(rt, b) != nil {
		t.Fatal("something is to change")
	}
	if n := testing.AllocsPerRun(100, func() { s.responseEdit(rt, b) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	var h responseHead
	if err := parseResponseHead([]byte(challenges), &h); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { out = appendResponseHead(out[:0], &h, "", false, nil) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzEditedHead: whatever a server says, what becomes of its head is a head, without
// what is left out, and with everything else in its place.
func FuzzEditedHead(f *testing.F) {
	for _, s := range []string{
		challenges, onlyWindows, "HTTP/1.1 200 OK\r\nServer: x\r\nLocation: https://internal/?\r\nRefresh: 1;url=\"//internal\r\nSet-Cookie: a; Domain\r\nSet-Cookie: ;;domain=internal;domain= .INTERNAL ;\r\n\r\n",
		"HTTP/1.1 401 x\r\nWWW-Authenticate: Basic realm=\"a, NTLM\", Negotiate abc==, Digest a=b,c=\"\\\"d\"\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	m, err := NewHostMap(map[string]string{"internal": "mail.contoso.com"})
	if err != nil {
		f.Fatal(err)
	}
	own, err := NewHostMap(map[string]string{"own": "mail.contoso.com:8443"})
	if err != nil {
		f.Fatal(err)
	}
	edit := &responseEdit{
		hide: []string{"Server"}, logins: true,
		names: &nameChange{hostMap: m, own: own, asked: "mail.contoso.com:8443", secure: func(name string) bool { return name == "secure" }},
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if i := strings.Index(string(data), "\r\n\r\n"); i < 0 || strings.Contains(strings.ReplaceAll(string(data[:i]), "\r\n", ""), "\n") {
			return // what the scanner does not let through
		} else {
			data = data[:i+4]
		}
		var h, again responseHead
		if parseResponseHead(data, &h) != nil {
			return
		}
		out := appendResponseHead(nil, &h, "", false, edit)
		if err := parseResponseHead(out, &again); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if again.chunked != h.chunked || again.contentLength != h.contentLength {
			t.Fatalf("framing changed: %q", out)
		}
		if again.challengesConnection() {
			t.Fatalf("a login of the connection is offered: %q", out)
		}
		at := 0
		for i := range h.fields {
			f := &h.fields[i]
			if f.is("Server") || dropped(f, h.nominated) {
				continue
			}
			if at < len(again.fields) && string(again.fields[at].name) == string(f.name) {
				at++
			} else if !f.is("WWW-Authenticate") {
				t.Fatalf("%s is not in its place: %q", f.name, out)
			}
		}
		if at != len(again.fields) {
			t.Fatalf("fields from nowhere: %q", out)
		}
	})
}

func BenchmarkResponseHead(b *testing.B) {
	const head = "HTTP/1.1 200 OK\r\nCache-Control: private\r\nTransfer-Encoding: chunked\r\nContent-Type: text/xml; charset=utf-8\r\nServer: Microsoft-IIS/10.0\r\nrequest-id: 0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77\r\n" +
		"X-CalculatedBETarget: cas01.contoso.local\r\nX-DiagInfo: CAS01\r\nX-BEServer: CAS01\r\nSet-Cookie: X-BackEndCookie=S-1-5-21; expires=Sun, 22-Nov-2026 20:00:00 GMT; path=/EWS; secure; HttpOnly\r\n" +
		"Persistent-Auth: true\r\nX-FEServer: CAS01\r\nX-Powered-By: ASP.NET\r\nDate: Sun, 22 Nov 2026 20:00:00 GMT\r\n\r\n"
	all := &responseEdit{
		names: &nameChange{hostMap: hostMap(b, map[string]string{"cas01.contoso.local": "mail.contoso.com"}), asked: "mail.contoso.com"},
		hide:  []string{"X-FEServer", "X-BEServer", "X-CalculatedBETarget", "X-DiagInfo", "X-OWA-Version", "X-AspNet-Version", "X-Powered-By", "Server"},
	}
	for name, edit := range map[string]*responseEdit{"as it came": nil, "everything on": all} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var h responseHead
			if err := parseResponseHead([]byte(head), &h); err != nil {
				b.Fatal(err)
			}
			out := make([]byte, 0, 4096)
			for b.Loop() {
				out = appendResponseHead(out[:0], &h, "", false, edit)
			}
		})
	}
}
