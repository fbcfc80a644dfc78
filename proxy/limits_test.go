package proxy

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// directory returns a change of one preset directory of the front door's host.
func directory(name string, change func(*VirtualDirectory)) func(*front, *Options, *Table) {
	return func(f *front, _ *Options, _ *Table) {
		for i := range f.mail.VirtualDirectories {
			if d := &f.mail.VirtualDirectories[i]; d.Name == name {
				change(d)
			}
		}
	}
}

// more than max_body is 413 with a short body and a clean close: at once
// and without a server if the length is announced, where it passes the limit if
// it is not. What fits passes, and no directory has a limit by default.
func TestBodyLimit(t *testing.T) {
	const limit = 64 << 10
	for _, d := range Preset() {
		if d.MaxBody != 0 {
			t.Errorf("%s is limited by default", d.Name)
		}
	}
	setup := func(t *testing.T) (*front, *recorder) {
		b := newRecorder(t, strictly)
		return newFront(t, directory("ews", func(d *VirtualDirectory) { d.MaxBody = limit }), b.backend()), b
	}
	refused := func(t *testing.T, c *client) {
		t.Helper()
		r, body := c.response("POST")
		if r.StatusCode != 413 || body != "Request Entity Too Large\n" || !r.Close {
			t.Errorf("%d %q, close %v", r.StatusCode, body, r.Close)
		}
		c.ends() // without a reset, which would destroy the answer
	}
	post := "POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n"
	t.Run("announced", func(t *testing.T) {
		f, b := setup(t)
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			c := f.dial("mail.contoso.com")
			c.send(post + expect + fmt.Sprintf("Content-Length: %d\r\n\r\n", limit+1))
			if expect == "" {
				c.send(strings.Repeat("x", 1000)) // on its way before the answer
			}
			refused(t, c)
		}
		if n := len(b.connections()); n != 0 {
			t.Errorf("the server saw %d connections", n)
		}
	})
	t.Run("chunked", func(t *testing.T) {
		f, b := setup(t)
		for _, pause := range []time.Duration{0, 3 * quickWait} {
			c := f.dial("mail.contoso.com")
			c.send(post + "Transfer-Encoding: chunked\r\n\r\n")
			chunk := "1000\r\n" + strings.Repeat("x", 4096) + "\r\n"
			c.send(chunk)
			time.Sleep(pause)
			for range 16 {
				c.send(chunk)
			}
			refused(t, c)
		}
		for _, up := range b.connections() {
			up.ends(t)
		}
	})
	t.Run("fits", func(t *testing.T) {
		f, _ := setup(t)
		c := f.dial("mail.contoso.com")
		for range 2 {
			c.send(post + fmt.Sprintf("Content-Length: %d\r\n\r\n", limit) + strings.Repeat("x", limit))
			if r, _ := c.response("POST"); r.StatusCode != 200 {
				t.Error(r.Status)
			}
			c.send(post + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n", limit) + strings.Repeat("x", limit) + "\r\n0\r\n\r\n")
			if r, _ := c.response("POST"); r.StatusCode != 200 {
				t.Error(r.Status)
			}
		}
		c.send("POST /owa/x HTTP/1.1\r\nHost: mail.contoso.com\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", 2*limit) + strings.Repeat("x", 2*limit))
		if r, _ := c.response("POST"); r.StatusCode != 200 {
			t.Errorf("another directory: %s", r.Status)
		}
	})
}

// a login form that trickles in is cut, by total time; the IN channel of
// Outlook Anywhere trickles for as long as it likes, and so does an upload.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	b := newRecorder(t, strictly)
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.RequestHeadTimeout = limit }, b.backend())
	const size = 30
	trickle := func(t *testing.T, head string, pause time.Duration) (*http.Response, error) {
		c := f.dial("mail.contoso.com")
		c.send(head + fmt.Sprintf(" HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n", size))
		go func() {
			for range size {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(pause)
			}
		}()
		return http.ReadResponse(c.br, &http.Request{Method: "POST"})
	}
	for _, path := range []string{"/owa/auth.owa", "/OWA/Auth/OWAAuth.dll"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			r, err := trickle(t, "POST "+path, limit/5)
			if err != nil || r.StatusCode != 408 {
				t.Fatal(r, err)
			}
			if d := time.Since(start); d < limit {
				t.Errorf("cut after %v already", d)
			}
		})
	}
	for _, head := range []string{"RPC_IN_DATA /rpc/rpcproxy.dll?cas01:6001", "POST /owa/ev.owa2", "POST /ews/exchange.asmx", "POST /owa/auth.owa.png"} {
		t.Run(head, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			r, err := trickle(t, head, limit/12)
			if err != nil || r.StatusCode != 200 {
				t.Fatal(r, err)
			}
			if d := time.Since(start); d < 2*limit {
				t.Errorf("%d bytes in %v are not slow", size, d)
			}
		})
	}
	t.Run("in time", func(t *testing.T) {
		c := f.dial("mail.contoso.com")
		for range 3 {
			c.send("POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 4\r\n\r\nx=")
			time.Sleep(2 * quickWait)
			c.send("y&")
			if r, _ := c.response("POST"); r.StatusCode != 200 {
				t.Error(r.Status)
			}
		}
	})
}

// mailboxes are not moved over plain HTTP, whatever is published; over TLS
// they are.
func TestMailboxMovesNeedTLS(t *testing.T) {
	b := newRecorder(t, echo)
	for _, clear := range []bool{true, false} {
		f := newFront(t, func(f *front, _ *Options, _ *Table) {
			if clear { // one server in clear is enough: it may be the next one's turn
				f.site.Backends = append(f.site.Backends, &Backend{Name: "cas02", Address: b.ln.Addr().String()})
			}
			f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, CustomDirectory("/ews/mrsproxy.svc/x", Publish))
		}, b.backend())
		for path, never := range map[string]bool{
			"/ews/mrsproxy.svc": true, "/EWS/MRSProxy.svc": true, "/ews//mrsproxy%2esvc": true, "/ews/mrsproxy.svc/": true, "/ews/mrsproxy.svc/x/y": true,
			"/ews/mrsproxy.svcs": false,
		} {
			if !never && clear {
				continue // the server in clear speaks TLS
			}
			c := f.dial("mail.contoso.com")
			c.send("POST " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
			want := 200
			if never && clear {
				want = 403
			}
			if r, _ := c.response("POST"); r.StatusCode != want {
				t.Errorf("%s, in clear %v: %d, want %d", path, clear, r.StatusCode, want)
			}
		}
		if clear {
			f.waitForLog("mailboxes are not moved over plain HTTP")
			if n := len(b.connections()); n != 0 {
				t.Errorf("the servers saw %d connections", n)
			}
		}
	}
}

// the silence that each protocol needs is in the preset.
func TestSilenceThatProtocolsNeed(t *testing.T) {
	const m = time.Minute
	need := map[string]struct{ request, response time.Duration }{ // PROXYING.md section 10.1
		"owa": {5 * m, 5 * m}, "ecp": {5 * m, 5 * m}, "ews": {5 * m, 10 * m}, "mapi": {5 * m, 6 * m}, "rpc": {20 * m, 20 * m},
		"oab": {2 * m, 2 * m}, "autodiscover": {1 * m, 2 * m}, "activesync": {5 * m, 3660 * time.Second}, "powershell": {5 * m, 5 * m},
	}
	for _, d := range Preset() {
		if n := need[d.Name]; d.RequestIdle < max(n.request, m) || d.ResponseIdle < max(n.response, m) {
			t.Errorf("%s: %v and %v of silence, needs %v and %v", d.Name, d.RequestIdle, d.ResponseIdle, n.request, n.response)
		}
		delete(need, d.Name)
	}
	if len(need) > 0 {
		t.Errorf("not in the preset: %v", need)
	}
}

// an answer after nearly all the silence that a directory
// allows arrives, scaled: a minute is 50 ms here, a ping answers after an hour.
// No limit on the whole exchange comes in between.
func TestLongSilence(t *testing.T) {
	t.Parallel()
	const minute = 50 * time.Millisecond
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			if n := contentLength(h); n > 0 && n < 100 {
				io.CopyN(io.Discard, c.br, n)
			}
			silence := map[bool]time.Duration{true: 60, false: 5}[strings.Contains(h, "ActiveSync")]
			if strings.HasPrefix(h, "RPC_") {
				silence = 15
			}
			time.Sleep(silence * minute)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
			time.Sleep(silence * minute) // and once more in the middle
			io.WriteString(c, "ok")
		}
	})
	f := newFront(t, func(f *front, o *Options, _ *Table) {
		for i := range f.mail.VirtualDirectories {
			d := &f.mail.VirtualDirectories[i]
			d.RequestIdle, d.ResponseIdle = d.RequestIdle/(time.Minute/minute), d.ResponseIdle/(time.Minute/minute)
		}
	}, b.backend())
	for _, head := range []string{
		"POST /Microsoft-Server-ActiveSync?Cmd=Ping", "POST /mapi/emsmdb/?MailboxId=x@y", "RPC_OUT_DATA /rpc/rpcproxy.dll?x:6001", "POST /owa/ev.owa2?ns=PendingRequest",
	} {
		t.Run(head, func(t *testing.T) {
			t.Parallel()
			timely(t, func(t *testing.T) error {
				c := f.dial("mail.contoso.com")
				c.send(head + " HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 4\r\n\r\nping")
				r, err := http.ReadResponse(c.br, nil)
				if err != nil {
					return err
				}
				if body, err := io.ReadAll(r.Body); string(body) != "okok" || err != nil {
					return fmt.Errorf("%s %q %v", r.Status, body, err)
				}
				return nil
			})
		})
	}
	t.Run("IN channel", func(t *testing.T) {
		t.Parallel()
		timely(t, func(t *testing.T) error {
			c := f.dial("mail.contoso.com")
			c.send("RPC_IN_DATA /rpc/rpcproxy.dll?x:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 8\r\n\r\n")
			for range 4 {
				time.Sleep(12 * minute)
				if _, err := io.WriteString(c, "xx"); err != nil {
					return err
				}
			}
			r, err := http.ReadResponse(c.br, nil)
			if err != nil || r.StatusCode != 200 {
				return errors.Join(err, fmt.Errorf("%v", r))
			}
			return nil
		})
	})
}

// requests of one client over several connections run side by side, each on
// a server connection of its own.
func TestParallelRequests(t *testing.T) {
	const n = 6
	together := make(chan struct{})
	var here sync.WaitGroup
	here.Add(n)
	go func() { here.Wait(); close(together) }()
	b := newRecorder(t, func(c *recorded) {
		if _, err := c.head(); err != nil {
			return
		}
		here.Done()
		select { // answered when all of them are here
		case <-together:
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			c.head()
		case <-time.After(patience):
		}
	})
	f := newFront(t, nil, b.backend())
	var wg sync.WaitGroup
	for i := range n {
		c := f.dial("mail.contoso.com")
		wg.Go(func() {
			fmt.Fprintf(c, "POST /mapi/emsmdb/?MailboxId=x@y HTTP/1.1\r\nHost: mail.contoso.com\r\nCookie: MapiContext=one\r\nX-RequestId: %d\r\nContent-Length: 0\r\n\r\n", i)
			if r, err := http.ReadResponse(c.br, nil); err != nil || r.StatusCode != 200 {
				t.Error(r, err)
			}
		})
	}
	wg.Wait()
	if got := len(b.connections()); got != n {
		t.Errorf("%d server connections for %d clients' connections", got, n)
	}
}

// one address may have hundreds of connections: offices sit behind NAT.
func TestManyConnectionsFromOneAddress(t *testing.T) {
	const n = 300
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16) // handshakes at a time
	clients := make([]*client, n)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			clients[i] = f.dial("mail.contoso.com")
			clients[i].send(get("/owa/"))
			if r, _ := clients[i].response("GET"); r.StatusCode != 200 {
				t.Error(r.Status)
			}
		})
	}
	wg.Wait()
	if got := f.Connections(); got != n {
		t.Errorf("%d connections, want %d at the same time", got, n)
	}
	for _, c := range clients { // all of them are alive
		c.send(get("/owa/"))
	}
	for _, c := range clients {
		if r, _ := c.response("GET"); r.StatusCode != 200 {
			t.Error(r.Status)
		}
	}
}

// 64 MiB go up while the memory in use stays flat, and Exchange's 413 comes
// back, with the connection closed or in step, as the client is told.
func TestLargeUpload(t *testing.T) {
	const size = 64 << 20
	piece := make([]byte, 1<<20)
	taken := make(chan int64, 1)
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			n := contentLength(h)
			if strings.Contains(h, "/refused") { // as IIS does: 413 at the head, and the body is not read
				io.WriteString(c, "HTTP/1.1 413 Request Entity Too Large\r\nServer: Microsoft-IIS/10.0\r\nContent-Length: 3\r\n\r\nbig")
				if n > drainLimit {
					return
				}
			}
			m, _ := io.CopyN(io.Discard, c.br, n)
			if !strings.Contains(h, "/refused") {
				taken <- m
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(get("/ews/refused")) // the connection and its buffers are there
	c.response("GET")
	heap := func() int64 { // what is in use for good is there at every look
		least := int64(math.MaxInt64)
		for range 3 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			least = min(least, int64(m.HeapAlloc))
		}
		return least
	}
	before, most := heap(), int64(0)
	c.send(fmt.Sprintf("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n", size))
	for i := range size / len(piece) {
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
		if i%16 == 8 {
			most = max(most, heap()-before)
		}
	}
	if r, _ := c.response("POST"); r.StatusCode != 200 {
		t.Error(r.Status)
	}
	if n := <-taken; n != size {
		t.Errorf("%d bytes arrived of %d", n, size)
	}
	if most > size/8 { // what is held back grows to all of it; other tests leave and take some
		t.Errorf("the heap grew by %d bytes", most)
	}
	t.Logf("heap grew by at most %d KiB during %d MiB", most>>10, size>>20)

	for _, length := range []int{drainLimit, 1 << 30} {
		c := f.dial("mail.contoso.com")
		c.send(fmt.Sprintf("POST /ews/refused HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n", length))
		go io.CopyN(c, zeroes{}, int64(length))
		r, body := c.response("POST")
		if r.StatusCode != 413 || r.Status != "413 Request Entity Too Large" || body != "big" {
			t.Errorf("%s %q", r.Status, body)
		}
		if large := length > drainLimit; r.Close != large {
			t.Errorf("%d bytes: close %v", length, r.Close)
		}
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// what Exchange and its clients tell each other passes as it
// is, in both directions.
func TestHeadersOfTheProtocolsPass(t *testing.T) {
	cookies := "Set-Cookie: exchangecookie=abc; path=/; HttpOnly\r\nSet-Cookie: X-BackEndOverrideCookie=cas02~1; path=/EWS; secure; HttpOnly\r\nX-DiagInfo: CAS01\r\n"
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", cookies, len(h), h)
		}
	})
	f := newFront(t, directory("exchange", func(d *VirtualDirectory) { d.Access = Publish }), b.backend())
	c := f.dial("mail.contoso.com")
	ews := "X-AnchorMailbox: pat@contoso.com\r\nX-PreferServerAffinity: true\r\nCookie: exchangecookie=abc; X-BackEndOverrideCookie=cas02~1; a=\"b\"\r\n"
	soap := "SOAPAction: \"http://schemas.microsoft.com/exchange/services/2006/messages/GetUserAvailability\"\r\nContent-Type: text/xml; charset=utf-8\r\n"
	dav := "Destination: https://mail.contoso.com/exchange/pat/Drafts/x%20y.EML\r\nTranslate: f\r\nDepth: 1,noroot\r\nOverwrite: T\r\nBrief: t\r\n"
	for _, tc := range [][2]string{
		{"POST /EWS/Exchange.asmx", ews + soap},
		{"POST /ews/exchange.asmx/wssecurity", ews + soap},
		{"POST /ews/exchange.asmx/WSSecurity/SymmetricKey", soap},
		{"POST /autodiscover/autodiscover.svc/wssecurity", soap},
		{"POST /autodiscover/autodiscover.svc/WSSecurity/x509cert", soap},
		{"MOVE /exchange/pat/Inbox/x.EML", dav},
		{"PROPFIND /exchange/pat/Inbox/", dav},
	} {
		c.send(tc[0] + " HTTP/1.1\r\nHost: mail.contoso.com\r\n" + tc[1] + "Content-Length: 0\r\n\r\n")
		h := c.head()
		if !strings.Contains(h, cookies) {
			t.Errorf("%s: the response has become %q", tc[0], h)
		}
		body := make([]byte, contentLength(h))
		if _, err := io.ReadFull(c.br, body); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), "\r\n"+tc[1]) {
			t.Errorf("%s: the request has become %q", tc[0], body)
		}
	}
}

// what OWA's long poll says is passed on when it is said.
func TestOWALongPollIsFlushed(t *testing.T) {
	next := make(chan string)
	b := newRecorder(t, func(c *recorded) {
		c.head()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for s := range next {
			fmt.Fprintf(c, "%x\r\n%s\r\n", len(s), s)
		}
		io.WriteString(c, "0\r\n\r\n")
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ev.owa2?ns=PendingRequest&ev=PendingNotificationRequest&UA=0 HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 { // each piece is here before the next one is made
		s := fmt.Sprintf("<script>news %d</script>", i)
		next <- s
		got := make([]byte, len(s))
		if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != s {
			t.Fatalf("%q %v", got, err)
		}
		if i == 2 {
			time.Sleep(2 * quickWait)
		}
	}
	close(next)
	if rest, err := io.ReadAll(r.Body); len(rest) > 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
}

// what is not listed, and what is listed and denied or internal, is 404,
// and no server is connected to.
func TestUnpublishedNeverReachesAServer(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		directory("ecp", func(d *VirtualDirectory) { d.Access = Internal })(f, o, tb)
	}, b.backend())
	for _, method := range []string{"GET", "POST", "PROPFIND", "RPC_IN_DATA"} {
		c := f.dial("mail.contoso.com")
		for _, path := range []string{
			"/powershell", "/PowerShell/", "/powershell-liveid", "/api/v2.0/me", "/publicfolder", "/publicfolders/x", "/unifiedmessaging/service.asmx", "/aspnet_client/x.js",
			"/exchange", "/public/x", "/exchweb/bin/auth/owaauth.dll", "/exadmin", "/ecp/", "/ECP/default.aspx", "/owa2", "/ewsx", "/x", "/certsrv/", "/iisstart.htm",
			"/owa/healthcheck.htm", "/EWS/HealthCheck.htm", "/rpcwithcertx", "/microsoft-server-activesync2",
		} {
			c.send(method + " " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
			if r, _ := c.response(method); r.StatusCode != 404 {
				t.Errorf("%s %s: %d", method, path, r.StatusCode)
			}
		}
	}
	if n := len(b.connections()); n != 0 {
		t.Errorf("%d connections to the server", n)
	}
	// The same for a client inside is only closed where it is denied.
	in := newFront(t, func(f *front, o *Options, tb *Table) {
		directory("ecp", func(d *VirtualDirectory) { d.Access = Internal })(f, o, tb)
		tb.InternalNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}, b.backend())
	c := in.dial("mail.contoso.com")
	for path, want := range map[string]int{"/ecp/": 200, "/owa/healthcheck.htm": 200, "/powershell": 404, "/exchange": 404} {
		c.send(get(path))
		if r, _ := c.response("GET"); r.StatusCode != want {
			t.Errorf("inside, %s: %d, want %d", path, r.StatusCode, want)
		}
	}
}
