package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// that a login is under way is not forgotten when the 401 has a page of its
// own, which comes behind its head: http.sys sends one with every 401.
func TestLoginWithLargeBodiesAndPages(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	page := strings.Repeat("<!DOCTYPE html PUBLIC>", 100)
	b := newRecorder(t, func(c *recorded) {
		for leg := range 3 {
			h, err := c.head()
			if err != nil {
				return
			}
			status := []string{"401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM", "401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAACAAAA", "200 OK"}[leg]
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n", status)
			time.Sleep(2 * quickWait) // the page is not in the same read
			fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(page), page)
			if _, err := io.CopyN(io.Discard, c.br, contentLength(h)); err != nil {
				return
			}
		}
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for leg, auth := range []string{"", "Authorization: NTLM TlRMTVNTUAABAAAA\r\n", "Authorization: NTLM TlRMTVNTUAADAAAA\r\n"} {
		c.send(fmt.Sprintf("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n%sContent-Length: %d\r\n\r\n", auth, size))
		c.send("begun")
		r, body := c.response("POST") // as a client does that looks for an answer while it sends
		if want := []int{401, 401, 200}[leg]; r.StatusCode != want || body != page || leg < 2 && r.Close {
			t.Fatalf("leg %d: %s, close %v, %d bytes", leg, r.Status, r.Close, len(body))
		}
		c.send(strings.Repeat("b", size/2))
		time.Sleep(5 * quickWait) // the limit is looked at now and then
		c.send(strings.Repeat("b", size-size/2-len("begun")))
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
}

// a server that renegotiates when it knows the virtual directory, and takes
// its time about it, is waited for: the request is answered.
func TestSlowRenegotiation(t *testing.T) {
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	cert := newCertificate(t, "cas01.contoso.local")
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cas.pem")
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(openssl, "s_server", "-accept", "127.0.0.1:0", "-cert", file, "-tls1_2")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var address string
	eventually(t, "openssl listens", func() bool {
		_, rest, _ := strings.Cut(out.String(), "ACCEPT ")
		var whole bool
		address, _, whole = strings.Cut(rest, "\n")
		return whole
	})
	// The way to the server, which becomes long once slow is set.
	var slow atomic.Bool
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		defer server.Close()
		go io.Copy(client, server)
		buf := make([]byte, 16<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if slow.Load() {
				time.Sleep(4 * quickWait)
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	b := (&recorder{ln: ln, cert: cert}).backend()
	b.TLS.Renegotiation = tls.RenegotiateOnceAsClient // as tlsconf sets it
	f := newFront(t, nil, b)
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	eventually(t, "the request", func() bool { return strings.Contains(out.String(), "Front-End-Https") })
	slow.Store(true)
	io.WriteString(in, "R\n")
	eventually(t, "a renegotiation", func() bool { return strings.Contains(out.String(), "SSL_do_handshake -> 1") })
	time.Sleep(10 * quickWait)
	io.WriteString(in, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine\n")
	c.SetReadDeadline(time.Now().Add(patience))
	if r, body := c.response("GET"); r.StatusCode != 200 || body != "fine" {
		t.Errorf("%s %q", r.Status, body)
	}
}

// the health pages, which tell the server's name, are not seen from
// outside, in no spelling that IIS takes for theirs.
func TestHealthPagesAreInternal(t *testing.T) {
	host := &Host{Name: "mail.contoso.com", Mode: Bridge, VirtualDirectories: Preset(), Site: &Site{}}
	table := &Table{Hosts: map[string]*Host{"mail.contoso.com": host}}
	ask := func(target string, internal bool) route {
		h := &requestHead{method: "GET", target: target, authority: "mail.contoso.com", hostName: "mail.contoso.com"}
		return routeRequest(origin{table: table, secure: true, host: host, internal: internal}, h)
	}
	pages := 0
	for _, d := range host.VirtualDirectories {
		if d.Access != Publish || !d.HealthPage {
			continue
		}
		for _, p := range d.Prefixes {
			pages++
			if r := ask(p+"/healthcheck.htm", true); r.action != actBridge {
				t.Errorf("%s/healthcheck.htm from inside: %d", p, r.status)
			}
			for _, page := range []string{
				"/healthcheck.htm", "/HealthCheck.htm", "/HEALTHCHECK.HTM?x=y", "//healthcheck.htm", "/./healthcheck.htm", "/healthcheck%2ehtm", "/%68ealthcheck.htm", "/healthcheck.htm.", "/healthcheck.htm%20",
				"/healthcheck.htm/", "/healthcheck.htm/x", "/healthcheck.htm/.", "/healthcheck.htm//",
			} {
				if r := ask(p+page, false); r.action != actStatus || r.status != http.StatusNotFound && r.status != http.StatusBadRequest {
					t.Errorf("%s from outside goes to the server", p+page)
				}
			}
		}
	}
	if pages < 9 {
		t.Errorf("%d health pages", pages)
	}
}

// a client that goes by address, and so sends no name in its hello, is served
// by the default host also when it says the address in Host; with a name in the
// hello, an address in Host is somebody else's.
func TestClientsByAddress(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) { tb.Defaults[""] = f.mail }, b.backend())
	for _, tc := range []struct {
		sni, host string
		want      int
	}{
		{"", "192.0.2.1", 200},
		{"", "192.0.2.1:443", 200},
		{"", "[2001:db8::1]", 200},
		{"", "mail.contoso.com", 200},
		{"", "unknown.example", 421},
		{"", "1.2.3.4.5", 421},
		{"mail.contoso.com", "192.0.2.1", 421},
	} {
		conn, err := tls.Dial("tcp", f.https, &tls.Config{InsecureSkipVerify: true, ServerName: tc.sni})
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, conn)
		c.send("GET /owa/ HTTP/1.1\r\nHost: " + tc.host + "\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != tc.want {
			t.Errorf("SNI %q, Host %s: %d, want %d", tc.sni, tc.host, r.StatusCode, tc.want)
		}
	}
}

// names of NTFS for what is closed are refused, wherever they stand; a
// colon by itself is a character like others.
func TestStreamsOfNTFSAreRefused(t *testing.T) {
	host := &Host{Name: "mail.contoso.com", Mode: Bridge, VirtualDirectories: append(Preset(), CustomDirectory("/owa/closed", Deny)), Site: &Site{}}
	table := &Table{Hosts: map[string]*Host{"mail.contoso.com": host}}
	for target, want := range map[string]int{
		"/owa/closed::$INDEX_ALLOCATION/x": 400, "/owa/closed:$i30:$index_allocation/": 400, "/owa/closed%3a:%24Index_Allocation": 400, "/owa/healthcheck.htm::$DATA": 400,
		"/powershell::$index_allocation/": 400, "/owa/a:b/$c": 0, "/owa/?x=::$DATA": 0, "/owa/closed": 404,
	} {
		h := &requestHead{method: "GET", target: target, authority: "mail.contoso.com", hostName: "mail.contoso.com"}
		if r := routeRequest(origin{table: table, secure: true, host: host}, h); r.status != want || (want == 0) != (r.action == actBridge) {
			t.Errorf("%s: %d, want %d", target, r.status, want)
		}
	}
}

// what makes a connection a user's, in every way in which it can be written.
func TestBindsConnection(t *testing.T) {
	for value, want := range map[string]bool{
		"NTLM": true, "NTLM TlRM": true, "ntlm\tTlRM": true, "Negotiate": true, "NEGOTIATE  YII": true, "nego2 x": true, "Negotiate, NTLM": true, "NTLM,Basic realm=\"x\"": true,
		"Basic cGF0": false, "Bearer NTLM": false, "NTLMx y": false, "": false, "Digest": false,
	} {
		if got := bindsConnection([]byte(value)); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// handshaking is a backend that keeps the state of NTLM for each connection, in all
// three legs, as http.sys does: a type 3 is good only on the connection whose type 2
// it answers.
func handshaking(c *recorded) {
	challenge, user := "", ""
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		body := make([]byte, contentLength(h))
		if _, err := io.ReadFull(c.br, body); err != nil {
			return
		}
		token := strings.TrimPrefix(line(h, "Authorization: "), "Authorization: NTLM ")
		kind, rest, _ := strings.Cut(token, "-")
		switch {
		case kind == "type1":
			challenge, user = fmt.Sprintf("%s-%p", rest, c), ""
			fmt.Fprintf(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM type2-%s\r\nContent-Length: 6\r\n\r\ndenied", challenge)
			continue
		case kind == "type3" && challenge != "" && strings.HasPrefix(rest, challenge+"-"):
			user, challenge = strings.TrimPrefix(rest, challenge+"-"), ""
		case token != "":
			user, challenge = "", ""
		}
		if user == "" {
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nContent-Length: 6\r\n\r\ndenied")
			continue
		}
		answer := fmt.Sprintf("%s %s", user, body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
	}
}

// three legs, and then 50 requests without Authorization, are answered as the
// same user; side by side with another user's.
func TestThreeLegsThenFiftyRequests(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, handshaking)
	f := newFront(t, nil, b.backend())
	ask := func(c *client, auth, body string) (*http.Response, string) {
		c.send(fmt.Sprintf("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n%sContent-Length: %d\r\n\r\n%s", auth, len(body), body))
		return c.response("POST")
	}
	users := []string{"pat", "kim"}
	clients := []*client{f.dial("mail.contoso.com"), f.dial("mail.contoso.com")}
	challenges := make([]string, 2)
	for i, c := range clients {
		if r, _ := ask(c, "", ""); r.StatusCode != 401 || len(r.Header["Www-Authenticate"]) != 2 {
			t.Fatalf("first leg: %v", r.Header)
		}
		r, _ := ask(c, "Authorization: NTLM type1-"+users[i]+"\r\n", "")
		challenges[i] = strings.TrimPrefix(r.Header.Get("WWW-Authenticate"), "NTLM type2-")
		if r.StatusCode != 401 || challenges[i] == "" {
			t.Fatalf("second leg: %v", r.Header)
		}
	}
	for i, c := range clients {
		if r, body := ask(c, "Authorization: NTLM type3-"+challenges[i]+"-"+users[i]+"\r\n", "real body"); r.StatusCode != 200 || body != users[i]+" real body" {
			t.Fatalf("third leg: %s %q", r.Status, body)
		}
	}
	for n := range 50 {
		for i, c := range clients {
			if r, body := ask(c, "", fmt.Sprint(n)); r.StatusCode != 200 || body != fmt.Sprintf("%s %d", users[i], n) {
				t.Fatalf("request %d of %s: %s %q", n, users[i], r.Status, body)
			}
		}
	}
	if n := len(b.connections()); n != 2 {
		t.Errorf("%d connections at the server for 2 clients", n)
	}
}

// an offline address book of 20 MB comes whole in ten ranges, as BITS fetches
// it; what HEAD, conditions and a range out of reach get is what the server says.
func TestOfflineAddressBookInRanges(t *testing.T) {
	t.Parallel()
	const size, ranges = 20_000_000, 10
	file := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{8})
	rng.Read(file)
	modified := time.Date(2026, 11, 1, 2, 3, 4, 0, time.UTC)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"c7c1a9f2:0"`)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", modified, bytes.NewReader(file))
	})}
	cert := newCertificate(t, "cas01.contoso.local")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	f := newFront(t, nil, (&recorder{ln: ln, cert: cert}).backend())
	c := f.dial("mail.contoso.com")
	ask := func(method string, lines ...string) (*http.Response, string) {
		c.send(method + " /OAB/0c3de0f1/data.lzx HTTP/1.1\r\nHost: mail.contoso.com\r\nAccept-Encoding: identity\r\nUser-Agent: Microsoft BITS/7.8\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n")
		return c.response(method)
	}
	r, _ := ask("HEAD")
	etag, last := r.Header.Get("ETag"), r.Header.Get("Last-Modified")
	if r.StatusCode != 200 || r.ContentLength != size || etag != `"c7c1a9f2:0"` || last != "Sun, 01 Nov 2026 02:03:04 GMT" || r.Header.Get("Accept-Ranges") != "bytes" {
		t.Fatalf("HEAD: %s %v", r.Status, r.Header)
	}
	got := sha256.New()
	for i := range ranges {
		from, to := i*size/ranges, (i+1)*size/ranges-1
		r, part := ask("GET", fmt.Sprintf("Range: bytes=%d-%d", from, to), "If-Unmodified-Since: "+last, "If-Range: "+etag)
		if want := fmt.Sprintf("bytes %d-%d/%d", from, to, size); r.StatusCode != 206 || r.Header.Get("Content-Range") != want || r.ContentLength != int64(len(part)) || r.Header.Get("Content-Encoding") != "" || r.Close {
			t.Fatalf("range %d: %s %v", i, r.Status, r.Header)
		}
		io.WriteString(got, part)
	}
	if want := sha256.Sum256(file); !bytes.Equal(got.Sum(nil), want[:]) {
		t.Error("ten ranges are not the file")
	}
	for _, tc := range []struct {
		lines  []string
		status int
		length int64
	}{
		{[]string{"Range: bytes=20000000-"}, 416, -2},
		{[]string{"Range: bytes=-500"}, 206, 500},
		{[]string{"Range: bytes=0-0,-1"}, 206, -2},
		{[]string{"Range: bytes=0-9", `If-Range: "other"`}, 200, size},
		{[]string{"Range: bytes=0-9", "If-Unmodified-Since: Thu, 01 Oct 2026 00:00:00 GMT"}, 412, -2},
		{[]string{"If-None-Match: " + etag}, 304, -2},
		{[]string{"If-Modified-Since: " + last}, 304, -2},
		{[]string{"If-Match: \"other\""}, 412, -2},
	} {
		r, body := ask("GET", tc.lines...)
		if r.StatusCode != tc.status || tc.length >= 0 && int64(len(body)) != tc.length {
			t.Errorf("%q: %s, %d bytes", tc.lines, r.Status, len(body))
		}
		if tc.status == 416 && r.Header.Get("Content-Range") != "bytes */20000000" {
			t.Errorf("416 with Content-Range %q", r.Header.Get("Content-Range"))
		}
	}
}

// statuses that no library knows, and reasons that no library gives,
// cross as they are, in a connection that goes on.
func TestUnusualStatuses(t *testing.T) {
	statuses := []string{
		"440 Login Timeout", "449 Retry after sending a PROVISION command", "449 Retry With", "451 Redirect", "451", "456 X", "503 RPC Error: 6ba", "200 Success", "200 ", "207 Multi-Status",
		"241 NonStandard", "418 I'm a teapot", "499 \xe4\xf6\xfc", "507 Insufficient Space on Resource", "509 a  b ", "599 :", "600 Beyond", "999 Last",
	}
	i := 0
	b := newRecorder(t, func(c *recorded) {
		for {
			if _, err := c.head(); err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nok", statuses[i])
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for i = range statuses {
		c.send(get("/owa/"))
		if got, want := c.head(), "HTTP/1.1 "+statuses[i]+"\r\nContent-Length: 2\r\n\r\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		c.br.Discard(2)
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d connections at the server", n)
	}
}

// a request of MAPI over HTTP that is not done for long: head, PROCESSING,
// PENDING and DONE each arrive when they are sent, over silences (scaled: 30 s to
// 0.3 s, the limit of 10 min to 6 s).
func TestMAPIPendingPeriods(t *testing.T) { // not beside others: it measures
	timely(t, func(t *testing.T) error {
		parts := []string{"PROCESSING\r\n", "PENDING\r\n", "PENDING\r\n", "DONE\r\nX-ResponseCode: 0\r\n\r\n\x00\x01\r\n0\r\n\r\n"}
		sent := make(chan time.Time, len(parts)+1)
		b := newRecorder(t, func(c *recorded) {
			c.head()
			sent <- time.Now()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/mapi-http\r\nX-PendingPeriod: 30000\r\nTransfer-Encoding: chunked\r\n\r\n")
			for _, p := range parts {
				time.Sleep(300 * time.Millisecond)
				sent <- time.Now()
				fmt.Fprintf(c, "%x\r\n%s\r\n", len(p), p)
			}
			io.WriteString(c, "0\r\n\r\n")
			c.head()
		})
		f := newFront(t, quick(3*time.Second, 6*time.Second), b.backend())
		c := f.dial("mail.contoso.com")
		c.send("POST /mapi/emsmdb/?MailboxId=0c3de0f1@contoso.com HTTP/1.1\r\nHost: mail.contoso.com\r\nX-RequestType: NotificationWait\r\nContent-Length: 4\r\n\r\nwait")
		h := c.head()
		if err := within(50*time.Millisecond, <-sent, "head"); err != nil {
			return err
		}
		if line(h, "X-PendingPeriod:") != "X-PendingPeriod: 30000" {
			t.Errorf("%q", h)
		}
		for _, p := range parts {
			want := fmt.Sprintf("%x\r\n%s\r\n", len(p), p)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c.br, got); err != nil || string(got) != want {
				t.Fatalf("%q, %v; want %q", got, err, want)
			}
			if err := within(50*time.Millisecond, <-sent, p); err != nil {
				return err
			}
		}
		if end, _ := c.br.ReadString('\n'); end != "0\r\n" {
			t.Errorf("%q", end)
		}
		return nil
	})
}

// streaming notifications: 40 chunks with pauses that together are many times
// the limit of silence (scaled: 45 s to 0.1 s, so 30 min to 4 s; the limit of 31 min
// is here below the whole), each forwarded at once; the server's end is the client's.
func TestEWSStreaming(t *testing.T) { // not beside others: it measures
	for _, framing := range []string{"chunked", "until close"} {
		t.Run(framing, func(t *testing.T) {
			t.Parallel() // with each other
			timely(t, func(t *testing.T) error {
				const chunks = 40
				event := "<soap:Envelope>" + strings.Repeat("e", 300) + "</soap:Envelope>"
				sent := make(chan time.Time, chunks+1)
				b := newRecorder(t, func(c *recorded) {
					c.head()
					io.CopyN(io.Discard, c.br, 10)
					if framing == "chunked" {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n")
					} else {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n")
					}
					for range chunks {
						time.Sleep(100 * time.Millisecond)
						sent <- time.Now()
						if framing == "chunked" {
							fmt.Fprintf(c, "%x\r\n%s\r\n", len(event), event)
						} else {
							io.WriteString(c, event)
						}
					}
					time.Sleep(100 * time.Millisecond)
					sent <- time.Now()
				})
				f := newFront(t, quick(2*time.Second, 2*time.Second), b.backend())
				c := f.dial("mail.contoso.com")
				c.send("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 10\r\n\r\n<Get.../>  ")
				r, err := http.ReadResponse(c.br, &http.Request{Method: "POST"})
				if err != nil {
					t.Fatal(err)
				}
				slow := 0
				for i := range chunks {
					got := make([]byte, len(event))
					if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != event {
						t.Fatalf("chunk %d: %q, %v", i, got, err)
					}
					if within(50*time.Millisecond, <-sent, "chunk") != nil {
						slow++
					}
				}
				_, err = r.Body.Read(make([]byte, 1))
				if framing == "chunked" && err != io.ErrUnexpectedEOF || framing != "chunked" && err != io.EOF {
					t.Errorf("the server has closed, the client sees %v", err)
				}
				if slow > 4 {
					return fmt.Errorf("%d of %d chunks took more than 50 ms", slow, chunks)
				}
				return within(100*time.Millisecond, <-sent, "the server's end")
			})
		})
	}
}

// a long poll outlives a reload: it is answered, and its connection goes on
// under the table it began with.
func TestLongPollOutlivesReload(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			if strings.Contains(h, "Ping") {
				<-answer
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
	b.asked(0, 1)
	time.Sleep(2 * quickWait)
	f.SetTable(&Table{})
	time.Sleep(2 * quickWait)
	close(answer)
	for range 2 {
		if r, body := c.response("POST"); r.StatusCode != 200 || body != "ok" || r.Close {
			t.Fatalf("%s %q close %v", r.Status, body, r.Close)
		}
		c.send(get("/owa/"))
	}
	c.response("GET")
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d connections at the server", n)
	}
}

// a client that half-closes with FIN and waits for longer than it is waited
// for gets nothing: no 502, no other answer made up by us.
func TestHalfClosedLongPollGetsNoError(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"POST", "OPTIONS"} {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.Copy(io.Discard, c.br)
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(method + " /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
		backend := b.asked(0, 1)
		c.Conn.(*tls.Conn).CloseWrite()
		c.Conn.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite()
		c.ends()
		backend.ends(t)
	}
}

// what a server answers in the middle of an IN channel is forwarded at once,
// reason phrase and all, and announced as the end; a client that ends its channel
// early gets no answer made up by us, and the log takes it as normal.
func TestInChannelEndsEarly(t *testing.T) {
	const in = "RPC_IN_DATA /rpc/rpcproxy.dll?srv:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 1073741824\r\n\r\nsome"
	for _, status := range []string{"503 RPC Error: 6ba", "401 Unauthorized"} {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			time.Sleep(2 * quickWait)
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Length: 4\r\n\r\ngone", status)
			io.Copy(io.Discard, c.br)
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(in)
		if r, body := c.response("RPC_IN_DATA"); r.Status != status || body != "gone" || !r.Close {
			t.Errorf("%s %q, close %v", r.Status, body, r.Close)
		}
		c.ends()
		b.asked(0, 1).ends(t)
	}
	b := newRecorder(t, func(c *recorded) {
		c.head()
		io.Copy(io.Discard, c.br)
	})
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.Logger = o.Logger.Level(1) }, b.backend())
	for i, end := range []func(*tls.Conn){
		func(c *tls.Conn) { c.CloseWrite() },
		func(c *tls.Conn) { c.CloseWrite(); c.NetConn().(*net.TCPConn).CloseWrite() },
		func(c *tls.Conn) { c.NetConn().(*net.TCPConn).CloseWrite() },
	} {
		c := f.dial("mail.contoso.com")
		c.send(in)
		backend := b.asked(i, 1)
		time.Sleep(2 * quickWait)
		end(c.Conn.(*tls.Conn))
		c.ends()
		backend.ends(t)
		f.waitForLog(fmt.Sprintf(`"conn":%d,`, i+1))
	}
	eventually(t, "three records", func() bool { return strings.Count(f.log.String(), `"method":"RPC_IN_DATA"`) == 3 })
	if s := f.log.String(); strings.Contains(s, `"level":"warn"`) || strings.Contains(s, `"level":"error"`) || strings.Count(s, `"status":0`) != 3 {
		t.Errorf("log: %s", s)
	}
}

// values of 16 KiB and names of any token character reach the
// server; Via does not, and a client cannot nominate away what we add.
func TestOddHeadersReachTheServer(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	kept := "X-OWA-UrlPostData: " + strings.Repeat("%7b", 16<<10/3) + "\r\n" +
		"Cookie: " + strings.Repeat("c", 16<<10) + "\r\n" +
		"!#$%&'*+-.^_`|~09azAZ: token\r\n_: _\r\nX-Latin1: caf\xe9\r\nX-UTF8: caf\u00e9\r\nX-Empty:\r\nX-Tab:\ta\tb\r\nx-lower: 1\r\nX-UPPER: 2\r\nX-LOWER: 3\r\n"
	c.send("GET /owa/ev.owa HTTP/1.1\r\nHost: mail.contoso.com\r\n" + kept +
		"Via: 1.1 carrier.example\r\nvia: 1.0 x\r\nConnection: X-Forwarded-For, x-forwarded-proto, Front-End-Https, Host, keep-alive\r\n\r\n")
	_, got := c.response("GET")
	const added = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nFront-End-Https: On\r\n\r\n"
	if want := "GET /owa/ev.owa HTTP/1.1\r\nHost: mail.contoso.com\r\n" + kept + added; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// what devices put into a query, escaped or not, the server gets.
func TestRawQueries(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for _, target := range []string{
		`/Microsoft-Server-ActiveSync?Cmd=Sync&User=CONTOSO\pat&DeviceId=Appl123&DeviceType=iPhone`, "/Microsoft-Server-ActiveSync?User=pat@contoso.com&DeviceId=v140Device&DeviceType=SP^`~{}|<>\"'",
		"/Microsoft-Server-ActiveSync?jAAJBAp2MTQwRGV2aWNlAwA=", "/Microsoft-Server-ActiveSync/Default.eas?Cmd=Ping", "//Microsoft-Server-ActiveSync?x", "/Microsoft-Server-ActiveSync?",
		"/Microsoft-Server-ActiveSync?a=%&b=%2&c=%00&d=%u0041", "/Microsoft-Server-ActiveSync?caf\xe9\xff=\u20ac", "/mapi/nspi/?MailboxId=0c3de0f1-6a52-4b0a@contoso.com&a=b?c=d/e;f",
		"/rpc/rpcproxy.dll?0c3de0f1-6a52@contoso.com:6004", "/rpc/rpcproxy.dll?[::1]:6001", "/ews/exchange.asmx??&&==&a=&=b",
	} {
		line := "POST " + target + " HTTP/1.1\r\n"
		c.send(line + "Host: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
		if r, got := c.response("POST"); r.StatusCode != 200 || !strings.HasPrefix(got, line) {
			t.Errorf("%q: %d, the server saw %.100q", target, r.StatusCode, got)
		}
	}
}

// a request of which a byte was sent is not sent to another server,
// whatever its method, and however the first one failed.
func TestNoRetryAfterTheFirstByte(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(c *recorded){
		"closes": func(*recorded) {},
		"resets": func(c *recorded) { c.Conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0) },
		"half an answer": func(c *recorded) {
			io.WriteString(c, "HTTP/1.1 20")
		},
	} {
		for _, head := range []string{"GET /owa/", "POST /ews/exchange.asmx", "RPC_IN_DATA /rpc/rpcproxy.dll?a:6001"} {
			t.Run(name+", "+head, func(t *testing.T) {
				t.Parallel()
				script := func(c *recorded) {
					if _, err := c.head(); err == nil {
						fail(c)
					}
				}
				b1, b2 := newRecorder(t, script), newRecorder(t, script)
				f := newFront(t, nil, b1.backend(), b2.backend())
				c := f.dial("mail.contoso.com")
				c.send(head + " HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 4\r\n\r\nbody")
				if r, _ := c.response("GET"); r.StatusCode != 502 || !r.Close {
					t.Errorf("%s", r.Status)
				}
				c.ends()
				seen := 0
				for _, b := range []*recorder{b1, b2} {
					for _, conn := range b.connections() {
						seen += len(conn.seen())
					}
				}
				if seen != 1 {
					t.Errorf("the servers saw the request %d times", seen)
				}
			})
		}
	}
}

// the server gets chunks without extensions, trailers or a Trailer header;
// 88 KiB for a line and 128 KiB for a head are the limits.
func TestTrailersAreDropped(t *testing.T) {
	whole := make(chan string, 1)
	b := newRecorder(t, func(c *recorded) {
		h, _ := c.head()
		body := make([]byte, len("3\r\nabc\r\n0\r\n\r\n"))
		io.ReadFull(c.br, body)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2;e=f\r\nok\r\n0;g\r\nX-T: u\r\n\r\n")
		more, _ := io.ReadAll(c.br)
		whole <- h + string(body) + string(more)
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nTE: trailers\r\nTrailer: X-Smuggled\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0;c=d\r\nX-Smuggled: 1\r\nContent-Length: 5\r\n\r\n")
	got := c.head()
	for !strings.HasSuffix(got, "0\r\n\r\n") {
		line, err := c.br.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		got += line
	}
	if want := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"; got != want {
		t.Errorf("the client got %q", got)
	}
	c.Close()
	if got := <-whole; !strings.HasSuffix(got, "\r\n\r\n3\r\nabc\r\n0\r\n\r\n") || strings.Contains(got, "railer") || strings.Contains(got, "Smuggled") || strings.Contains(got, ";") {
		t.Errorf("the server got %q", got)
	}
	if maxLineBytes != 88<<10 || maxHeadBytes != 128<<10 {
		t.Error("other limits than R-10.5 has")
	}
}

// the names in answers of our own have capitals, as clients were seen to need.
func TestOwnAnswersHaveConventionalNames(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["autodiscover.contoso.com"].TLS = f.mail.TLS
		tb.Hosts["autodiscover.fabrikam.com"] = &Host{
			Name: "autodiscover.fabrikam.com", Mode: Answer, TLS: f.mail.TLS,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("www-authenticate", `Basic realm="x"`)
				w.Header()["x-soap-enabled"] = []string{"True"}
				w.WriteHeader(401)
			}),
		}
	}, &Backend{Name: "cas09", Address: dead.Addr().String(), TLS: &tls.Config{}})
	for _, tc := range []struct{ host, request, want string }{
		{"autodiscover.fabrikam.com", "GET /x", "WWW-Authenticate: Basic realm=\"x\""},
		{"mail.contoso.com", "GET /nowhere", "Content-Length: "},
		{"mail.contoso.com", "DELETE /owa/", "Allow: "},
		{"mail.contoso.com", "GET /owa/", "Connection: close"},
		{"autodiscover.contoso.com", "GET /autodiscover/autodiscover.xml", "Location: "},
		{"mail.contoso.com", "G(T /", "Content-Type: "},
	} {
		c := f.dial(tc.host)
		c.send(tc.request + " HTTP/1.1\r\nHost: " + tc.host + "\r\n\r\n")
		h := c.head()
		if !strings.Contains(h, "\r\n"+tc.want) {
			t.Errorf("%s: no %q in %q", tc.request, tc.want, h)
		}
		for l := range strings.SplitSeq(h, "\r\n") {
			if name, _, ok := strings.Cut(l, ":"); ok && !strings.HasPrefix(l, "HTTP/") && name == strings.ToLower(name) {
				t.Errorf("%s: %q", tc.request, l)
			}
		}
	}
}

// segmented sends what is written byte by byte, each a segment of its own.
type segmented struct {
	net.Conn
	left int // bytes still to be sent so
}

func (c *segmented) Write(p []byte) (n int, err error) {
	for n < len(p) {
		step := 1
		if c.left <= 0 {
			step = len(p) - n
		}
		m, err := c.Conn.Write(p[n : n+step])
		n += m
		c.left -= m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// a hello with a post-quantum key share, in segments of one byte, is read
// whole, for a name that is terminated and for one that is passed on.
func TestSegmentedHelloThroughTheServer(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
	}, b.backend())
	for _, name := range []string{"mail.contoso.com", "eas.contoso.com"} {
		raw, err := net.Dial("tcp", f.https)
		if err != nil {
			t.Fatal(err)
		}
		raw.(*net.TCPConn).SetNoDelay(true)
		tc := tls.Client(&segmented{raw, 2000}, &tls.Config{ServerName: name, InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519}})
		c := newClient(t, tc)
		c.send(get("/owa/"))
		if r, _ := c.response("GET"); r.StatusCode != 200 {
			t.Errorf("%s: %s", name, r.Status)
		}
	}
}

// A server as odd as http.sys and what stands before it can be: the client gets what
// it said, and the connection goes on where it can.
func TestOddServers(t *testing.T) {
	t.Parallel()
	reset := func(c *recorded) {
		c.Conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
	}
	post := "POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 100000\r\n\r\n"
	type step struct {
		send   string
		status string
		body   string
		closes bool
	}
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for name, tc := range map[string]struct {
		script func(c *recorded)
		steps  []step
	}{
		"401 that closes, R-1.8": {func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nConnection: close\r\nContent-Length: 6\r\n\r\ndenied")
		}, []step{{get("/owa/"), "401 Unauthorized", "denied", true}}},
		"413, then a reset, in the middle of a body": {func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge")
			time.Sleep(2 * quickWait)
			reset(c)
		}, []step{{post + strings.Repeat("x", 50000), "413 Request Entity Too Large", "large", true}}},
		"100, then 401, R-1.11": {func(c *recorded) {
			for range 2 {
				h, _ := c.head()
				io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
				io.CopyN(io.Discard, c.br, contentLength(h))
			}
		}, []step{{post + strings.Repeat("x", 100000), "401 Unauthorized", "", false}, {post + strings.Repeat("x", 100000), "401 Unauthorized", "", false}}},
		"chunked 401": {func(c *recorded) {
			for range 2 {
				c.head()
				io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM TlRM\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nden\r\n3\r\nied\r\n0\r\n\r\n")
			}
		}, []step{{get("/owa/"), "401 Unauthorized", "denied", false}, {get("/owa/"), "401 Unauthorized", "denied", false}}},
		"304 with chunked and no body": {func(c *recorded) {
			for range 2 {
				c.head()
				io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n")
			}
		}, []step{{get("/oab/x"), "304 Not Modified", "", false}, {get("/oab/x"), "304 Not Modified", "", false}}},
		"interim responses": {func(c *recorded) {
			for range 2 {
				c.head()
				io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n")
				time.Sleep(2 * quickWait)
				io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"+ok)
			}
		}, []step{{get("/owa/"), "102 Processing", "", false}, {"", "103 Early Hints", "", false}, {"", "200 OK", "ok", false}, {get("/owa/"), "102 Processing", "", false}}},
		"HTTP/1.0 with keep-alive, R-1.8": {func(c *recorded) {
			for range 2 {
				c.head()
				io.WriteString(c, "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok")
			}
		}, []step{{get("/owa/"), "200 OK", "ok", false}, {get("/owa/"), "200 OK", "ok", false}}},
		"byte by byte": {func(c *recorded) {
			for range 2 {
				c.head()
				for _, b := range []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n") {
					c.Write([]byte{b})
					time.Sleep(time.Millisecond)
				}
			}
		}, []step{{get("/owa/"), "200 OK", "ok", false}, {get("/owa/"), "200 OK", "ok", false}}},
		"answers, then closes unsaid": {func(c *recorded) {
			c.head()
			io.WriteString(c, ok)
		}, []step{{get("/owa/1"), "200 OK", "ok", false}, {get("/owa/2"), "200 OK", "ok", false}}},
		"answers before the body and closes": {func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		}, []step{{post + "x", "403 Forbidden", "no", true}}},
		"closes its sending side alone": {func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nuntil the end")
			c.Conn.(*tls.Conn).CloseWrite()
			io.Copy(io.Discard, c.br)
		}, []step{{get("/owa/"), "200 OK", "until the end", true}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRecorder(t, tc.script)
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			for i, s := range tc.steps {
				if i > 0 && name == "answers, then closes unsaid" {
					b.asked(0, 1).ends(t) // a request that crosses the server's end on the way is not answered
				}
				if s.send != "" {
					go io.WriteString(c, s.send)
				}
				r, err := http.ReadResponse(c.br, &http.Request{Method: "GET"})
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				body, err := io.ReadAll(r.Body)
				if r.Status != s.status || string(body) != s.body || err != nil {
					t.Fatalf("step %d: %s %q %v, want %s %q", i, r.Status, body, err, s.status, s.body)
				}
				if s.closes {
					if !r.Close && !slices.Contains([]string{"403 Forbidden"}, s.status) {
						t.Errorf("step %d: the end is not announced: %v", i, r.Header)
					}
					c.SetReadDeadline(time.Now().Add(patience))
					if rest, err := io.ReadAll(c.br); len(rest) > 0 || isTimeout(err) {
						t.Errorf("step %d: behind the end %q, %v", i, rest, err)
					}
				}
			}
		})
	}
}

// that a client leaves in a long poll is noticed also when it has sent
// more ahead of its turn than is held for it.
func TestPipeliningClientGoneClosesBackend(t *testing.T) { // not beside others: it measures
	if runtime.GOOS != "linux" {
		t.Skip("the state of a socket is asked for on Linux only")
	}
	timely(t, func(t *testing.T) error {
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.Copy(io.Discard, c.br)
		})
		f := newFront(t, nil, b.backend())
		c := f.dial("mail.contoso.com")
		c.send("POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n")
		backend := b.asked(0, 1)
		c.send("POST /Microsoft-Server-ActiveSync?Cmd=Sync HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 60000))
		time.Sleep(4 * quickWait)
		start := time.Now()
		c.Close()
		backend.ends(t)
		return within(time.Second, start, "backend connection closed")
	})
}

// on no path, whatever goes wrong, does the certificate of a terminated name,
// the default one's included, answer for a name that is passed on.
func TestPassthroughNameNeverGetsOurCertificate(t *testing.T) {
	t.Parallel()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	backend := func(serve func(net.Conn)) *Backend {
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
				serve(c)
				c.Close()
			}
		}()
		return &Backend{Name: "cas01", Address: ln.Addr().String()}
	}
	sites := map[string][]*Backend{
		"none.contoso.com":    nil,
		"dead.contoso.com":    {{Name: "cas09", Address: dead.Addr().String()}},
		"closes.contoso.com":  {backend(func(net.Conn) {})},
		"reads.contoso.com":   {backend(func(c net.Conn) { c.Read(make([]byte, 4096)) })},
		"garbage.contoso.com": {backend(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })},
		"alert.contoso.com":   {backend(func(c net.Conn) { c.Write([]byte{21, 3, 3, 0, 2, 2, 40}) })},
	}
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		for name, backends := range sites {
			tb.Hosts[name] = &Host{Name: name, Mode: Passthrough, Site: &Site{Name: name, Backends: backends, ConnectTimeout: time.Second}, TLS: f.mail.TLS, Policy: f.mail.Policy}
		}
		tb.Defaults[""] = f.mail
	})
	for name := range sites {
		for _, alpn := range [][]string{nil, {"http/1.1"}, {"h2"}, {"acme-tls/1"}} {
			shown := false
			c, err := tls.Dial("tcp", f.https, &tls.Config{
				ServerName: strings.ToUpper(name), InsecureSkipVerify: true, NextProtos: alpn,
				VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { shown = true; return nil },
			})
			if err == nil {
				c.Close()
			}
			if err == nil || shown {
				t.Errorf("%s, ALPN %v: a certificate was shown", name, alpn)
			}
		}
	}
}

// a request for an upgrade that is answered with a challenge may be made again
// with an answer to it, on the same connection.
func TestUpgradeBehindLogin(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			if strings.Contains(h, "Authorization: NTLM type3") && strings.Contains(h, "Connection: Upgrade\r\nUpgrade: websocket\r\n") {
				break
			}
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM type2\r\nContent-Length: 6\r\n\r\ndenied")
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(c, c.br)
		c.Conn.(*tls.Conn).CloseWrite()
	})
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		d := CustomDirectory("/wopi", Publish)
		d.Upgrade = true
		f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, d)
	}, b.backend())
	c := f.dial("mail.contoso.com")
	for _, auth := range []string{"", "Authorization: NTLM type1\r\n"} {
		c.send("GET /wopi/x HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + auth + "\r\n")
		if r, body := c.response("GET"); r.StatusCode != 401 || body != "denied" || r.Close {
			t.Fatalf("%s %q", r.Status, body)
		}
	}
	c.send("GET /wopi/x HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nAuthorization: NTLM type3\r\n\r\n")
	if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 101 ") {
		t.Fatalf("%q", h)
	}
	c.send("both ways")
	c.Conn.(*tls.Conn).CloseWrite()
	if rest, err := io.ReadAll(c.br); string(rest) != "both ways" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d connections at the server", n)
	}
}

// with Expect, the answer before the body may come in any of the ways of
// http.sys; both connections are kept, to a client that sends its body after all as
// to one that has sent a part of it.
func TestExpectAndEarlyAnswers(t *testing.T) {
	t.Parallel()
	const unauthorized = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\n"
	for name, tc := range map[string]struct {
		answer  string
		framing string
		first   int // bytes of the body that are sent before the answer is looked for
	}{
		"never begun":            {unauthorized + "Content-Length: 6\r\n\r\ndenied", "Content-Length: 300000", 0},
		"begun":                  {unauthorized + "Content-Length: 6\r\n\r\ndenied", "Content-Length: 200000", 1000},
		"100 first":              {"HTTP/1.1 100 Continue\r\n\r\n" + unauthorized + "Content-Length: 6\r\n\r\ndenied", "Content-Length: 200000", 0},
		"chunked page":           {unauthorized + "Transfer-Encoding: chunked\r\n\r\n6\r\ndenied\r\n0\r\n\r\n", "Content-Length: 300000", 0},
		"chunked body":           {unauthorized + "Content-Length: 6\r\n\r\ndenied", "Transfer-Encoding: chunked", 0},
		"403, never begun":       {"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ndenied", "Content-Length: 200000", 0},
		"417 of the server":      {"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 6\r\n\r\ndenied", "Content-Length: 10", 0},
		"large page, much later": {unauthorized + "Content-Length: 60000\r\n\r\n" + strings.Repeat("denied", 10000), "Content-Length: 200000", 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRecorder(t, func(c *recorded) {
				for {
					r, err := http.ReadRequest(c.br)
					if err != nil {
						return
					}
					if r.Method == "GET" {
						io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
						return
					}
					if strings.Contains(name, "later") {
						time.Sleep(4 * quickWait)
					}
					io.WriteString(c, tc.answer)
					if n, err := io.Copy(io.Discard, r.Body); err != nil {
						t.Errorf("the server got %d bytes of the body: %v", n, err)
						return
					}
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			for range 2 {
				body := strings.Repeat("b", 100000)
				if n, ok := strings.CutPrefix(tc.framing, "Content-Length: "); ok {
					var size int
					fmt.Sscan(n, &size)
					body = strings.Repeat("b", size)
				} else {
					body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
				}
				c.send("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nExpect: 100-continue\r\n" + tc.framing + "\r\n\r\n" + body[:tc.first])
				r, page := c.response("POST")
				if r.StatusCode == 100 {
					r, page = c.response("POST")
				}
				if r.StatusCode < 400 || !strings.HasPrefix(page, "denied") || r.Close {
					t.Fatalf("%s %.20q, close %v", r.Status, page, r.Close)
				}
				c.send(body[tc.first:])
			}
			c.send(get("/owa/")) // found where the second body ends
			if r, _ := c.response("GET"); r.StatusCode != 204 {
				t.Errorf("behind them: %s", r.Status)
			}
			if n := len(b.connections()); n != 1 {
				t.Errorf("%d connections at the server", n)
			}
		})
	}
}
