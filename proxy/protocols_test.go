package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// clients are offered HTTP/1.1 only, whatever else they can do, so that NTLM
// and Negotiate are never multiplexed; towards the servers likewise.
func TestHTTP11IsAllThatIsOffered(t *testing.T) {
	alpn := make(chan []string, 1)
	b := newRecorder(t, echo)
	backend := b.backend()
	f := newFront(t, nil, backend)
	for _, offer := range [][]string{nil, {"http/1.1"}, {"h2", "http/1.1"}, {"h3", "h2", "http/1.1", "http/1.0"}} {
		c, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com", NextProtos: offer})
		if err != nil {
			t.Fatalf("%v: %v", offer, err)
		}
		want := "http/1.1"
		if offer == nil {
			want = ""
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("offered %v: got %q, want %q", offer, got, want)
		}
		c.Close()
	}
	// A server that would rather speak h2 is not asked to.
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{b.cert}, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			alpn <- h.SupportedProtos
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	f2 := newFront(t, nil, &Backend{Name: "cas02", Address: ln.Addr().String(), TLS: backend.TLS})
	c := f2.dial("mail.contoso.com")
	c.send(get("/owa/"))
	if got := <-alpn; len(got) != 1 || got[0] != "http/1.1" {
		t.Errorf("offered to the server: %v", got)
	}
}

// the methods of Outlook Anywhere, in any spelling of its two paths, and
// nowhere else.
func TestRPCMethodsOnRPCPathsOnly(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for _, method := range []string{"RPC_IN_DATA", "RPC_OUT_DATA"} {
		for _, path := range []string{"/rpc/rpcproxy.dll", "/RPC/RpcProxy.dll", "/rpcwithcert/rpcproxy.dll", "/RpcWithCert/RPCPROXY.DLL"} {
			line := method + " " + path + "?0c3de0f1-6a52@contoso.com:6001 HTTP/1.1\r\n"
			c.send(line + "Host: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
			if r, body := c.response(method); r.StatusCode != 200 || !strings.HasPrefix(body, line) {
				t.Errorf("%s: %d %q", line, r.StatusCode, body)
			}
		}
	}
	seen := len(b.asked(0, 8).seen())
	for _, path := range []string{"/owa/", "/ews/exchange.asmx", "/mapi/emsmdb", "/oab/", "/autodiscover/autodiscover.xml", "/Microsoft-Server-ActiveSync", "/ecp/", "/rpcx/rpcproxy.dll", "/"} {
		for _, method := range []string{"RPC_IN_DATA", "RPC_OUT_DATA", "rpc_in_data"} {
			c := f.dial("mail.contoso.com")
			c.send(method + " " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
			if r, _ := c.response(method); r.StatusCode != 405 && r.StatusCode != 404 {
				t.Errorf("%s %s: %d", method, path, r.StatusCode)
			}
		}
	}
	if n := len(b.asked(0, 8).seen()); n != seen || len(b.connections()) != 1 {
		t.Errorf("the server saw %d requests on %d connections, want %d on 1", n, len(b.connections()), seen)
	}
}

// ten echoes in a row on one connection, with bodies of 0 and 4 bytes, none
// of them kept waiting (for a body that does not come, say).
func TestRPCEcho(t *testing.T) { // not beside others: it measures
	timely(t, func(t *testing.T) error {
		b := newRecorder(t, func(c *recorded) {
			for {
				h, err := c.head()
				if err != nil {
					return
				}
				body := make([]byte, contentLength(h))
				if _, err := io.ReadFull(c.br, body); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 Success\r\nContent-Type: application/rpc\r\nContent-Length: 20\r\n\r\n%-20s", body)
			}
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		for i := range 10 {
			begin, body := time.Now(), "abcd"[:4*(i%2)]
			fmt.Fprintf(c, "RPC_%s_DATA /rpc/rpcproxy.dll?srv:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n%s", []string{"IN", "OUT"}[i/5], len(body), body)
			r, got := c.response("RPC_IN_DATA")
			if r.Status != "200 Success" || got != fmt.Sprintf("%-20s", body) {
				t.Fatalf("echo %d: %s %q", i, r.Status, got)
			}
			if err := within(100*time.Millisecond, begin, "echo"); err != nil && i > 0 { // the first one connects to the server
				return err
			}
		}
		if n := len(b.connections()); n != 1 {
			t.Errorf("%d connections at the server, want 1", n)
		}
		return nil
	})
}

// the cookies of MAPI over HTTP cross byte for byte, several of a name, in
// their order and spacing, with attributes as they are.
func TestCookiesCrossByteForByte(t *testing.T) {
	const set = "Set-Cookie: MapiContext=MAPIAAAAAPDAt9+d0Ijaisy8nL6av5y+jriOuI+/jLuJsIm5iL+J/A==; path=/mapi/emsmdb/; secure; HttpOnly\r\n" +
		"set-cookie:MapiSequence=1-AAAAAA==;  path=/mapi/emsmdb/\r\n" +
		"Set-Cookie: MapiSequence=2-AAAAAA==; Path=/; Domain=cas01.contoso.local; SameSite=None\r\n" +
		"Set-Cookie: empty=\r\n"
	b := newRecorder(t, func(c *recorded) {
		for {
			if _, err := c.head(); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+set+"Content-Length: 0\r\n\r\n")
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	const cookies = "Cookie: MapiSequence=2-AAAAAA==; MapiContext=MAPIAAAAAPDAt9+d0Ijaisy8nL6av5y+jriOuI+/jLuJsIm5iL+J/A==\r\n" +
		"COOKIE:  a=\"b,c\";a=2 ;; x\r\n"
	c.send("POST /mapi/emsmdb/?MailboxId=0c3de0f1@contoso.com HTTP/1.1\r\nHost: mail.contoso.com\r\n" + cookies + "Content-Length: 0\r\n\r\n")
	if got := c.head(); !strings.Contains(got, set) {
		t.Errorf("to the client: %q", got)
	}
	if got := b.asked(0, 1).seen()[0]; !strings.Contains(got, cookies) {
		t.Errorf("to the server: %q", got)
	}
}

// OPTIONS is the server's to answer, also one that a browser's CORS layer
// might have sent, and the names of the answer keep their letters (G9).
func TestOptionsReachTheServer(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nAllow: OPTIONS,POST\r\nMS-Server-ActiveSync: 15.2\r\nMS-ASProtocolVersions: 2.5,12.0,14.1,16.1\r\n" +
		"MS-ASProtocolCommands: Sync,Ping\r\nPublic: OPTIONS,POST\r\nX-MS-RP: 2.5,16.1\r\nContent-Length: 0\r\n\r\n"
	b := newRecorder(t, func(c *recorded) {
		for {
			if _, err := c.head(); err != nil {
				return
			}
			io.WriteString(c, answer)
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for i, more := range []string{"", "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n"} {
		c.send("OPTIONS /Microsoft-Server-ActiveSync HTTP/1.1\r\nHost: mail.contoso.com\r\n" + more + "\r\n")
		if got := c.head(); got != answer {
			t.Errorf("got %q", got)
		}
		if got := b.asked(0, i+1).seen()[i]; !strings.HasPrefix(got, "OPTIONS /Microsoft-Server-ActiveSync HTTP/1.1\r\n") || !strings.Contains(got, more) {
			t.Errorf("the server was asked %q", got)
		}
	}
}

// a name with another certificate or policy than the connection's is
// 421 and no server sees it, over a connection that goes on; one with the same is
// served. (The requirement speaks of HTTP/2, which is not spoken here.)
func TestMisdirectedRequest(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		same, other := *f.mail, *f.mail
		same.Name, other.Name, other.Policy = "same.contoso.com", "other.contoso.com", "q"
		tb.Hosts["same.contoso.com"], tb.Hosts["other.contoso.com"] = &same, &other
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
	}, b.backend())
	c := f.dial("mail.contoso.com")
	for _, x := range []struct {
		host string
		want int
	}{
		{"mail.contoso.com", 200},
		{"other.contoso.com", 421},
		{"eas.contoso.com", 421},
		{"autodiscover.contoso.com", 421},
		{"unknown.example", 421},
		{"same.contoso.com", 200},
		{"legacy.contoso.com:443", 200},
	} {
		c.send("GET /owa/ HTTP/1.1\r\nHost: " + x.host + "\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != x.want {
			t.Errorf("Host %s: %d, want %d", x.host, r.StatusCode, x.want)
		}
	}
	if n := len(b.asked(0, 3).seen()); n != 3 {
		t.Errorf("the server saw %d requests, want 3", n)
	}
}
