package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// ntlmLike is a backend that remembers the first user of each TCP connection and
// serves every later request on it as that user, as IIS does: the attack target
// of.
func ntlmLike(c *recorded) {
	user := ""
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		if n := contentLength(h); n > 0 {
			io.CopyN(io.Discard, c.br, n)
		}
		for line := range strings.SplitSeq(h, "\r\n") {
			if name, v, ok := strings.Cut(line, ": "); ok && strings.EqualFold(name, "Authorization") {
				if _, token, ok := strings.Cut(v, " "); ok && user == "" {
					user = token
				}
			}
		}
		if user == "" {
			fmt.Fprint(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
			continue
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(user), user)
	}
}

// all requests of a client connection travel on one backend connection.
func TestOneBackendConnection(t *testing.T) {
	b := newRecorder(t, ntlmLike)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(get("/ews/exchange.asmx"))
	if r, _ := c.response("GET"); r.StatusCode != 401 {
		t.Fatalf("first leg: %d", r.StatusCode)
	}
	c.send("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: NTLM pat\r\nContent-Length: 0\r\n\r\n")
	c.response("POST")
	for i := range 50 {
		c.send(get("/ews/exchange.asmx"))
		if r, body := c.response("GET"); r.StatusCode != 200 || body != "pat" {
			t.Fatalf("request %d: %d %q", i, r.StatusCode, body)
		}
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
	if n := len(b.connections()[0].seen()); n != 52 {
		t.Errorf("%d requests reached the backend", n)
	}
}

// when the backend connection that a login went over dies while idle, the
// client's is closed; nothing is sent again on a new one.
func TestIdleBackendGoneClosesClient(t *testing.T) {
	timely(t, func(t *testing.T) error {
		drop := make(chan struct{})
		b := newRecorder(t, func(c *recorded) {
			c.head()
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			<-drop
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send("GET /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: NTLM type3\r\n\r\n")
		c.response("GET")
		time.Sleep(2 * quickWait)
		start := time.Now()
		close(drop)
		c.ends()
		err := within(time.Second, start, "client connection closed")
		if n := len(b.connections()); n != 1 {
			t.Errorf("%d backend connections", n)
		}
		return err
	})
}

// without a login on the connection, the next request begins on a new one:
// whether the end of the old one is seen while the client is idle, or when its
// request is there.
func TestIdleBackendGoneWithoutLogin(t *testing.T) {
	t.Parallel()
	for _, pause := range []time.Duration{0, 3 * quickWait} {
		b := newRecorder(t, func(c *recorded) { // every connection is good for one request
			h, _ := c.head()
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(h), h)
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		for i := range 4 {
			c.send(get(fmt.Sprintf("/owa/%d", i)))
			if r, body := c.response("GET"); r.StatusCode != 200 || !strings.Contains(body, fmt.Sprintf("GET /owa/%d ", i)) {
				t.Fatalf("request %d: %d %q", i, r.StatusCode, body)
			}
			b.connections()[i].ends(t)
			time.Sleep(pause)
		}
		if n := len(b.connections()); n != 4 {
			t.Errorf("%d backend connections, want one for each request", n)
		}
	}
}

// a backend that closes instead of answering on a connection that was used
// before: no replay, no made-up error, a plain close.
func TestBackendClosesInsteadOfAnswering(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		c.head()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	c.response("GET")
	c.send("POST /owa/auth.owa HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: NTLM type3\r\nContent-Length: 0\r\n\r\n")
	c.ends()
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections: the request was replayed", n)
	}
}

// the client closes, the backend connection is closed within a second,
// also in the middle of a long poll.
func TestClientGoneClosesBackend(t *testing.T) { // not beside others: it measures
	for _, tc := range []struct {
		name string
		gone func(c *client)
	}{
		{"close", func(c *client) { c.Close() }},
		{"FIN without close_notify", func(c *client) { c.Conn.(*tls.Conn).NetConn().Close() }},
		{"RST", func(c *client) {
			tcp := c.Conn.(*tls.Conn).NetConn().(*net.TCPConn)
			tcp.SetLinger(0)
			tcp.Close()
		}},
	} {
		for _, when := range []string{"idle", "long poll", "silent stream", "mid body"} {
			t.Run(tc.name+", "+when, func(t *testing.T) {
				t.Parallel()
				timely(t, func(t *testing.T) error {
					b := newRecorder(t, func(c *recorded) {
						c.head()
						switch when {
						case "idle":
							fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
						case "silent stream":
							fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
						}
						io.Copy(io.Discard, c.br) // until the front door closes
					})
					f := newFront(t, nil, b.backend())
					c := f.dial("mail.contoso.com")
					if when == "mid body" {
						c.send("RPC_IN_DATA /rpc/rpcproxy.dll?a:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 1073741824\r\n\r\nsome")
					} else {
						c.send("POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
					}
					switch when {
					case "idle":
						c.response("POST")
					case "silent stream":
						c.head()
					}
					backend := b.asked(0, 1)
					time.Sleep(2 * quickWait)
					start := time.Now()
					tc.gone(c)
					backend.ends(t)
					return within(time.Second, start, "backend connection closed")
				})
			})
		}
	}
}

// G14, R-4.5: a client that half-closes after its request still gets its answer.
func TestHalfClosedClientIsAnswered(t *testing.T) {
	t.Parallel()
	answer := func(after time.Duration) func(c *recorded) {
		return func(c *recorded) {
			if _, err := c.head(); err != nil {
				return
			}
			time.Sleep(after)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}
	t.Run("close_notify, long poll", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, answer(2*halfCloseGrace))
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		c.Conn.(*tls.Conn).CloseWrite()
		if r, body := c.response("GET"); r.StatusCode != 200 || body != "ok" {
			t.Errorf("%d %q", r.StatusCode, body)
		}
	})
	t.Run("FIN", func(t *testing.T) {
		t.Parallel()
		timely(t, func(t *testing.T) error { // the answer races against halfCloseGrace
			b := newRecorder(t, answer(200*time.Millisecond))
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			c.send(get("/owa/"))
			c.Conn.(*tls.Conn).CloseWrite()
			c.Conn.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite()
			all, err := io.ReadAll(c.br)
			if !strings.HasPrefix(string(all), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(all), "\r\n\r\nok") {
				return fmt.Errorf("%q, %v", all, err)
			}
			return nil
		})
	})
}

// G9, G10, G11: lines keep order, letter case and value; the reason phrase
// survives, also an empty one.
func TestResponseIsRelayedAsSent(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nWWW-Authenticate: Basic realm=\"mail.contoso.com\"\r\n" +
			"X-SOAP-Enabled: True\r\nx-lower: a\r\nMS-ASProtocolVersions: 2.5,12.1\r\nX-OWA-CANARY:no-blank\r\nPersistent-Auth: true\r\nAuthentication-Info: rspauth=\"x\"\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 Success\r\nContent-Type: application/rpc\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 503 RPC Error: 6ba\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 451 \r\nX-MS-Location: https://mail2.contoso.com/Microsoft-Server-ActiveSync\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 440\r\nContent-Length: 0\r\n\r\n",
	} {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, head)
			c.head()
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		if got := c.head(); got != head {
			t.Errorf("got  %q\nwant %q", got, head)
		}
	}
}

// The request crosses as it was sent, less what speaks of one hop and what a
// client may not claim (R-1.9, R-4.4, R-6.2, R-8.1, G2, G3, G9, G17).
func TestRequestIsRelayedAsSent(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	f1 := func(in, want string) {
		t.Helper()
		c.send(in)
		_, got := c.response("GET")
		if got != want {
			t.Errorf("\n got %q\nwant %q", got, want)
		}
	}
	const added = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nFront-End-Https: On\r\n\r\n"
	for _, target := range []string{
		"/Microsoft-Server-ActiveSync?jAAJBA+/==", "/Microsoft-Server-ActiveSync?Cmd=Sync&User=DOM%5cbob&DeviceId=a;b",
		"/Microsoft-Server-ActiveSync?x=%zz", "/mapi/emsmdb/?MailboxId=0c3de0f1@contoso.com", "/OWA/%C3%A9?a=\"<b>|{c}",
		"/Rpc/RpcProxy.dll?0c3de0f1-6a52@contoso.com:6001", "/owa//./x", "/owa/?u=caf\xe9",
	} {
		f1("GET "+target+" HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n",
			"GET "+target+" HTTP/1.1\r\nHost: mail.contoso.com\r\n"+added)
	}
	f1("GET /owa/ HTTP/1.1\r\nx-A:1\r\nHost: MAIL.contoso.com.:443\r\nX_under-score: 2 \r\nAuthorization: Bearer\r\nX-User-Identity: pat@contoso.com\r\n"+
		"Connection: Keep-Alive, X-Drop, cookie\r\nX-Drop: y\r\nCookie: a=b\r\nKeep-Alive: 300\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"+
		"Proxy-Connection: close\r\nProxy-Authorization: x\r\nX-Forwarded-For: 6.6.6.6\r\nx_forwarded_host: evil\r\nFORWARDED: for=1\r\nfront_end_https: On\r\n"+
		"X-Real-IP: 1\r\nClient-Cert: x\r\nClient-Cert-Chain: x\r\nX-ARR-SSL: x\r\nX-SSL-Cipher: x\r\nX-MapiHttpCapability: 1\r\n\r\n",
		"GET /owa/ HTTP/1.1\r\nx-A:1\r\nHost: MAIL.contoso.com.:443\r\nX_under-score: 2 \r\nAuthorization: Bearer\r\nX-User-Identity: pat@contoso.com\r\nX-MapiHttpCapability: 1\r\n"+added)
	f1("GET https://mail.contoso.com/owa/?a HTTP/1.1\r\nHost: legacy.contoso.com\r\nA: b\r\n\r\n",
		"GET /owa/?a HTTP/1.1\r\nHost: mail.contoso.com\r\nA: b\r\n"+added)
	f1("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n", // http.sys would answer 411
		"POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n"+added)
	huge := "Authorization: Negotiate " + strings.Repeat("A", 80<<10)
	f1("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n"+huge+"\r\n\r\n",
		"GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n"+huge+"\r\n"+added)
}

// X-Forwarded-For is continued for trusted proxies only.
func TestTrustedProxyIsContinued(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(_ *front, _ *Options, tb *Table) { tb.TrustedProxies = prefixes("127.0.0.0/8") }, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Forwarded-For: 192.0.2.7\r\nx-forwarded-for: 192.0.2.8\r\nX-Forwarded-Proto: http\r\n\r\n")
	_, got := c.response("GET")
	if !strings.Contains(got, "\r\nX-Forwarded-For: 192.0.2.7, 192.0.2.8, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n") || strings.Count(strings.ToLower(got), "x-forwarded") != 2 {
		t.Errorf("got %q", got)
	}
}

// G8, R-5.2, R-2.10: Expect goes to the backend; its 100, or its 401 without one,
// comes back, and both connections live on.
func TestExpectEndToEnd(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			if !strings.Contains(h, "Expect: 100-continue\r\n") {
				t.Errorf("Expect not forwarded: %q", h)
			}
			if !strings.Contains(h, "Authorization") {
				io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
				io.CopyN(io.Discard, c.br, contentLength(h)) // http.sys waits for it
				continue
			}
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, contentLength(h))
			io.ReadFull(c.br, body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	head := "POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nExpect: 100-continue\r\nContent-Length: 5\r\n"
	c.send(head + "\r\n")
	if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 401 ") || strings.Contains(got, "Connection: close") {
		t.Fatalf("early 401: %q", got)
	}
	c.send("hello") // the client keeps the connection, so it owes the body
	c.send(head + "Authorization: NTLM x\r\n\r\n")
	if got := c.head(); got != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("interim: %q", got)
	}
	c.send("world")
	if r, body := c.response("POST"); r.StatusCode != 200 || body != "world" {
		t.Errorf("%d %q", r.StatusCode, body)
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
}

// a backend that never says 100 does not stall a client that waits for it.
func TestExpectTimesOut(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	timely(t, func(t *testing.T) error {
		start := time.Now()
		c.send("POST /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
		if got := c.head(); got != "HTTP/1.1 100 Continue\r\n\r\n" {
			t.Fatalf("%q", got)
		}
		if d := time.Since(start); d < time.Second {
			t.Errorf("100 Continue after %v", d)
		}
		err := within(expectWait+time.Second, start, "100 Continue")
		c.send("ok")
		if r, _ := c.response("POST"); r.StatusCode != 200 {
			t.Errorf("%d", r.StatusCode)
		}
		return err
	})
}

// G5, R-1.11, R-2.5: an early response reaches the client at once. A body that is
// small enough is carried to its end and both connections live; a larger one is
// announced to end the connection.
func TestEarlyResponse(t *testing.T) {
	early := func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
			if _, err := io.CopyN(io.Discard, c.br, contentLength(h)); err != nil {
				return
			}
		}
	}
	t.Run("small", func(t *testing.T) {
		b := newRecorder(t, early)
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		soon := 0 // a busy machine may be late, but not always
		for range 3 {
			start := time.Now()
			c.send("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("a", 500))
			if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 401 ") || strings.Contains(got, "close") {
				t.Fatalf("%q", got)
			}
			if time.Since(start) <= time.Second {
				soon++
			}
			c.send(strings.Repeat("b", 500))
		}
		if soon == 0 {
			t.Error("no early 401 came within a second")
		}
		if n := len(b.connections()); n != 1 {
			t.Errorf("%d backend connections", n)
		}
	})
	t.Run("1 GiB", func(t *testing.T) {
		b := newRecorder(t, early)
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send("RPC_IN_DATA /rpc/rpcproxy.dll?srv:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 1073741824\r\n\r\nsome")
		if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.Contains(got, "Connection: close\r\n") {
			t.Fatalf("%q", got)
		}
		c.ends()
	})
}

// G4, G6, G7, R-2.2, R-2.3, R-3.1, R-5.1: bytes pass both ways when they are
// produced, at the same time, whatever the framing.
func TestFullDuplexStreaming(t *testing.T) {
	for _, framing := range []string{"Content-Length: 1073741824", "Transfer-Encoding: chunked"} {
		t.Run(framing, func(t *testing.T) {
			timely(t, func(t *testing.T) error { return fullDuplex(t, framing) })
		})
	}
}

// fullDuplex sends and gets a byte stream piece by piece, and tells if that is slow.
// A piece that is held back for another one stops it.
func fullDuplex(t *testing.T, framing string) error {
	piece := strings.Repeat("p", 104)
	got := make(chan time.Time, 100)
	reply := make(chan struct{})
	defer close(reply)
	b := newRecorder(t, func(c *recorded) {
		c.head()
		io.WriteString(c, "HTTP/1.1 200 Success\r\n"+framing+"\r\n\r\n")
		go func() {
			for range reply {
				if strings.HasPrefix(framing, "T") {
					fmt.Fprintf(c, "68\r\n%s\r\n", piece)
				} else {
					io.WriteString(c, piece)
				}
			}
		}()
		buf := make([]byte, len(piece))
		for {
			if strings.HasPrefix(framing, "T") {
				if line, err := c.br.ReadString('\n'); err != nil || line != "68\r\n" {
					return
				}
			}
			if _, err := io.ReadFull(c.br, buf); err != nil {
				return
			}
			got <- time.Now()
			if strings.HasPrefix(framing, "T") {
				c.br.Discard(2)
			}
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("RPC_IN_DATA /rpc/rpcproxy.dll?srv:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\n" + framing + "\r\n\r\n")
	start := time.Now()
	c.head()
	if err := within(time.Second, start, "response head"); err != nil {
		return err
	}
	slow := 0
	for range 20 {
		sent := time.Now()
		if strings.HasPrefix(framing, "T") {
			c.send("68\r\n" + piece + "\r\n")
		} else {
			c.send(piece)
		}
		select {
		case at := <-got:
			if at.Sub(sent) > 50*time.Millisecond {
				slow++
			}
		case <-time.After(patience):
			t.Fatal("a piece is held back")
		}
		sent = time.Now()
		reply <- struct{}{}
		buf := make([]byte, len(piece))
		if strings.HasPrefix(framing, "T") {
			c.br.ReadString('\n')
		}
		if _, err := io.ReadFull(c.br, buf); err != nil || string(buf) != piece {
			t.Fatalf("%v %q", err, buf)
		}
		if strings.HasPrefix(framing, "T") {
			c.br.Discard(2)
		}
		if d := time.Since(sent); d > 50*time.Millisecond {
			slow++
		}
	}
	if slow > 4 { // any machine may stumble
		return fmt.Errorf("%d of 40 pieces took more than 50 ms", slow)
	}
	return nil
}

// what the backend says of the connection holds for the client's; HTTP/1.0
// clients keep theirs if they ask, and get no chunks.
func TestKeepAlive(t *testing.T) {
	f1 := func(name, request, response, wantConnection string, closes bool) {
		t.Run(name, func(t *testing.T) {
			b := newRecorder(t, func(c *recorded) {
				for {
					h, err := c.head()
					if err != nil {
						return
					}
					if !strings.Contains(h, " HTTP/1.1\r\n") {
						t.Errorf("backend was asked with %q", h)
					}
					io.WriteString(c, response)
					if strings.Contains(response, "HTTP/1.0") || strings.Contains(response, "Connection: close") {
						return
					}
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			for range 2 {
				c.send(request)
				r, body := c.response("GET")
				if got := r.Header.Get("Connection"); got != wantConnection && !(r.Close && wantConnection == "close") {
					t.Errorf("Connection %q, want %q", got, wantConnection)
				}
				if body != "hello" {
					t.Errorf("body %q", body)
				}
				if closes {
					c.ends()
					return
				}
			}
		})
	}
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	chunks := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: a\r\n\r\n"
	f1("1.1", get("/owa/"), ok, "", false)
	f1("1.1 chunked", get("/owa/"), chunks, "", false)
	f1("1.1 close", "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: close\r\n\r\n", ok, "close", true)
	f1("backend closes", get("/owa/"), "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "close", true)
	f1("backend 1.0", get("/owa/"), "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "close", true)
	f1("until close", get("/owa/"), "HTTP/1.0 200 OK\r\n\r\nhello", "close", true)
	f1("client 1.0", "GET /owa/ HTTP/1.0\r\nHost: mail.contoso.com\r\n\r\n", ok, "close", true)
	f1("client 1.0 keep-alive", "GET /owa/ HTTP/1.0\r\nHost: mail.contoso.com\r\nConnection: Keep-Alive\r\n\r\n", ok, "keep-alive", false)
	f1("client 1.0 chunked", "GET /owa/ HTTP/1.0\r\nHost: mail.contoso.com\r\nConnection: keep-alive\r\n\r\n", chunks, "close", true)
}

// The end comes with the answer that announces it: a client that waits for it does
// not wait until the server has given up waiting for the client.
func TestClosingComesAtOnce(t *testing.T) {
	f := newFront(t, nil, newRecorder(t, echo).backend())
	for _, text := range []string{"GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: close\r\n\r\n", "GET /owa/\r\n\r\n"} {
		timely(t, func(t *testing.T) error {
			c := f.dial("mail.contoso.com")
			start := time.Now()
			c.send(text)
			c.response("GET")
			c.ends()
			return within(lingerTime/2, start, "connection closed")
		})
	}
}

// a server renews its channels before their announced length. The client gets
// what there was and the end of the connection, and the log has no fault; elsewhere
// it is one.
func TestChannelEndsEarly(t *testing.T) {
	t.Parallel()
	for line, level := range map[string]string{
		"RPC_OUT_DATA /rpc/rpcproxy.dll?srv:6001": "info", "RPC_IN_DATA /rpc/rpcproxy.dll?srv:6001": "info", "GET /owa/": "warn",
	} {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 200 Success\r\nContent-Length: 1073741824\r\n\r\npiece")
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(line + " HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
		c.head()
		if got, err := io.ReadAll(c.br); string(got) != "piece" || isTimeout(err) {
			t.Errorf("%s: %q, %v", line, got, err)
		}
		f.waitForLog(`"message":"request"`)
		for entry := range strings.Lines(f.log.String()) {
			if strings.Contains(entry, `"message":"request"`) && !strings.HasPrefix(entry, `{"level":"`+level+`"`) {
				t.Errorf("%s: %s", line, entry)
			}
		}
	}
}

// a response that breaks off is not completed by us.
func TestTruncatedResponse(t *testing.T) {
	t.Parallel()
	for _, resp := range []string{
		"HTTP/1.1 200 Success\r\nContent-Length: 100\r\n\r\nshort",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello|XX",
	} {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			for part := range strings.SplitSeq(resp, "|") {
				io.WriteString(c, part)
				time.Sleep(2 * quickWait)
			}
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		r, err := http.ReadResponse(c.br, nil)
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("%v", err)
		}
		if body, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("%q: client saw a complete body %q", resp, body)
		}
	}
}

// Backend faults: unreachable, untrusted, malformed, silent. The client gets 502 or
// 504, the log the cause, and other connections go on.
func TestBackendFaults(t *testing.T) {
	good := newRecorder(t, echo)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	f1 := func(name string, b *Backend, status int, cause string) {
		t.Run(name, func(t *testing.T) {
			idle := time.Minute
			if status == 504 {
				idle = 300 * time.Millisecond
			}
			f := newFront(t, func(f *front, _ *Options, tb *Table) {
				h := *f.mail
				h.Name, h.Site = "other.contoso.com", &Site{Name: "branch", Backends: []*Backend{b}, ConnectTimeout: time.Minute}
				h.VirtualDirectories = Preset()
				for i := range h.VirtualDirectories {
					h.VirtualDirectories[i].ResponseIdle = idle
				}
				tb.Hosts["other.contoso.com"] = &h
			}, good.backend())
			bystander := f.dial("mail.contoso.com")
			bystander.send(get("/owa/"))
			bystander.response("GET")
			c := f.dial("other.contoso.com")
			c.send("GET /owa/ HTTP/1.1\r\nHost: other.contoso.com\r\n\r\n")
			r, body := c.response("GET")
			if r.StatusCode != status || !r.Close {
				t.Errorf("status %d, close %v", r.StatusCode, r.Close)
			}
			if strings.Contains(body, "127.0.0.1") || strings.Contains(body, "cas") {
				t.Errorf("the client learns too much: %q", body)
			}
			c.ends()
			bystander.send(get("/owa/"))
			if r, _ := bystander.response("GET"); r.StatusCode != 200 {
				t.Errorf("bystander: %d", r.StatusCode)
			}
			eventually(t, "the log has "+cause, func() bool { return strings.Contains(f.log.String(), cause) })
		})
	}
	answer := func(text string) *Backend {
		return newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, text)
		}).backend()
	}
	f1("unreachable", &Backend{Name: "cas09", Address: dead.Addr().String(), TLS: &tls.Config{}}, 502, "connection refused")
	untrusted := newRecorder(t, echo).backend()
	untrusted.TLS = &tls.Config{ServerName: "cas01.contoso.local"}
	f1("untrusted certificate", untrusted, 502, "allow_internal_untrusted_certs")
	wrongName := newRecorder(t, echo).backend()
	wrongName.TLS = wrongName.TLS.Clone()
	wrongName.TLS.ServerName = "cas02.contoso.local"
	f1("wrong name", wrongName, 502, "cas02.contoso.local")
	f1("closes at once", answer(""), 502, "unexpected EOF")
	f1("garbage", answer("hello\r\n\r\n"), 502, "status line")
	f1("two lengths", answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 502, "Content-Length")
	f1("length and chunks", answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 502, "both")
	f1("malformed chunk", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX"), 502, "chunk")
	f1("bare LF", answer("HTTP/1.1 200 OK\nContent-Length: 0\n\n"), 502, "line feed")
	f1("switching without being asked", answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), 502, "101")
	f1("silent", newRecorder(t, func(c *recorded) { c.head(); io.Copy(io.Discard, c.br) }).backend(), 504, "silent")
}

// allow_internal_untrusted_certs: the connection is encrypted, not authenticated.
func TestUntrustedBackendAllowed(t *testing.T) {
	b := newRecorder(t, echo)
	be := b.backend()
	be.TLS = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	f := newFront(t, nil, be)
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	if r, _ := c.response("GET"); r.StatusCode != 200 {
		t.Errorf("%d", r.StatusCode)
	}
}

// only http/1.1 is offered to the backend; sessions are resumed.
func TestBackendTLS(t *testing.T) {
	var mu sync.Mutex
	var resumed []bool
	b := newRecorder(t, func(c *recorded) {
		tc := c.Conn.(*tls.Conn)
		if tc.Handshake() != nil {
			return
		}
		mu.Lock()
		resumed = append(resumed, tc.ConnectionState().DidResume)
		mu.Unlock()
		if p := tc.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
			t.Errorf("ALPN %q", p)
		}
		echo(c)
	})
	f := newFront(t, nil, b.backend())
	for range 3 {
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		c.response("GET")
		c.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(resumed) != "[false true true]" {
		t.Errorf("resumed: %v", resumed)
	}
}

// a server that cannot be reached is passed over before anything was sent;
// a client stays where it is.
func TestSeveralServers(t *testing.T) {
	b1, b2 := newRecorder(t, echo), newRecorder(t, echo)
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	dead.Close()
	drained := newRecorder(t, echo)
	d := drained.backend()
	d.Drain = true
	f := newFront(t, nil, b1.backend(), &Backend{Name: "cas09", Address: dead.Addr().String(), TLS: &tls.Config{}}, b2.backend(), d)
	for range 8 {
		c := f.dial("mail.contoso.com")
		for range 3 {
			c.send(get("/owa/"))
			if r, _ := c.response("GET"); r.StatusCode != 200 {
				t.Errorf("%d", r.StatusCode)
			}
		}
	}
	n1, n2, n3 := len(b1.connections()), len(b2.connections()), len(drained.connections())
	if n1+n2 != 8 || n1 == 0 || n2 == 0 || n3 != 0 {
		t.Errorf("connections: %d, %d, drained %d", n1, n2, n3)
	}
}

// dyingConn is a connection that takes nothing more once it is dead, and does not
// show it before.
type dyingConn struct {
	net.Conn
	dead *atomic.Bool
}

func (c dyingConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}

// a connection that dies just when a request is to go over it is replaced,
// since nothing has gone; if there is no other one, the client is told so.
func TestConnectionDiesUnderARequest(t *testing.T) {
	t.Parallel()
	for _, refused := range []bool{false, true} {
		b := newRecorder(t, echo)
		var dead atomic.Bool
		f := newFront(t, func(_ *front, o *Options, _ *Table) {
			o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dead.Load() && refused {
					return nil, syscall.ECONNREFUSED
				}
				c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				if dead.Load() || err != nil {
					return c, err
				}
				return dyingConn{c, &dead}, nil
			}
		}, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		c.response("GET")
		dead.Store(true)
		c.send("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 4\r\n\r\nbody")
		want := 200
		if refused {
			want = 502
		}
		if r, _ := c.response("POST"); r.StatusCode != want {
			t.Errorf("%s, want %d", r.Status, want)
		}
		c.Close()
		eventually(t, "the connection is over", func() bool { return f.Connections() == 0 })
		if log := f.log.String(); strings.Contains(log, "fault in the program") {
			t.Error(log)
		}
	}
}

// Upgrade crosses where configured and nowhere else.
func TestUpgrade(t *testing.T) {
	script := func(c *recorded) {
		h, _ := c.head()
		if !strings.Contains(h, "Upgrade: websocket\r\n") {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(h), h)
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhi")
		io.Copy(c, c.br)
		c.Conn.(*tls.Conn).CloseWrite()
	}
	ask := "GET %s HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	b := newRecorder(t, script)
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		d := CustomDirectory("/wopi", Publish)
		d.Upgrade = true
		f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, d)
	}, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(fmt.Sprintf(ask, "/owa/"))
	if _, body := c.response("GET"); strings.Contains(body, "Upgrade") {
		t.Errorf("Upgrade crossed: %q", body)
	}
	// h2c, alone or offered beside another protocol, would get past our routing.
	for _, h2c := range []string{"h2c", "H2C, x", "websocket, h2c"} {
		c := f.dial("mail.contoso.com")
		c.send(strings.Replace(fmt.Sprintf(ask, "/wopi/x"), "websocket", h2c, 1))
		if _, body := c.response("GET"); strings.Contains(body, "Upgrade") {
			t.Errorf("%s crossed: %q", h2c, body)
		}
	}
	c = f.dial("mail.contoso.com")
	c.send(fmt.Sprintf(ask, "/wopi/x") + "early")
	if got := c.head(); got != "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\n\r\n" {
		t.Errorf("%q", got)
	}
	buf := make([]byte, 7)
	io.ReadFull(c.br, buf)
	if string(buf) != "hiearly" {
		t.Errorf("%q", buf)
	}
	c.send("more")
	c.Conn.(*tls.Conn).CloseWrite()
	if rest, err := io.ReadAll(c.br); string(rest) != "more" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
}

// HEAD, 204 and 304 have no body whatever their headers say.
func TestBodilessResponses(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			switch {
			case strings.HasPrefix(h, "HEAD"):
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
			case strings.Contains(h, "204"):
				io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			default:
				io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n")
			}
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for range 2 {
		c.send("HEAD /oab/x.lzx HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
		if r, _ := c.response("HEAD"); r.ContentLength != 20000000 {
			t.Errorf("Content-Length %d", r.ContentLength)
		}
		c.send(get("/oab/204"))
		c.response("GET")
		c.send(get("/oab/304"))
		if r, _ := c.response("GET"); r.StatusCode != 304 {
			t.Errorf("%d", r.StatusCode)
		}
	}
}

// Pipelined requests are answered one by one, in order.
func TestPipelining(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	var all strings.Builder
	for i := range 50 {
		fmt.Fprintf(&all, "POST /ews/%d HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 3\r\n\r\nabc\r\n", i)
	}
	go io.WriteString(c, all.String())
	for i := range 50 {
		if _, body := c.response("POST"); !strings.HasPrefix(body, fmt.Sprintf("POST /ews/%d HTTP", i)) {
			t.Fatalf("answer %d: %q", i, body)
		}
	}
}

// a client that leaves while its backend is still being connected to takes
// the attempt with it.
func TestClientGoneWhileDialling(t *testing.T) { // not beside others: it measures
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers the hello
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f := newFront(t, nil, &Backend{Name: "cas01", Address: ln.Addr().String(), TLS: &tls.Config{ServerName: "cas01"}})
	timely(t, func(t *testing.T) error {
		c := f.dial("mail.contoso.com")
		c.send("POST /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 100\r\n\r\nsome")
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		time.Sleep(3 * quickWait)
		start := time.Now()
		c.Close()
		b.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, b); isTimeout(err) {
			t.Fatal("the backend is still being connected to")
		}
		return within(time.Second, start, "given up")
	})
}

// A body that arrives while the backend is still being connected to is not lost.
func TestBodyDuringSlowDial(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, func(c *recorded) {
		h, err := c.head()
		if err != nil {
			return
		}
		body := make([]byte, contentLength(h))
		io.ReadFull(c.br, body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	f := newFront(t, func(_ *front, o *Options, _ *Table) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			time.Sleep(6 * quickWait)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("POST /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Long: " + strings.Repeat("h", 3000) + "\r\nContent-Length: 40000\r\n\r\n")
	for i := range 40 {
		c.send(strings.Repeat(string(rune('a'+i%26)), 1000))
		time.Sleep(10 * time.Millisecond)
	}
	r, body := c.response("POST")
	if r.StatusCode != 200 || len(body) != 40000 || body[:1000] != strings.Repeat("a", 1000) || body[39000:] != strings.Repeat("n", 1000) {
		t.Errorf("%d, %d bytes", r.StatusCode, len(body))
	}
	if h := b.connections()[0].seen()[0]; !strings.Contains(h, "X-Long: "+strings.Repeat("h", 3000)+"\r\n") {
		t.Errorf("head arrived as %q", h)
	}
}

// a long early response reaches a client whole that goes on sending
// while it reads.
func TestLongEarlyResponseWhileClientSends(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	read := make(chan struct{})
	b := newRecorder(t, func(c *recorded) {
		c.head()
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("r", size))
		<-read // closing with unread bytes would be a reset, and destroy what is under way
	})
	defer close(read)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	go func() {
		io.WriteString(c, "POST /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 31457280\r\n\r\n")
		for range 30 {
			if _, err := io.WriteString(c, strings.Repeat("u", 1<<20)); err != nil {
				return
			}
		}
	}()
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Body.Read(buf)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("cut after %d of %d bytes: %v", got, size, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if got != size {
		t.Errorf("%d of %d bytes", got, size)
	}
}

// Behind a trusted proxy the client is the one it names: its own address makes
// nobody internal (R-8.1, DESIGN: internal_networks).
func TestInternalBehindTrustedProxy(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.InternalNetworks, tb.TrustedProxies = prefixes("127.0.0.0/8", "10.0.0.0/8"), prefixes("127.0.0.0/8", "192.0.2.0/24")
		for i := range f.mail.VirtualDirectories {
			if f.mail.VirtualDirectories[i].Name == "ecp" {
				f.mail.VirtualDirectories[i].Access = Internal
			}
		}
	}, b.backend())
	for header, want := range map[string]int{
		"":                                   404,
		"X-Forwarded-For: 203.0.113.9\r\n":   404,
		"X-Forwarded-For: 10.1.2.3\r\n":      200,
		"X-Forwarded-For: 10.1.2.3:5555\r\n": 200,
		"X-Forwarded-For: 10.1.2.3, 203.0.113.9\r\n":                    404, // the first is the client's own claim
		"X-Forwarded-For: 10.1.2.3, 192.0.2.1\r\n":                      200, // two trusted proxies
		"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.1.2.3\r\n": 200,
		"X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-For: 203.0.113.9\r\n": 404,
		"X-Forwarded-For: unknown\r\n":                                  404,
		"X-Forwarded-For: 10.1.2.3, nonsense\r\n":                       404,
	} {
		c := f.dial("mail.contoso.com")
		c.send("GET /ecp/ HTTP/1.1\r\nHost: mail.contoso.com\r\n" + header + "\r\n")
		if r, _ := c.response("GET"); r.StatusCode != want {
			t.Errorf("%q: %d, want %d", header, r.StatusCode, want)
		}
	}
}

// a login of the connection gets through with a large body in every leg,
// as some clients send it, before a server that answers 401 at the head.
func TestLoginWithLargeBodies(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	b := newRecorder(t, func(c *recorded) {
		for leg := range 3 {
			h, err := c.head()
			if err != nil {
				return
			}
			status := []string{"401 Unauthorized\r\nWWW-Authenticate: NTLM", "401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAACAAAA", "200 OK"}[leg]
			io.WriteString(c, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
			if _, err := io.CopyN(io.Discard, c.br, contentLength(h)); err != nil {
				return
			}
		}
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	body := strings.Repeat("b", size)
	for leg, auth := range []string{"", "Authorization: NTLM TlRMTVNTUAABAAAA\r\n", "Authorization: NTLM TlRMTVNTUAADAAAA\r\n"} {
		c.send(fmt.Sprintf("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n%sContent-Length: %d\r\n\r\n", auth, size))
		c.send(body)
		h := c.head()
		if want := []string{"401", "401", "200"}[leg]; h[9:12] != want || leg < 2 && strings.Contains(h, "close") {
			t.Fatalf("leg %d: %q", leg, h)
		}
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
}

// after a login the connection stays with its server until it closes, also
// when that server is drained; new clients go to the others.
func TestLoginStaysWithADrainedServer(t *testing.T) {
	t.Parallel()
	b1, b2 := newRecorder(t, ntlmLike), newRecorder(t, ntlmLike)
	var table *Table
	f := newFront(t, func(_ *front, _ *Options, tb *Table) { table = tb }, b1.backend(), b2.backend())
	pat := f.dial("mail.contoso.com")
	pat.send("GET /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Negotiate pat\r\n\r\n")
	if _, body := pat.response("GET"); body != "pat" {
		t.Fatalf("login: %q", body)
	}
	if len(b1.connections()) != 1 {
		t.Fatal("the first connection did not go to the first server")
	}
	drained := *b1.backend()
	drained.Drain = true
	mail := *f.mail
	mail.Site = &Site{Name: "hq", Backends: []*Backend{&drained, b2.backend()}}
	next := *table
	next.Hosts = map[string]*Host{"mail.contoso.com": &mail}
	f.SetTable(&next)
	for i := range 20 {
		pat.send(get("/ews/"))
		if r, body := pat.response("GET"); r.StatusCode != 200 || body != "pat" {
			t.Fatalf("request %d after the drain: %d %q", i, r.StatusCode, body)
		}
		other := f.dial("mail.contoso.com")
		other.send(get("/ews/"))
		other.response("GET")
		other.Close()
	}
	if n1, n2 := len(b1.connections()), len(b2.connections()); n1 != 1 || n2 != 20 {
		t.Errorf("connections: drained server %d, other %d; want 1 and 20", n1, n2)
	}
}
