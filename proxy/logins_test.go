package proxy

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/throttle"
)

// type3 makes an NTLM AUTHENTICATE_MESSAGE ([MS-NLMP] section 2.2.1.3) with the
// names and an answer to the challenge.
func type3(domain, user, response string, unicode bool) []byte {
	text := func(s string) []byte {
		if !unicode {
			return []byte(s)
		}
		var b []byte
		for _, u := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	m := append([]byte("NTLMSSP\x00"), 3, 0, 0, 0)
	m = append(m, make([]byte, 64-len(m))...)
	put := func(at int, b []byte) {
		binary.LittleEndian.PutUint16(m[at:], uint16(len(b)))
		binary.LittleEndian.PutUint16(m[at+2:], uint16(len(b)))
		binary.LittleEndian.PutUint32(m[at+4:], uint32(len(m)))
		m = append(m, b...)
	}
	if unicode {
		m[60] = 1
	}
	put(28, text(domain))
	put(36, text(user))
	put(44, text("WS1"))
	put(20, []byte(response))
	return m
}

// spnego wraps a token as a NegTokenResp (RFC 4178 section 4.2.2) with short lengths.
func spnego(token []byte) []byte {
	der := func(tag byte, b []byte) []byte {
		if len(b) < 128 {
			return append([]byte{tag, byte(len(b))}, b...)
		}
		return append([]byte{tag, 0x82, byte(len(b) >> 8), byte(len(b))}, b...)
	}
	return der(0xa1, der(0x30, der(0xa2, der(4, token))))
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func basic(user, password string) string {
	return "Authorization: Basic " + b64([]byte(user+":"+password)) + "\r\n"
}

// loginCAS is a backend that takes logins of every kind; the password is "right". It
// counts how many it was given to check.
type loginCAS struct {
	checked atomic.Int32
	delay   time.Duration
}

func (k *loginCAS) serve(c *recorded) {
	user := ""
	for {
		r, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.heads = append(c.heads, r.Method+" "+r.RequestURI)
		c.mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		answer := func(status string, lines ...string) {
			fmt.Fprintf(c, "HTTP/1.1 %s\r\n%sContent-Length: 0\r\n\r\n", status, strings.Join(append(lines, ""), "\r\n"))
		}
		challenge := []string{"WWW-Authenticate: Negotiate", "WWW-Authenticate: NTLM", `WWW-Authenticate: Basic realm="x"`}
		right := func(secret string) bool {
			k.checked.Add(1)
			time.Sleep(k.delay)
			return strings.Contains(secret, "right")
		}
		scheme, token, _ := strings.Cut(strings.ReplaceAll(r.Header.Get("Authorization"), "\t", " "), " ")
		raw, _ := base64.StdEncoding.DecodeString(token)
		switch path := strings.ToLower(r.URL.Path); {
		case strings.HasSuffix(path, "owaauth.dll") || strings.HasSuffix(path, "auth.owa"):
			form, _ := url.ParseQuery(string(body))
			if right(form.Get("password")) {
				answer("302 Found", "Location: https://mail.contoso.com/owa/", "Set-Cookie: cadata=abcdef; path=/; HttpOnly")
			} else {
				answer("302 Found", "Location: https://mail.contoso.com/owa/auth/logon.aspx?url=https%3a%2f%2fmail.contoso.com%2fowa%2f&reason=2", "Set-Cookie: cadata=; expires=x")
			}
		case strings.HasPrefix(path, "/owa/"): // anonymous
			answer("200 OK")
		case path == "/ews/joined":
			k.checked.Add(1)
			answer("401 Unauthorized", `WWW-Authenticate: Negotiate, NTLM, Digest realm="a, b", nonce="x", Basic realm="Basic, NTLM x"`)
		case path == "/autodiscover/ntlm-only":
			answer("401 Unauthorized", "WWW-Authenticate: NTLM")
		case scheme == "Basic":
			_, password, _ := strings.Cut(string(raw), ":")
			if right(password) {
				answer("200 OK")
			} else {
				answer("401 Unauthorized", challenge...)
			}
		case scheme == "NTLM" || scheme == "Negotiate":
			switch {
			case strings.Contains(string(raw), "NTLMSSP\x00\x01"):
				answer("401 Unauthorized", "WWW-Authenticate: "+scheme+" TlRMTVNTUAACAAAA")
			case strings.Contains(string(raw), "kerberos continues"):
				answer("401 Unauthorized", "WWW-Authenticate: "+scheme+" oRQwEg==")
			case right(string(raw)):
				user = "somebody"
				answer("200 OK")
			default:
				answer("401 Unauthorized", challenge...)
			}
		case user != "":
			answer("200 OK")
		default:
			answer("401 Unauthorized", challenge...)
		}
	}
}

// loginFront is a front door behind a proxy that it trusts, so that a test can
// come from anywhere.
func loginFront(t *testing.T, k *loginCAS) *front {
	b := newRecorder(t, k.serve)
	return newFront(t, func(_ *front, o *Options, tb *Table) {
		o.Logger = o.Logger.Level(zerolog.DebugLevel)
		tb.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, b.backend())
}

// knock sends one request and returns the status; the connection is the caller's
// or, if nil, one of its own.
func (f *front) knock(c *client, source, request, lines, body string) *http.Response {
	f.t.Helper()
	if c == nil {
		c = f.dial("mail.contoso.com")
		defer c.Close()
	}
	c.send(request + " HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Forwarded-For: " + source + "\r\n" + lines + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
	r, _ := c.response("POST")
	return r
}

const (
	urlencoded = "Content-Type: application/x-www-form-urlencoded\r\n"
	eas        = "POST /Microsoft-Server-ActiveSync?Cmd=Sync"
	ews        = "POST /EWS/Exchange.asmx"
)

// ways are the ways to try a password: the status of a wrong one and a right one.
var ways = map[string]func(f *front, source, user, password string) int{
	"Basic": func(f *front, source, user, password string) int {
		return f.knock(nil, source, eas, basic(user, password), "").StatusCode
	},
	"NTLM": func(f *front, source, user, password string) int {
		return f.ntlm(source, "NTLM", user, password, func(b []byte) []byte { return b })
	},
	"Negotiate with NTLM": func(f *front, source, user, password string) int {
		return f.ntlm(source, "Negotiate", user, password, spnego)
	},
	"form": func(f *front, source, user, password string) int {
		form := "destination=https%3A%2F%2Fmail.contoso.com%2Fowa%2F&flags=4&forcedownlevel=0&username=" + url.QueryEscape(user) + "&password=" + password + "&isUtf8=1"
		return formStatus(f.knock(nil, source, "POST /owa/auth.owa", urlencoded, form))
	},
	"form of 2007, in two parts": func(f *front, source, user, password string) int {
		form := "username=" + url.QueryEscape(user) + "&password=" + password
		c := f.dial("mail.contoso.com")
		defer c.Close()
		c.send("POST /owa/auth/owaauth.dll HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Forwarded-For: " + source + "\r\n" + urlencoded + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(form)))
		for _, part := range []string{form[:4], form[4:]} {
			time.Sleep(5 * time.Millisecond)
			c.send(part)
		}
		r, _ := c.response("POST")
		return formStatus(r)
	},
	"form with Expect": func(f *front, source, user, password string) int {
		form := "username=" + url.QueryEscape(user) + "&password=" + password
		c := f.dial("mail.contoso.com")
		defer c.Close()
		c.send("POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\nExpect: 100-continue\r\nX-Forwarded-For: " + source + "\r\n" + urlencoded + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(form)))
		if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 100 ") {
			f.t.Errorf("%q", h)
		}
		c.send(form)
		r, _ := c.response("POST")
		return formStatus(r)
	},
}

func (f *front) ntlm(source, scheme, user, password string, wrap func([]byte) []byte) int {
	c := f.dial("mail.contoso.com")
	defer c.Close()
	auth := "Authorization: " + scheme + " "
	if r := f.knock(c, source, ews, auth+b64(wrap([]byte("NTLMSSP\x00\x01\x00\x00\x00\x00\x00\x00\x00")))+"\r\n", ""); r.StatusCode != 401 {
		return r.StatusCode
	}
	domain, name, ok := strings.Cut(user, `\`)
	if !ok {
		domain, name = "", user
	}
	return f.knock(c, source, ews, auth+b64(wrap(type3(domain, name, password, true)))+"\r\n", "<soap/>").StatusCode
}

// formStatus is 200 for a login, 401 for a failed one.
func formStatus(r *http.Response) int {
	switch {
	case r.StatusCode == 302 && strings.Contains(r.Header.Get("Location"), "reason=2"):
		return 401
	case r.StatusCode == 302:
		return 200
	}
	return r.StatusCode
}

// after eight failures of a user, whatever the way and the spelling of the
// name, no server sees a further try; the client is told to come back later, not
// to ask its user for another password. Other users are not concerned.
func TestFailedLoginsOfAUser(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &loginCAS{}
			f := loginFront(t, k)
			users := []string{"pat@contoso.com", `CONTOSO\pat`, "PAT", "Pat@contoso.local"}
			for i := range 8 {
				if got := way(f, fmt.Sprintf("198.51.100.%d", i), users[i%len(users)], "wrong"); got != 401 {
					t.Errorf("failure %d: %d", i, got)
				}
			}
			for _, password := range []string{"wrong", "right"} {
				if got := way(f, "203.0.113.9", "pat", password); got != 429 {
					t.Errorf("further try with a %s password: %d", password, got)
				}
			}
			if n := k.checked.Load(); n != 8 {
				t.Errorf("the server checked %d passwords", n)
			}
			if got := way(f, "203.0.113.9", "lee", "right"); got != 200 {
				t.Errorf("another user: %d", got)
			}
			f.waitForLog("further ones are refused")
		})
	}
	t.Run("together", func(t *testing.T) { // every way counts for the same user
		t.Parallel()
		k := &loginCAS{}
		f := loginFront(t, k)
		for range 2 {
			for _, way := range ways {
				way(f, "198.51.100.7", "pat", "wrong")
			}
		}
		if n := k.checked.Load(); n != 8 {
			t.Errorf("the server checked %d passwords", n)
		}
		r := f.knock(nil, "203.0.113.9", eas, basic("pat", "right"), strings.Repeat("x", 1000))
		if after := r.Header.Get("Retry-After"); r.StatusCode != 429 || !r.Close || after < "1" {
			t.Errorf("%s, close %v, Retry-After %q", r.Status, r.Close, after)
		}
		if c := f.Status().FailedLogins; c.Users != 1 || c.Refused < 5 {
			t.Errorf("%+v", c)
		}
	})
}

// guesses from elsewhere do not keep the user out where they log in
// otherwise, and a connection that is logged in goes on.
func TestGuessesElsewhereDoNotShutOutTheUser(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &loginCAS{}
			f := loginFront(t, k)
			phone := f.dial("mail.contoso.com")
			f.knock(phone, "192.0.2.1", eas, basic("pat", "right"), "")
			if got := way(f, "192.0.2.1", "pat", "right"); got != 200 {
				t.Fatal(got)
			}
			for i := range 10 {
				way(f, fmt.Sprintf("198.51.100.%d", i), "pat", "wrong")
			}
			if got := way(f, "203.0.113.9", "pat", "right"); got != 429 {
				t.Errorf("elsewhere: %d", got)
			}
			for range 3 {
				if got := way(f, "192.0.2.1", "pat", "right"); got != 200 {
					t.Errorf("at home: %d", got)
				}
			}
			if r := f.knock(phone, "192.0.2.1", eas, basic("pat", "right"), ""); r.StatusCode != 200 {
				t.Errorf("on the phone's connection: %d", r.StatusCode)
			}
		})
	}
}

// What is no failed guess is not counted: the legs of a handshake, requests without
// credentials, a way to log in that the server does not have, long polls.
func TestNoFailedLogin(t *testing.T) {
	k := &loginCAS{}
	f := loginFront(t, k)
	c := f.dial("mail.contoso.com")
	ntlm := func(token []byte) string { return "Authorization: NTLM " + b64(token) + "\r\n" }
	for range 12 {
		for _, lines := range []string{
			"",
			ntlm([]byte("NTLMSSP\x00\x01\x00\x00\x00\x00\x00\x00\x00")),
			"Authorization: Negotiate " + b64([]byte("\x60\x82 kerberos continues")) + "\r\n",
			ntlm(type3("", "", "wrong", true)), // anonymous
			"Authorization: Bearer x\r\n",
		} {
			if r := f.knock(c, "192.0.2.1", ews, lines, ""); r.StatusCode != 401 {
				t.Fatalf("%q: %d", lines, r.StatusCode)
			}
		}
		if r := f.knock(c, "192.0.2.1", "POST /autodiscover/ntlm-only", basic("pat", "wrong"), ""); r.StatusCode != 401 {
			t.Fatal(r.Status)
		}
	}
	if strings.Contains(f.log.String(), "login failed") {
		t.Error("a failure was counted")
	}
	if got := ways["Basic"](f, "192.0.2.1", "pat", "right"); got != 200 {
		t.Error(got)
	}
	// Kerberos that is refused counts for its source alone.
	f.knock(c, "192.0.2.1", ews, "Authorization: Negotiate "+b64([]byte("\x60\x82 kerberos"))+"\r\n", "")
	f.waitForLog(`"source_failures":1`)
}

// message-level security carries no credentials that could be counted: its
// requests are never held back, also from a source that is.
func TestMessageSecurityIsNoLogin(t *testing.T) {
	k := &loginCAS{}
	f := loginFront(t, k)
	for range 100 {
		f.opts.Logins.Reject(netip.MustParseAddr("192.0.2.1"))
	}
	if got := ways["Basic"](f, "192.0.2.1", "pat", "right"); got != 429 {
		t.Fatal(got)
	}
	c := f.dial("mail.contoso.com")
	for range 12 {
		for _, path := range []string{"/ews/exchange.asmx/wssecurity", "/autodiscover/autodiscover.svc/wssecurity"} {
			if r := f.knock(c, "192.0.2.1", "POST "+path, "SOAPAction: \"x\"\r\nContent-Type: text/xml\r\n", "<wsse:Password>wrong</wsse:Password>"); r.StatusCode != 401 {
				t.Fatalf("%s: %d", path, r.StatusCode) // the backend's own word
			}
		}
	}
}

// A login that the server never checked makes nobody known, and resets nothing.
func TestAnonymousPathsProveNothing(t *testing.T) {
	k := &loginCAS{}
	f := loginFront(t, k)
	for range 12 {
		if r := f.knock(nil, "198.51.100.1", eas, basic("pat", "wrong"), ""); r.StatusCode == 429 {
			break
		}
		for _, request := range []string{"GET /owa/auth/logon.aspx", "POST /owa/auth/x", "POST /owa/"} {
			f.knock(nil, "198.51.100.1", request, basic("pat", "wrong"), "")
		}
		// Somebody else's right login in the same request proves nothing about pat.
		f.knock(nil, "198.51.100.1", eas, basic("eve", "right")+basic("pat", "wrong"), "")
		f.knock(nil, "198.51.100.1", "POST /owa/auth.owa", urlencoded, "username=eve&username=pat&password=right")
		f.knock(nil, "198.51.100.1", "POST /owa/auth.owa", urlencoded+basic("pat", "wrong"), "username=eve&password=right")
	}
	if got := ways["Basic"](f, "198.51.100.1", "pat", "wrong"); got != 429 {
		t.Errorf("after failures with proofs that are none: %d", got)
	}
	if !strings.Contains(f.log.String(), `"user_failures":8`) {
		t.Error("the failures are not all of one user")
	}
}

// A name cannot be hidden from the count where a server would read it.
func TestNamesCannotBeHidden(t *testing.T) {
	form := "username=pat&password=wrong"
	for name, request := range map[string]struct{ request, lines, body string }{
		"two Authorization lines":    {eas, basic("pat", "wrong") + basic("x", "wrong"), ""},
		"two lines, turned":          {eas, basic("x", "wrong") + basic("pat", "wrong"), ""},
		"base64 without padding":     {eas, "Authorization: basic   " + strings.TrimRight(b64([]byte("pat:wrong")), "=") + "\r\n", ""},
		"a tab behind the scheme":    {eas, "Authorization: Basic\t" + b64([]byte("pat:wrong")) + "\r\n", ""},
		"challenges in one line":     {"POST /ews/joined", basic("pat", "wrong"), ""},
		"base64 with blanks":         {eas, "Authorization: BASIC cG F0 On\tdyb25n\r\n", ""},
		"escaped":                    {"POST /owa/auth.owa", urlencoded, "user%6eame=p%61t&password=wrong"},
		"escaped as ASP.NET does":    {"POST /owa/auth.owa", urlencoded, "%u0075sername=%u0070at&password=wrong"},
		"letter case":                {"POST /OWA/Auth.OWA", urlencoded, "UserName=PAT&password=wrong"},
		"twice":                      {"POST /owa/auth.owa", urlencoded, "username=x&username=pat&password=wrong"},
		"behind a header":            {"POST /owa/auth.owa", urlencoded + basic("x", "wrong"), form},
		"NTLM in OEM characters":     {ews, "Authorization: NTLM " + b64(type3("CONTOSO", "pat", "wrong", false)) + "\r\n", ""},
		"NTLM behind another":        {ews, "Authorization: Negotiate " + b64(append(type3("", "x", "wrong", true), type3("", "pat", "wrong", true)...)) + "\r\n", ""},
		"NTLM and Basic":             {ews, "Authorization: NTLM " + b64(type3("", "pat", "wrong", true)) + "\r\n" + basic("x", "wrong"), ""},
		"another charset":            {"POST /owa/auth.owa", "Content-Type: application/x-www-form-urlencoded; charset=ibm037\r\n", form},
		"another type":               {"POST /owa/auth.owa", "Content-Type: multipart/form-data; boundary=x\r\n", form},
		"no type":                    {"POST /owa/auth.owa", "", form},
		"far behind":                 {"POST /owa/auth.owa", urlencoded, "x=" + strings.Repeat("x", maxForm) + "&" + form},
		"malformed escape":           {"POST /owa/auth.owa", urlencoded, "username=%pat&password=wrong"},
		"many":                       {"POST /owa/auth.owa", urlencoded, strings.Repeat("username=x&", 9) + form},
		"NTLM that points elsewhere": {ews, "Authorization: NTLM " + b64(type3("", "pat", "wrong", true)[:70]) + "\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &loginCAS{}
			f := loginFront(t, k)
			refused := 0
			for range 12 {
				if f.knock(nil, "198.51.100.1", request.request, request.lines, request.body).StatusCode == 429 {
					refused++
				}
			}
			if n := k.checked.Load(); n > 8 || refused != 4 {
				t.Errorf("%d passwords were checked, %d refused", n, refused)
			}
		})
	}
	t.Run("chunked", func(t *testing.T) {
		k := &loginCAS{}
		f := loginFront(t, k)
		for range 12 {
			c := f.dial("mail.contoso.com")
			c.send("POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\n" + urlencoded + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(form), form))
			c.response("POST")
		}
		if n := k.checked.Load(); n != 8 {
			t.Errorf("%d passwords were checked", n)
		}
	})
}

// many at once cannot outrun the count, over any number of connections.
func TestLoginsAtOnce(t *testing.T) {
	k := &loginCAS{delay: 50 * time.Millisecond}
	f := loginFront(t, k)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() { ways["Basic"](f, fmt.Sprintf("198.51.100.%d", i), "pat", "wrong") })
	}
	wg.Wait()
	if n := k.checked.Load(); n != 8 {
		t.Errorf("%d of 40 passwords were checked", n)
	}
	// Right ones at once, as a client with many connections sends them, all get in.
	for range 20 {
		wg.Go(func() {
			if got := ways["Basic"](f, "192.0.2.1", "lee", "right"); got != 200 {
				t.Error(got)
			}
		})
	}
	wg.Wait()
}

// a source that tries one password for many users is stopped; IPv6 counts by
// /64. Whoever has logged in from there goes on, which is what offices need.
func TestFailedLoginsOfASource(t *testing.T) {
	k := &loginCAS{}
	b := newRecorder(t, k.serve)
	f := newFront(t, func(_ *front, o *Options, tb *Table) {
		o.Logins = throttle.New(throttle.Limits{PerSource: 12}, time.Now)
		tb.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, b.backend())
	if got := ways["Basic"](f, "2001:db8::1", "lee", "right"); got != 200 {
		t.Fatal(got)
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for n := range ways {
			if !yield(n) {
				return
			}
		}
	})
	for i := range 15 {
		want := 401
		if i >= 12 {
			want = 429
		}
		if got := ways[names[i%len(names)]](f, fmt.Sprintf("2001:db8::%x", i), fmt.Sprint("user", i), "wrong"); got != want {
			t.Errorf("guess %d: %d, want %d", i, got, want)
		}
	}
	for source, want := range map[string]int{"2001:db8::ffff": 429, "2001:db8:0:1::1": 200} {
		if got := ways["Basic"](f, source, "pat", "right"); got != want {
			t.Errorf("%s: %d, want %d", source, got, want)
		}
	}
	if got := ways["Basic"](f, "2001:db8::7", "lee", "right"); got != 200 {
		t.Errorf("known there: %d", got)
	}
}

// An ordinary request costs the look at logins no memory, and a Basic login that
// was right a moment ago none but once.
func TestLoginsDoNotAllocate(t *testing.T) {
	f := newFront(t, nil)
	s := &session{srv: f.Server}
	vdir := findDirectory(f.mail.VirtualDirectories, "/microsoft-server-activesync")
	rt := route{action: actBridge, host: f.mail, vdir: vdir, path: "/microsoft-server-activesync"}
	for _, lines := range []string{"", basic("pat", "right")} {
		if err := parseRequestHead([]byte("POST /Microsoft-Server-ActiveSync HTTP/1.1\r\nHost: mail.contoso.com\r\n"+lines+"Content-Length: 0\r\n\r\n"), &s.head); err != nil {
			t.Fatal(err)
		}
		s.resp.status = 200
		once := func() {
			if ok, _, _ := s.admit(t.Context(), &rt); !ok {
				t.Fatal("refused")
			}
			s.answered(vdir)
			s.endLogin()
		}
		once()
		if n := testing.AllocsPerRun(100, once); n > 0 {
			t.Errorf("%q: %v allocations", lines, n)
		}
	}
}

// no password, token, cookie or form reaches the log, at any level, on any
// way through: failures and successes, blocked and malformed requests, broken
// backends and clients. Every secret is a word of its own that is looked for, also
// encoded.
func TestSecretsNeverReachTheLog(t *testing.T) {
	k := &loginCAS{}
	b := newRecorder(t, k.serve)
	broken := newRecorder(t, func(c *recorded) {
		h, _ := c.head()
		switch {
		case strings.Contains(h, "garbage"):
			io.WriteString(c, "Set-Cookie: canary-backend-1\r\n\r\n")
		case strings.Contains(h, "half"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nSet-Cookie: x=canary-backend-2\r\nContent-Length: 100\r\n\r\ncanary-backend-3")
		case strings.Contains(h, "toolong"):
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nServer: Microsoft-HTTPAPI/2.0\r\nWWW-Authenticate: Negotiate canary-backend-4\r\nContent-Length: 40\r\n\r\n<h2>Request Too Long canary-backend-5</h2>")
		case strings.Contains(h, "badhead"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX canary-backend-6: x\r\nSet-Cookie: canary-backend-7\x01\r\n\r\n")
		}
	})
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		o.Logger = o.Logger.Level(zerolog.TraceLevel)
		h := *f.mail
		h.Name, h.Site = "other.contoso.com", &Site{Name: "broken", Backends: []*Backend{broken.backend()}}
		h.Mode = Bridge
		tb.Hosts["other.contoso.com"] = &h
		directory("ews", func(d *VirtualDirectory) { d.MaxBody = 1000 })(f, o, tb)
	}, b.backend())
	n := 0
	canary := func() string { n++; return fmt.Sprintf("canary-%d-", n) }
	var tokens []string // of Authorization, as they are on the wire
	secrets := func() string {
		return "Cookie: cadata=" + canary() + "; UserContext=" + canary() + "\r\nX-OWA-CANARY: " + canary() + "\r\nX-OWA-UrlPostData: " + canary() + "\r\n"
	}
	for _, host := range []string{"mail.contoso.com", "other.contoso.com"} {
		for _, path := range []string{
			"/owa/?x=" + canary(), "/owa/auth.owa", "/ews/exchange.asmx", "/Microsoft-Server-ActiveSync?Cmd=" + canary(), "/powershell", "/nothing",
			"/autodiscover/autodiscover.json?@x/powershell=" + canary(), "/owa/garbage", "/owa/half", "/owa/toolong", "/owa/badhead", "/owa/..%2f",
		} {
			for _, auth := range []string{
				"", basic("pat", canary()), basic("pat", "right"+canary()), "Authorization: Basic " + canary() + "\r\n", "Authorization: Bearer " + canary() + "\r\n",
				"Authorization: NTLM " + b64(type3("D", "pat", canary(), true)) + "\r\n", "Authorization: Negotiate " + b64(spnego(type3("D", "pat", canary(), true))) + "\r\n",
				"Authorization: Negotiate " + b64([]byte(canary())) + "\r\n", "Proxy-Authorization: Basic " + canary() + "\r\n",
				"Bad Header: " + canary() + "\r\n", "Bad: " + canary() + "\x01\r\n", "Expect: " + canary() + "\r\n", "Transfer-Encoding: " + canary() + "\r\n",
			} {
				if words := strings.Fields(auth); len(words) == 3 {
					tokens = append(tokens, words[2])
				}
				body := "username=pat&password=" + canary()
				if strings.HasPrefix(path, "/ews") {
					body += strings.Repeat("x", 2000) // over the limit
				}
				c := f.dial(host)
				io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: "+host+"\r\n"+auth+secrets()+urlencoded+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body))+body)
				http.ReadResponse(c.br, nil)
				c.Close()
			}
		}
	}
	for _, raw := range []string{ // malformed in other ways, in clear, cut off, chunks
		"POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Basic " + canary() + "\r\nContent-Length: 100\r\n\r\npassword=" + canary(),
		"POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\nTransfer-Encoding: chunked\r\n\r\n" + canary() + "\r\n",
		"POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab" + canary(),
		"Cookie: " + canary() + "\r\n\r\n", "password=" + canary() + "&x\r\n\r\n", "\x00" + canary(),
		"GET /owa/ HTTP/9.9" + canary() + "\r\n\r\n",
	} {
		for _, dial := range []func() *client{func() *client { return f.dial("mail.contoso.com") }, f.dialPlain} {
			c := dial()
			io.WriteString(c, raw)
			time.Sleep(time.Millisecond)
			c.Close()
		}
	}
	eventually(t, "the end of every connection", func() bool { return f.Connections() == 0 })
	log := f.log.String()
	if strings.Count(log, `"message":"request"`) < 200 || !strings.Contains(log, `"level":"debug"`) || !strings.Contains(log, "login failed") {
		t.Fatalf("the log holds too little to prove anything:\n%.2000s", log)
	}
	for line := range strings.SplitSeq(log, "\n") {
		// At the debug level the target is logged as it came, with the query.
		if i := strings.Index(line, `"target":"`); i >= 0 {
			end := strings.Index(line[i+10:], `"`)
			line = line[:i] + line[i+10+end:]
		}
		if strings.Contains(line, "canary-") {
			t.Errorf("logged: %s", line)
		}
		for _, token := range tokens {
			if strings.Contains(line, token) {
				t.Errorf("logged, encoded: %s", line)
			}
		}
	}
}

// Whatever a client sends as credentials or form is read without harm, and gives few
// names.
func FuzzCredentials(f *testing.F) {
	for _, value := range []string{
		basic("pat", "x"), "Authorization: NTLM " + b64(type3("D", "pat", "x", true)) + "\r\n", "Authorization: Negotiate " + b64(spnego(type3("D", "pat", "x", false))) + "\r\n",
		"Authorization: Basic\r\n", "Authorization: NTLM TlRMTVNTUAADAAAA\r\n",
	} {
		_, value, _ = strings.Cut(strings.TrimSpace(value), ": ")
		f.Add([]byte(value), []byte("username=pat&password=x&%75sername=%u0070at"))
	}
	f.Fuzz(func(t *testing.T, value, form []byte) {
		s := &session{}
		s.head.fields = []field{{name: []byte("Authorization"), value: value}, {name: []byte("authorization"), value: value}}
		l := s.credentials()
		names, err := formNames(form)
		if len(l.typed) > maxNames || len(names) > maxNames || err != nil && names != nil {
			t.Errorf("%q: %q; %q: %q %v", value, l.typed, form, names, err)
		}
		for _, n := range append(l.typed, names...) {
			if again := throttle.Name(throttle.Name(n)); again != throttle.Name(n) && !strings.ContainsAny(n, `@\/`) {
				t.Errorf("the name of %q is %q, and of that %q", n, throttle.Name(n), again)
			}
		}
	})
}

// What the look at logins costs a request, beside 20 µs and more for the rest.
func BenchmarkAdmit(b *testing.B) {
	f := newFront(b, nil)
	vdir := findDirectory(f.mail.VirtualDirectories, "/ews")
	rt := route{action: actBridge, host: f.mail, vdir: vdir, path: "/ews/exchange.asmx"}
	for name, lines := range map[string]string{"no credentials": "", "Basic": basic("pat", "right"), "NTLM": "Authorization: NTLM " + b64(type3("D", "pat", strings.Repeat("r", 200), true)) + "\r\n"} {
		b.Run(name, func(b *testing.B) {
			s := &session{srv: f.Server}
			if err := parseRequestHead([]byte("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n"+lines+"Content-Length: 0\r\n\r\n"), &s.head); err != nil {
				b.Fatal(err)
			}
			s.resp.status = 200
			b.ReportAllocs()
			for b.Loop() {
				if ok, _, _ := s.admit(b.Context(), &rt); !ok {
					b.Fatal("refused")
				}
				s.answered(vdir)
				s.endLogin()
			}
		})
	}
}
